"""A run folder is one run: what may change from one start to the next, and what may not."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biggan_jax import config as config_lib
from biggan_jax.train import checkpoint, runs

# Keys that may change from one start of a run to the next: they move no weight.
FREE_KEYS = (
    "num_steps",
    "device_count",
    "parallel",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "best_metric",
    "best_is",
    "sample_every",
    "compilation_cache",
    "preset",
    "profile_steps",
    "grace_seconds",
    "heartbeat_seconds",
    "hang_dump_seconds",
    "hang_exit_seconds",
    "watch_every",
    "data.dir",
    "data.cache_mib",
)


def check_config(config: Mapping[str, Any], workdir: str, say: Callable[[str], None]) -> None:
    """Checks that what moves weights is what it was, if the folder holds a run.

    Args:
      config: resolved.
      workdir: the run folder.
      say: called with a line that names the keys changed that move none.

    Raises:
      ConfigError: naming the keys that differ, what they were and which of them matter.
    """
    if not os.path.exists(os.path.join(workdir, runs.CONFIG)):
        return
    changed = runs.changes(runs.read_config(workdir), config)
    free = _check_free(changed, f"--workdir: {workdir!r} holds a run")
    # And the file itself, which anybody may have edited, with what the checkpoints say.
    with checkpoint.Checkpoints(os.path.join(workdir, runs.CHECKPOINTS), keep=None) as saved:
        for step, content in saved.manifests().items():
            what = f"--workdir: the checkpoint of step {step:,} in {workdir!r} was made"
            _check_free(runs.changes_since(content["meta"], config), what)
    if free:
        say(f"changed since the last start, which moves no weight: {runs.changes_text(free)}")


def _check_free(changed, what):
    """Returns the changes, all of free keys; names all others, which move weights, in an error."""
    free = {
        k: v for k, v in changed.items() if k in FREE_KEYS or k.startswith(("sample.", "watch."))
    }
    moving = {k: v for k, v in changed.items() if k not in free}
    if moving:
        besides = f"; changed too, but free: {runs.changes_text(free)}" if free else ""
        raise config_lib.ConfigError(
            f"{what} with {runs.changes_text(moving)}; that moves weights, so use another folder"
            f" or the values of before{besides}."
        )
    return free


def check_classes(names: Sequence[str], workdir: str) -> None:
    """Checks that labels mean what they meant: in another order they were another data set.

    Raises:
      ConfigError: naming the first class that differs.
    """
    if not os.path.exists(os.path.join(workdir, runs.CONFIG)):
        return
    before = runs.class_names(workdir)
    if tuple(before) != tuple(names):
        changed = next(
            (i for i, pair in enumerate(zip(before, names, strict=False)) if len(set(pair)) > 1),
            min(len(before), len(names)),
        )
        raise config_lib.ConfigError(
            f"--workdir: {workdir!r} was trained on {len(before)} classes and the data now has"
            f" {len(names)}; they differ from class {changed} on."
        )
