"""Checkpoints on disk. This is the only file that knows Orbax.

A save is asynchronous (the call returns once the state is copied to the host) and atomic: it is
written beside the finished ones and renamed at the end, so that a process killed at any instruction
leaves the one before as the latest. A restore places arrays as the caller's shardings say, whatever
the number of devices was at the save.
"""

import logging
import os
from typing import Any, Self

import jax

from biggan_jax.config import ConfigError
from biggan_jax.train.digest import name_of


class Checkpoints:
    """The checkpoints of one run. In a run of many processes all of them make the same calls."""

    def __init__(self, directory: str | os.PathLike[str], keep: int | None):
        """Opens a directory of checkpoints.

        Args:
          directory: made at need; remains of interrupted saves in it are removed.
          keep: how many to keep, the latest ones. `None` opens for reading only: nothing is made
            or removed, so that a run may be looked at while it trains.

        Raises:
          ValueError: if `keep` is below 1.
        """
        import orbax.checkpoint as ocp

        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep}: must be at least 1, or None for reading only.")
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._ocp = ocp
        self._directory = os.path.abspath(directory)
        writes = keep is not None
        if writes:
            os.makedirs(self._directory, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                read_only=not writes,
                cleanup_tmp_directories=writes,
                # Only the latest count. A score (`best_fn`) together with `max_to_keep` would
                # delete the newest checkpoint as soon as it scores badly.
                preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            ),
            # Named here, as a manager that has not saved yet cannot describe what it finds.
            handler_registry=ocp.handlers.create_default_handler_registry(
                state=ocp.StandardCheckpointHandler(), meta=ocp.JsonCheckpointHandler()
            ),
        )

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts a save and returns when `state` may be changed or donated.

        A save still going on is waited for first. What goes wrong while writing is raised by the
        next call of `save`, `wait` or `close`.

        Args:
          step: larger than that of any checkpoint there is.
          state: a pytree of arrays, none of them empty.
          meta: what JSON can hold.

        Raises:
          ValueError: if there is a checkpoint of this step or of a later one.
        """
        latest = self._manager.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"cannot save step {step}: there is a checkpoint of step {latest}.")
        args = self._ocp.args
        saved = self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(state), meta=args.JsonSave(meta)),
            force=True,
        )
        if not saved:
            raise RuntimeError(f"step {step} was not saved to {self._directory}.")

    def latest_step(self) -> int | None:
        """Returns the step of the latest finished checkpoint, or None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Returns the steps of all finished checkpoints, ascending, as they are on disk now."""
        return sorted(self._ocp.utils.checkpoint_steps(self._directory))

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct`, of the structure that was saved. Each
            array arrives with the sharding given here, or on the first device if there is none.
          step: which one; the latest if `None`.

        Returns:
          The state, bit by bit what was saved, and its `meta`.

        Raises:
          ConfigError: if there is no such checkpoint, it cannot be read, or its arrays are not the
            wanted ones; the first array that differs is named.
        """
        self.wait()
        steps = self.steps()
        if not steps:
            raise ConfigError(f"{self._directory}: there is no checkpoint.")
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise ConfigError(
                f"{self._directory}: there is no checkpoint of step {step};"
                f" there are {', '.join(map(str, steps))}."
            )
        place = os.path.join(self._directory, str(step))
        args = self._ocp.args
        try:
            saved = self._manager.item_metadata(step)["state"]
            if saved is None:
                raise FileNotFoundError("its state is missing")
            _check_same_arrays(place, saved.tree, abstract_state)
            restored = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(jax.tree.map(_placed, abstract_state)),
                    meta=args.JsonRestore(),
                ),
            )
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ConfigError(f"{place}: the checkpoint cannot be read: {reason}") from e
        return restored["state"], restored["meta"]

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          Exception: whatever stopped that save.
        """
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and ends all threads."""
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _not_from_orbax(record):
    # Orbax tells what it does, at length, through absl's logger. What goes wrong it also raises.
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _placed(leaf):
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_same_arrays(place, saved_tree, wanted_tree):
    # Orbax itself would cast another dtype without a word and answer the rest with a page of text.
    saved = _described(saved_tree)
    wanted = _described(wanted_tree)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise ConfigError(
                f"{place}: this checkpoint is of another model: {name} was saved as"
                f" {saved.get(name, 'nothing')} and is wanted as {wanted.get(name, 'nothing')}."
            )


def _described(tree):
    return {
        name_of(path): f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
