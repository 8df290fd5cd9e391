"""Batches made ahead of need by threads that stay.

Each thread takes piece after piece, of a few images each, across the borders of batches, so none
waits for the slowest piece of a batch. Whoever finds no piece left opens the next batch as soon as
there is room. A thread that plans, or what `threading` and `queue` write in Python (`Event`,
`Semaphore`, `Queue`), would compete for the interpreter's lock; locks and `SimpleQueue` do not.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

NAME = "biggan-prefetch"  # Of all threads.

# Decoders let go of the interpreter lock while they work; more threads would mostly wait for it.
_MAX_THREADS = 16


class Job(NamedTuple):
    """One batch in the making.

    Attributes:
      arrays: what is filled in.
      pieces: functions that fill in a part each, in any order, several at a time. The iterable
        itself is run through once, by one thread at a time.
    """

    arrays: dict[str, np.ndarray]
    pieces: Iterable[Callable[[], None]]


class Prefetch:
    """Iterator over (step, batch); the threads start at once.

    They end when it is exhausted, closed, left as a context manager, or forgotten. What they raise
    is raised by `next`, at the step it happened in.
    """

    def __init__(
        self,
        make: Callable[[int], Job],
        steps: range,
        *,
        depth: int = 3,
        put: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ):
        """Starts.

        Args:
          make: opens the batch of a step; called with one step after the other, by one thread at
            a time.
          steps: the steps wanted.
          depth: batches held ready or in the making.
          put: makes of the arrays what `next` shall give, for instance by putting them on devices;
            called by whichever thread completes a batch.
        """
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1.")
        # The threads must not know `self`: they would keep a forgotten iterator alive.
        self._shared = _Shared(make, steps, depth, put)
        self._threads = [
            threading.Thread(target=_work, args=(self._shared,), name=NAME, daemon=True)
            for _ in range(threads())
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._shared.stopped:
            raise StopIteration
        batch = self._shared.opened.get()
        if batch is None:
            self.close()
            raise StopIteration
        batch.done.acquire()
        if batch.error is not None:
            self.close()
            raise batch.error
        self._shared.room.put(None)
        return batch.step, batch.result

    def close(self) -> None:
        """Ends the threads, at the latest when their pieces are done, and waits for them.

        For the thread that iterates: another one that waits in `next` would go on waiting.
        """
        self._shared.stop()
        for thread in self._threads:
            thread.join()
        self._shared.forget()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Told to end but not waited for: this may run while the interpreter shuts down, when the
        # threads cannot end any more.
        if hasattr(self, "_shared"):
            self._shared.stop()


def run(job: Job) -> dict[str, np.ndarray]:
    """Does one job with all threads and returns its arrays; raises what a piece raises."""
    with Prefetch(lambda _: job, range(1)) as batches:
        return next(batches)[1]


def threads() -> int:
    """Returns how many threads work on pieces: one for each core this process may use, up to 16."""
    if hasattr(os, "sched_getaffinity"):  # Containers are given fewer than there are.
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(_MAX_THREADS, cores)


class Buffers:
    """Memory for batches, used again once nobody holds an array made of it.

    Fresh memory costs more than filling it: the system zeroes it page by page.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an uint8 array of any content; all shapes asked for must be of one size."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(int(np.prod(shape)), np.uint8)
        return np.asarray(_Lent(memory, self._free)).reshape(shape)


class _Lent:
    """Owns memory that goes back when the last array that looks into it is gone."""

    def __init__(self, memory, free):
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self):
        self._free.append(self._memory)


class _Shared:
    """What the iterator and its threads both know."""

    def __init__(self, make, steps, depth, put):
        self.stopped = False
        self.opened: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()  # None at the end.
        self.room: queue.SimpleQueue[None] = queue.SimpleQueue()  # An item for each batch.
        for _ in range(depth):
            self.room.put(None)
        self._make, self._steps, self._put = make, iter(steps), put
        self._lock = threading.Lock()
        self._batch: _Batch | None = None  # Whose pieces are handed out.
        self._pieces: Iterator[Callable[[], None]] = iter(())

    def stop(self):
        self.stopped = True
        self.room.put(None)  # Or a thread might wait for it for ever.

    def forget(self):
        """Lets go of what the batches were made from, which may be a buffer of half a GiB."""
        self._make = self._put = self._batch = None
        self._steps = self._pieces = iter(())

    def take(self):
        """The next piece to be made and its batch, or None if there is nothing left to do."""
        while True:
            with self._lock:
                batch = self._batch or self._open()
                if batch is None or self.stopped:
                    return None
                try:
                    if batch.arrays is None:
                        batch.arrays, pieces = self._make(batch.step)
                        self._pieces = iter(pieces)
                    piece = next(self._pieces, None)
                except BaseException as e:
                    batch.fail(e)
                    self._batch, self._steps = None, iter(())
                    return None
                if piece is not None:
                    batch.add()
                    return batch, piece
                self._batch = None
            batch.finish()
            del batch  # Or it would be held while this thread waits.

    def _open(self):
        step = next(self._steps, None)
        if step is None:
            self.opened.put(None)
            return None
        self.room.get()
        self._batch = _Batch(step, self._put)
        self.opened.put(self._batch)
        return self._batch


class _Batch:
    """A batch that pieces are being made of; done when all are, or one has failed."""

    def __init__(self, step, put):
        self.step = step
        self.arrays: dict[str, np.ndarray] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()  # Held until the batch is done.
        self.done.acquire()
        self._put = put
        self._lock = threading.Lock()
        self._left = 1  # For the handing out itself.

    def add(self):
        with self._lock:
            self._left += 1

    def finish(self):
        with self._lock:
            self._left -= 1
            if self._left or self.error is not None:
                return
        try:
            arrays, self.arrays = self.arrays, None
            self.result = self._put(arrays) if self._put else arrays
        except BaseException as e:
            self.error = e
        self.done.release()

    def fail(self, error):
        with self._lock:
            if self.error is not None:
                return
            self.error = error
        self.done.release()


def _work(shared):
    while (task := shared.take()) is not None:
        batch, piece = task
        try:
            piece()
        except BaseException as e:
            batch.fail(e)
        else:
            batch.finish()
        del task, batch, piece  # Or it would hold them while it waits.
