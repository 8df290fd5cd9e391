"""How long a start takes, by phase: what passes until a machine that is paid for computes."""

import time
from collections.abc import Mapping


class Phases:
    """Seconds of the phases of a start, one after the other."""

    def __init__(self, started: float | None = None):
        """Begins the first phase.

        Args:
          started: when it began, of `time.perf_counter`; now, if not given.
        """
        self._mark = time.perf_counter() if started is None else started
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Ends the phase `name`; the next one begins."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._mark
        self._mark = now

    def seconds(self) -> Mapping[str, float]:
        """Returns the seconds of each phase that has ended, in their order."""
        return dict(self._seconds)

    def text(self) -> str:
        """Returns one line: `start to first step 31.2 s: imports 4.0 s, data 1.1 s, ...`."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"start to first step {sum(self._seconds.values()):.1f} s: {parts}"
