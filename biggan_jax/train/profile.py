"""A profile of some steps of a run, for XProf, TensorBoard's profile page and Perfetto."""

import os
from collections.abc import Callable
from typing import Any, Self

import jax

FOLDER = "profile"
WARM_UP = 3  # Steps of a start before: the first compiles, and queues fill.


class Profile:
    """Records device and host activity of `steps` steps, once in each start of a run.

    It is written to `WORKDIR/profile/plugins/profile/TIME/`, by each process what it saw:
    `*.xplane.pb` for XProf and `*.trace.json.gz`, which Perfetto (ui.perfetto.dev) opens.
    """

    def __init__(self, steps: int, workdir: str, say: Callable[[str], None]):
        """Begins after `WARM_UP` steps; does nothing at all if `steps` is 0."""
        self._steps, self._say = steps, say
        self._folder = os.path.join(workdir, FOLDER)
        self._done = 0
        self._open = False

    def after_step(self, results: Any) -> None:
        """To be called after each step, with what it gave: the devices may still be at it."""
        self._done += 1
        if not self._steps:
            return
        if self._done == WARM_UP:
            jax.block_until_ready(results)
            jax.profiler.start_trace(self._folder)
            self._open = True
        elif self._open and self._done == WARM_UP + self._steps:
            jax.block_until_ready(results)
            self._close()
            self._say(f"the profile of {self._steps} steps is in {self._folder}")

    def _close(self):
        self._open = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:  # The run ends before, or an error ends it: what there is may tell why.
            self._close()
