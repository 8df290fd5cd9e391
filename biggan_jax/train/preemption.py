"""SIGTERM and SIGINT: the machine is being taken away, or someone wants it back.

The first signal asks: the loop saves and leaves with code 75. It has so many seconds of grace;
then, or at a second signal, the process leaves as it stands, and the last checkpoint counts. While
there is nothing to save (start-up, compilation), it leaves at once; while it still looks for the
other processes, after some seconds, as they may have been asked before it and be gone.

Python runs signal handlers between two of its own instructions, and a compilation is one of them
for minutes. So a thread listens where the interpreter notes signals at once.

In a run of many processes a signal to any one is one to all, and all of them must stop at the same
place of the program, or they wait for each other in different collectives. The loop passes places
where it may stop, the same in all processes, and counts them (`tick`). The process that is asked
tells all others; each then says how many places it has passed and passes no further one before it
has heard all. They stop at the first place that none has passed yet.
"""

import os
import select
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

from biggan_jax.parallel import distributed

EXIT_CODE = 75  # EX_TEMPFAIL: saved on request, start me again.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_JOIN_SECONDS = 5.0  # Less than launchers leave between SIGTERM and SIGKILL.
_POLL = 0.5  # Seconds between two looks at whether another process was asked.


class Store(Protocol):
    """What processes tell each other; `parallel/distributed.py` has one."""

    def put(self, key: str, value: str) -> None:
        """Writes a key."""

    def get(self, key: str) -> str | None:
        """Returns its value if there is one yet."""


class Requested(Exception):
    """Raised in the loop at the place where all processes stop."""


class Preempted(SystemExit):
    """The run has been saved on request; leaves with code 75."""

    def __init__(self, step: int):
        """Takes the step that is saved."""
        super().__init__(EXIT_CODE)
        self.step = step


class Preemption:
    """Context manager that listens; to be entered once a process.

    Only a main thread can listen. In another one signals stay the affair of whoever started it.

    Attributes:
      requested: the name of the signal that came, else None.
    """

    def __init__(self, grace_seconds: float):
        """Takes the seconds from the first signal to the end."""
        self.requested: str | None = None
        self._grace = grace_seconds
        self._listens = threading.current_thread() is threading.main_thread()
        self._store: Store | None = None
        self._me, self._count = 0, 1
        self._joined = False
        self._lock = threading.Lock()  # Held while all agree: the loop stands still at a place.
        self._ticks = 0
        self._busy = False  # Whether there is something to save.
        self._stop_at: int | None = None
        self._end = threading.Event()
        self._wake = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if self._listens:
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, lambda *_: None)
            self._start(self._listen, "biggan-signals")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._wake.set()
        if self._listens:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._fd_before)
            os.write(self._write, b"\0")
        for thread in self._threads:
            thread.join()
        if self._listens:
            os.close(self._read)
            os.close(self._write)

    def join(self, store: Store | None, me: int, count: int) -> None:
        """Says who the others are; a signal that came before has waited for this.

        Args:
          store: seen by all processes; None for a single one.
          me: the index of this process.
          count: how many there are.
        """
        with self._lock:
            self._store, self._me, self._count = store, me, count
            self._joined = True
            asked = self.requested
        if store is not None:
            self._start(self._hear, "biggan-peers")
        elif asked:
            self._agree()

    def something_to_save(self) -> None:
        """From here on a signal is left to the loop, which `tick` tells; before, it ends all."""
        with self._lock:
            self._busy = True

    def tick(self) -> None:
        """Passes a place where the loop may stop; all processes pass the same ones.

        Raises:
          Requested: if this is the place to stop at.
        """
        with self._lock:
            self._ticks += 1
            if self._stop_at is not None and self._ticks >= self._stop_at:
                raise Requested

    def _start(self, function, name):
        thread = threading.Thread(target=function, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _listen(self):
        """Hears the signals of this process."""
        deadline = None
        while not self._end.is_set():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], left)
            if not ready and not self._joined:
                self._leave("the other processes are not there")
            if not ready:
                self._leave(f"the save was not done within {self._grace:g} seconds")
            for number in os.read(self._read, 64):
                if number not in _SIGNALS:
                    continue
                if deadline is not None:
                    self._leave("a second signal came")
                with self._lock:
                    self.requested = signal.Signals(number).name
                    alone = self._joined and self._store is None
                    grace = self._grace if self._joined else min(self._grace, _JOIN_SECONDS)
                deadline = time.monotonic() + grace
                if alone:
                    self._agree()
                self._wake.set()

    def _hear(self):
        """Hears of the signals of all processes, this one's among them."""
        assert self._store is not None
        try:
            while not self._end.is_set():
                if self.requested:
                    self._store.put("asked", f"{self.requested} to process {self._me}")
                if said := self._store.get("asked"):
                    break
                self._wake.wait(_POLL)
            else:
                return
            self.requested = self.requested or said
            deadline = time.monotonic() + self._grace
            self._agree()
        except Exception as e:
            # The store is gone, and process 0 with it; what ends this process is not for here.
            if self.requested:
                self._leave(f"the other processes cannot be told ({type(e).__name__})")
            return
        if not self._end.wait(max(0.0, deadline - time.monotonic())):
            self._leave(f"the save was not done within {self._grace:g} seconds")

    def _agree(self):
        """Sets the place to stop at; where no process has anything to save, leaves at once."""
        with self._lock:
            passed, busy = [self._ticks], self._busy
            if self._store is not None:
                self._store.put(f"at/{self._me}", f"{self._ticks} {int(busy)}")
                for i in range(self._count):
                    ticks, its_busy = self._wait_for(f"at/{i}").split()
                    passed.append(int(ticks))
                    busy |= its_busy == "1"
            if not busy:
                self._leave("there is nothing new to save")
            self._stop_at = max(passed) + 1
        if self._me == 0:
            _say(f"{self.requested}: saving, then leaving with code {EXIT_CODE} ...")

    def _wait_for(self, key):
        assert self._store is not None
        deadline = time.monotonic() + self._grace
        while (value := self._store.get(key)) is None:
            if time.monotonic() > deadline:
                self._leave(f"a process did not answer within {self._grace:g} seconds")
            time.sleep(0.02)
        return value

    def _leave(self, why):
        _say(f"{self.requested}: {why}; leaving with code {EXIT_CODE}, the last checkpoint counts")
        distributed.leave(EXIT_CODE)
        sys.stdout.flush()
        os._exit(EXIT_CODE)


def _say(line):
    # Written in one piece: the main thread may be in the middle of a line of its own.
    os.write(sys.stderr.fileno(), f"\n{line}\n".encode())
