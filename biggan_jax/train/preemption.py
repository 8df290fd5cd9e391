"""SIGTERM and SIGINT: the machine is being taken away, or someone wants it back.

The first signal asks: the loop saves and leaves with code 75. It has so many seconds of grace;
then, or at a second signal, the process leaves as it stands, and the last checkpoint counts. While
there is nothing to save (start-up, compilation), it leaves at once.

Python runs signal handlers between two of its own instructions, and a compilation is one of them
for minutes. So a thread listens where the interpreter notes signals at once.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

EXIT_CODE = 75  # EX_TEMPFAIL: saved on request, start me again.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(SystemExit):
    """The run has been saved on request; leaves with code 75."""

    def __init__(self, step: int):
        super().__init__(EXIT_CODE)
        self.step = step


class Preemption:
    """Context manager that listens; to be entered in the main thread, once a process.

    Attributes:
      requested: the name of the signal that came, else None.
    """

    def __init__(self, grace_seconds: float):
        """Takes the seconds from the first signal to the end."""
        self.requested: str | None = None
        self._grace = grace_seconds
        self._busy = threading.Event()  # Set while there is something to save.
        self._stop = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, lambda *_: None)
        self._thread = threading.Thread(target=self._listen, name="biggan-signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._stop.set()
        os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    @contextlib.contextmanager
    def something_to_save(self) -> Iterator[None]:
        """Within, a signal is left to the caller, who looks at `requested`; outside it ends all."""
        with self._lock:
            if self.requested:
                self._leave("there is nothing new to save")
            self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()

    def _listen(self):
        deadline = None
        while not self._stop.is_set():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left)
            if not ready:
                self._leave(f"the save was not done within {self._grace:g} seconds")
            for number in os.read(self._read, 64):
                if number not in _SIGNALS:
                    continue
                if self.requested:
                    self._leave("a second signal came")
                with self._lock:
                    self.requested = signal.Signals(number).name
                    deadline = time.monotonic() + self._grace
                    if not self._busy.is_set():
                        self._leave("there is nothing new to save")
                _say(f"{self.requested}: saving, then leaving with code {EXIT_CODE} ...")

    def _leave(self, why):
        _say(f"{self.requested}: {why}; leaving with code {EXIT_CODE}, the last checkpoint counts")
        sys.stdout.flush()
        os._exit(EXIT_CODE)


def _say(line):
    # Written in one piece: the main thread may be in the middle of a line of its own.
    os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
