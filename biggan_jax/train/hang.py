"""A run that stands still: all stacks first, then an end, so that the launcher can start it again.

The watch is a thread, so it needs the interpreter lock for a moment. Code that never lets go of
the lock would stop it too; Python's own timer, a thread without need of the lock, stands behind it
and ends the process a little later.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, Self

from biggan_jax.config import ConfigError

EXIT_CODE = 70  # EX_SOFTWARE: the run stood still; start it again.


class HangWatch:
    """Context manager that counts the seconds since something was finished.

    It counts from the first `beat` on, as the first step compiles for as long as it takes.
    """

    def __init__(
        self,
        dump_seconds: float,
        exit_seconds: float,
        say: Callable[[str], Any],
        path: str | os.PathLike[str],
    ):
        """Starts nothing yet.

        Args:
          dump_seconds: without a beat, until the stacks of all threads go to stderr and to `path`.
          exit_seconds: without a beat, until the process ends with code 70.
          say: takes lines for the user; called from the thread.
          path: the file for the stacks, of this process alone; made at need.

        Raises:
          ConfigError: unless the end comes after the stacks.
        """
        if not 0 < dump_seconds < exit_seconds:
            raise ConfigError(
                f"hang_dump_seconds={dump_seconds:g}: must be below"
                f" hang_exit_seconds={exit_seconds:g}."
            )
        self._dump_seconds, self._exit_seconds = dump_seconds, exit_seconds
        self._say, self._path = say, os.fspath(path)
        self._backstop = exit_seconds + max(1.0, exit_seconds / 10)
        self._changed = threading.Condition()
        self._last: tuple[str, float, float] | None = None  # What, monotonic and wall time.
        self._pauses = 0
        self._dumped = False
        self._over = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="biggan-hang", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            faulthandler.cancel_dump_traceback_later()
            self._changed.notify()
        self._thread.join()

    def beat(self, what: str) -> None:
        """Says that something was finished, such as "step 25"; the count begins anew."""
        with self._changed:
            self._last = (what, time.monotonic(), time.time())
            self._dumped = False
            self._arm()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within, nothing is counted: for what may take any time. The count then begins anew."""
        with self._changed:
            self._pauses += 1
            self._arm()
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                if self._last is not None:
                    self._last = (self._last[0], time.monotonic(), time.time())
                self._arm()

    def _arm(self):
        if self._last is None or self._pauses or self._over:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(self._backstop, exit=True, file=2)
        self._changed.notify()

    def _watch(self):
        while True:
            with self._changed:
                if self._over:
                    return
                if self._last is None or self._pauses:
                    self._changed.wait()
                    continue
                what, then, clock = self._last
                limit = self._exit_seconds if self._dumped else self._dump_seconds
                left = then + limit - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
                end, self._dumped = self._dumped, True
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(clock))
            last = f"nothing was finished for {limit:g} seconds; the last was {what}, at {since}"
            if end:
                self._say(
                    f"{last}; the stacks are in {self._path}; leaving with code {EXIT_CODE}, start"
                    " again to go on"
                )
                os._exit(EXIT_CODE)
            self._dump(last)

    def _dump(self, last):
        self._say(f"{last}; the stacks of all threads follow, and go to {self._path}")
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as f:
            f.write(f"{last}\n")
            f.flush()
            _stacks(f)
        with contextlib.suppress(OSError), os.fdopen(os.dup(2), "w") as stderr:
            _stacks(stderr)


def _stacks(file: IO[str]) -> None:
    faulthandler.dump_traceback(file, all_threads=True)
    file.write("\n")
