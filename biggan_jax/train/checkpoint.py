"""Checkpoints on disk. This is the only file that knows Orbax.

A checkpoint is a folder named after its step: `state/`, which Orbax writes, and `manifest.json`
(see `train/manifest.py`). A save goes through these states, each of which a kill may make the last:

1. `<step>.tmp/`: half-written. `save` returns once the state is copied to the host; a thread lets
   Orbax finish, hashes the files, makes them durable, and writes the manifest. A folder of this
   name never counts, even where Orbax was done, as no hash vouches for it yet. That costs the
   steps since the checkpoint before, and no more: older checkpoints go after state 2 only.
2. `<step>/`: whole, by one rename. It counts, and it always has a manifest.
3. `<step>.old/`: half-removed, as it was not among those to keep. It does not count.

A restore reads every byte against the manifest first. A damaged checkpoint is named and skipped
for the newest good one; once that is read, the damaged one becomes `damaged-<step>/`, which neither
counts nor is ever removed. So does `rolled-back-<number>-<step>/`, of later than what the watchdog
went back to. Checkpoints of versions before the manifest hold `meta/` in its place; they are read,
and what is said of them is that they cannot be verified.

A restore places arrays as the caller's shardings say, whatever the number of devices was at the
save.
"""

import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.train import manifest
from biggan_jax.train.digest import name_of
from biggan_jax.train.keep import Keep
from biggan_jax.train.manifest import Damaged

STATE = "state"
ASIDE = "damaged-"
ROLLED_BACK = "rolled-back-"
NO_MANIFEST = "carries no manifest, so it cannot be verified"
# Of removals and saves that were not finished; the last form is that of earlier versions.
REMAINS = re.compile(r"(\d+)\.(old|tmp|orbax-checkpoint-tmp.*)")
# TensorStore tells of the disk's answers in the text of a ValueError.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")

Manifests = Mapping[int, Mapping[str, Any]]  # By step.


class Checkpoints:
    """The checkpoints of one run. In a run of many processes all of them make the same calls."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: Keep | int | None,
        say: Callable[[str], None] | None = None,
        known: Callable[[Manifests], Mapping[int, Mapping[str, float]]] | None = None,
    ):
        """Opens a directory of checkpoints.

        Args:
          directory: made at need; what interrupted saves left in it is removed, and named.
          keep: which to keep; a number is that of the latest ones. `None` opens for reading only:
            nothing is made, removed or renamed, so that a run may be looked at while it trains.
          say: called with each line meant for the user; by default they go to stderr.
          known: gives the numbers known of each checkpoint, by step, for what is best; by default
            those it was saved with.

        Raises:
          ValueError: if `keep` is below 1.
        """
        import orbax.checkpoint as ocp

        self._keep = Keep(keep) if isinstance(keep, int) else keep
        logging.getLogger("absl").addFilter(_not_from_orbax)
        self._directory = os.path.abspath(directory)
        self._is_main = jax.process_index() == 0
        self._known = known or _saved_with
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        if self._keep is not None:
            os.makedirs(self._directory, exist_ok=True)
            if self._is_main:
                self._remove_remains()
        # What several devices hold alike, one of them gives. Orbax's default is that each gives a
        # part: that compiles a program a shape, and the first save holds up the run for that.
        arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
        self._args = ocp.args
        self._restore_args = ocp.checkpoint_utils.construct_restore_args
        self._orbax = ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            # Else a folder that cannot be made is noticed after five minutes of waiting for it.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts a save and returns when `state` may be changed or donated.

        A save still going on is waited for first. What goes wrong while writing is raised by the
        next call of `save`, `check`, `wait` or `close`.

        Args:
          step: larger than that of any checkpoint there is.
          state: a pytree of arrays, none of them empty.
          meta: what JSON can hold; it goes into the manifest.
          metrics: by name; one of them may decide what is kept. Those not finite are left out.

        Raises:
          ValueError: if there is a checkpoint of this step or of a later one, or this is opened
            for reading only.
          CannotWrite: if the disk does not take it; whole checkpoints are as they were.
        """
        if self._keep is None:
            raise ValueError(f"{self._directory} is opened for reading only.")
        self.wait()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"cannot save step {step}: there is a checkpoint of step {latest}.")
        finite = {k: float(v) for k, v in (metrics or {}).items() if np.isfinite(v)}
        about = manifest.facts(step, state, meta, finite)
        if self._is_main:
            shutil.rmtree(self._partial(step), ignore_errors=True)
        try:
            place = os.path.join(self._partial(step), STATE)
            self._orbax.save(place, args=self._args.PyTreeSave(state))
        except Exception as e:
            failure = self._not_written(step, e)
            if failure is e:
                raise
            raise failure from e
        self._thread = threading.Thread(target=self._finish, args=(step, about, self._keep))
        self._thread.start()

    def check(self) -> None:
        """Raises what stopped the last save, if it has been stopped; does not wait.

        Raises:
          CannotWrite: if the disk does not take the checkpoint.
          Exception: whatever else it was.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def busy(self) -> bool:
        """Returns whether a save is still going on."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the last save is on disk; raises what `check` does."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def latest_step(self) -> int | None:
        """Returns the step of the latest whole checkpoint, or None if there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, ascending, as they are on disk now."""
        if not os.path.isdir(self._directory):
            return []
        return sorted(int(name) for name in os.listdir(self._directory) if name.isdecimal())

    def newest(self, among: Callable[[int], bool] = lambda step: True) -> int | None:
        """Returns the latest step of those asked for; in all processes what process 0 sees."""
        steps = [step for step in _of_main(self.steps()) if among(step)]
        return steps[-1] if steps else None

    def manifests(self) -> dict[int, dict[str, Any]]:
        """Returns what the readable manifests say, by step; no other file is looked at."""
        found = {}
        for step in self.steps():
            try:
                content = find_manifest(self._place(step))
            except Damaged:
                continue  # A restore says so.
            if content is not None:
                found[step] = content
        return found

    def set_aside_after(self, step: int, number: int) -> None:
        """Renames the checkpoints that rollback `number`, to `step`, has left behind, if it did.

        Those are the later ones that were saved before it, as their `meta["rollbacks"]` says.
        """
        self.wait()
        if not self._is_main:
            return  # The others learn from process 0 what there is.
        for later in self.steps():
            if later <= step:
                continue
            try:
                content = find_manifest(self._place(later))
            except Damaged:
                content = None  # It does not say; a restore would skip it.
            if content is None or content["meta"].get("rollbacks", 0) < number:
                name = f"{ROLLED_BACK}{number}-{later}"
                os.rename(self._place(later), os.path.join(self._directory, name))
                self._say(f"checkpoint {later} is of before rollback {number}; kept as {name}")

    def restore(
        self,
        abstract_state: Any,
        step: int | None = None,
        among: Callable[[int], bool] = lambda step: True,
    ) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint after comparing it with its manifest.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct`, of the structure that was saved. Each
            array arrives with the sharding given here, or on the first device if there is none.
          step: which one; if `None` the latest that is not damaged. Those that are get named, and
            set aside unless this is opened for reading only.
          among: whether a step is looked at where `step` is None.

        Returns:
          The state, bit by bit what was saved, and its `meta`.

        Raises:
          ConfigError: if there is no such checkpoint, it is damaged (without `step`: all are), or
            its arrays are not the wanted ones; the first array that differs is named.
        """
        self.wait()
        steps = [s for s in _of_main(self.steps()) if step is not None or among(s)]
        if not steps:
            raise ConfigError(f"{self._directory}: there is no checkpoint.")
        if step is not None and step not in steps:
            raise ConfigError(
                f"{self._directory}: there is no checkpoint of step {step};"
                f" there are {', '.join(map(str, steps))}."
            )
        damaged: dict[int, str] = {}
        for candidate in [step] if step is not None else reversed(steps):
            try:
                content = self._verified(candidate)
                state = self._read(candidate, abstract_state, verified=content is not None)
                meta = _old_meta(self._place(candidate)) if content is None else content["meta"]
            except Damaged as e:
                damaged[candidate] = str(e)
                continue
            for number, reason in damaged.items():
                self._skip(number, reason)
            return state, meta
        if step is not None:
            raise ConfigError(f"{self._place(step)}: the checkpoint is damaged: {damaged[step]}.")
        reasons = "; ".join(f"{number}: {reason}" for number, reason in damaged.items())
        raise ConfigError(f"{self._directory}: every checkpoint is damaged: {reasons}.")

    def close(self) -> None:
        """Waits for the last save and ends all threads; raises what `check` does."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            self.close()
        except Exception as e:
            if error is None:
                raise
            # What ended the run is the news; that its last save failed too goes along.
            error.add_note(f"Besides: {e}")

    def _place(self, step):
        return os.path.join(self._directory, str(step))

    def _partial(self, step):
        return self._place(step) + ".tmp"

    def _finish(self, step, about, keep):
        """What a save still has to do once the state is copied; runs in a thread."""
        try:
            self._orbax.wait_until_finished()
            if self._is_main:
                partial = self._partial(step)
                manifest.write(partial, about)
                os.rename(partial, self._place(step))
                files.make_durable(self._directory)
                self._remove_old(keep)
        except Exception as e:
            self._failure = self._not_written(step, e)

    def _not_written(self, step, error):
        """The error to raise for one that stopped a save; what is half-written goes."""
        code = _OS_ERROR.search(str(error))
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif code:
            reason = os.strerror(int(code[1]))
        else:
            return error
        if self._is_main:  # As far as can be; writes still under way may leave something.
            shutil.rmtree(self._partial(step), ignore_errors=True)
        latest = self.latest_step()
        before = f"that of step {latest} is whole" if latest is not None else "there is none yet"
        failure = files.CannotWrite(
            f"{self._directory}: the checkpoint of step {step} cannot be written: {reason};"
            f" {before}, so free space and start again."
        )
        failure.__cause__ = error
        return failure

    def _remove_old(self, keep):
        steps = self.steps()
        manifests = self.manifests() if keep.best else {}
        for step in set(steps) - keep.choose(steps, self._known(manifests)):
            # Renamed first, so that half of one is not taken for a damaged one.
            old = self._place(step) + ".old"
            os.rename(self._place(step), old)
            shutil.rmtree(old)

    def _remove_remains(self):
        for name in sorted(os.listdir(self._directory)):
            match = REMAINS.fullmatch(name)
            if match:
                shutil.rmtree(os.path.join(self._directory, name))
                work = "removal" if match[2] == "old" else "save"
                self._say(f"removed {name}: the {work} of step {match[1]} had not been finished")

    def _verified(self, step):
        """Returns the manifest of a checkpoint whose files are those written; None: it has none."""
        reason = None
        if self._is_main:
            try:
                content = find_manifest(self._place(step))
                if content is None:
                    self._say(f"checkpoint {step} {NO_MANIFEST}")
                else:
                    manifest.check(self._place(step), content)
            except Damaged as e:
                reason = str(e)
        if _of_main([reason is not None])[0]:
            raise Damaged(reason or "process 0 says why")
        return find_manifest(self._place(step))

    def _read(self, step, abstract_state, verified):
        place = os.path.join(self._place(step), STATE)
        try:
            saved = self._orbax.metadata(place).item_metadata
            if saved is None:
                raise FileNotFoundError("its state is missing")
            _check_same_arrays(self._place(step), saved.tree, abstract_state)
            wanted = jax.tree.map(_placed, abstract_state)
            return self._orbax.restore(
                place,
                args=self._args.PyTreeRestore(wanted, restore_args=self._restore_args(wanted)),
            )
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            if not verified:
                raise Damaged(f"it cannot be read: {reason}") from e
            raise ConfigError(
                f"{self._place(step)}: the checkpoint is what was written, yet cannot be read:"
                f" {reason}"
            ) from e

    def _skip(self, step, reason):
        if not self._is_main:
            return
        line = f"checkpoint {step} is damaged and skipped: {reason}"
        if self._keep is not None:
            name, number = f"{ASIDE}{step}", 1
            while os.path.exists(os.path.join(self._directory, name)):
                number += 1
                name = f"{ASIDE}{step}-{number}"
            os.rename(self._place(step), os.path.join(self._directory, name))
            line += f"; it is kept as {name}"
        self._say(line)


def find_manifest(place: str) -> dict[str, Any] | None:
    """Returns the manifest of a checkpoint's folder; None for a checkpoint of before manifests.

    Raises:
      Damaged: if it should have one and has none, or has another than was written.
    """
    try:
        content = manifest.read(place)
    except FileNotFoundError:
        if os.path.isdir(os.path.join(place, "meta")):
            return None
        raise Damaged(f"{manifest.NAME} is missing") from None
    if str(content["step"]) != os.path.basename(place):
        raise Damaged(f"its manifest is that of step {content['step']}")
    return content


def _saved_with(manifests):
    return {step: content["metrics"] for step, content in manifests.items()}


def _of_main(numbers):
    """What process 0 has: processes that went on from different checkpoints would be no run."""
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    padded = np.resize(np.asarray(numbers or [0], np.int32), max(1, count))
    return [int(n) for n in multihost_utils.broadcast_one_to_all(padded)[:count]]


def _old_meta(place):
    try:
        with open(os.path.join(place, "meta", "metadata"), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise Damaged(f"its meta cannot be read: {e}") from e


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
