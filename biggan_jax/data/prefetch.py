"""Batches made ahead of need by threads that stay.

One thread plans: it opens the next batch as soon as there is room and cuts it into pieces of a few
images. The others take piece after piece, across the borders of batches, so none waits for the
slowest piece of a batch while another batch is known.
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
        itself is run through once, by one thread.
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
          make: opens the batch of a step; called with one step after the other, by one thread.
          steps: the steps wanted.
          depth: batches held ready or in the making.
          put: makes of the arrays what `next` shall give, for instance by putting them on devices;
            called by whichever thread completes a batch.
        """
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1.")
        # The threads must not know `self`: they would keep a forgotten iterator alive.
        shared = self._shared = _Shared(depth, threads())
        calls: list[tuple[Callable[..., None], tuple]]
        calls = [(_plan, (make, steps, put, shared)), *[(_work, (shared,))] * shared.workers]
        self._threads = [
            threading.Thread(target=function, args=arguments, name=NAME, daemon=True)
            for function, arguments in calls
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        if self._shared.stop.is_set():
            raise StopIteration
        batch = self._shared.opened.get()
        if batch is None:
            self.close()
            raise StopIteration
        batch.done.wait()
        if batch.error is not None:
            self.close()
            raise batch.error
        self._shared.free.release()
        return batch.step, batch.result

    def close(self) -> None:
        """Ends the threads, at the latest when their pieces are done, and waits for them."""
        self._shared.end()
        for thread in self._threads:
            thread.join()

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
            self._shared.end()


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

    def __init__(self, depth, workers):
        self.workers = workers
        self.opened: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self.free = threading.Semaphore(depth)
        self.stop = threading.Event()
        # Bounded, because a job may find what is to be done by reading files.
        self.pieces: queue.Queue[tuple[_Batch, Callable[[], None]] | None]
        self.pieces = queue.Queue(4 * workers)

    def end(self):
        self.stop.set()
        self.free.release()


class _Batch:
    """A batch that pieces are being made of; done when all are, or one has failed."""

    def __init__(self, step, put):
        self.step = step
        self.arrays: dict[str, np.ndarray] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._put = put
        self._lock = threading.Lock()
        self._left = 1  # For the planning itself.

    def add(self):
        with self._lock:
            self._left += 1

    def finish(self):
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if not last or self.error is not None:
            return
        try:
            arrays, self.arrays = self.arrays, None
            self.result = self._put(arrays) if self._put else arrays
        except BaseException as e:
            self.error = e
        self.done.set()

    def fail(self, error):
        with self._lock:
            self.error = self.error or error
        self.done.set()


def _plan(make, steps, put, shared):
    try:
        for step in steps:
            shared.free.acquire()
            if shared.stop.is_set():
                return
            if not _open(make, _Batch(step, put), shared):
                return
        shared.opened.put(None)
    finally:
        for _ in range(shared.workers):
            shared.pieces.put(None)


def _open(make, batch, shared):
    """Hands out a batch's pieces; returns whether to go on."""
    shared.opened.put(batch)
    try:
        batch.arrays, pieces = make(batch.step)
        for piece in pieces:
            batch.add()
            shared.pieces.put((batch, piece))
            if shared.stop.is_set():
                return False
    except BaseException as e:
        batch.fail(e)
        return False
    batch.finish()
    return True


def _work(shared):
    while (task := shared.pieces.get()) is not None:
        batch, piece = task
        if not shared.stop.is_set():
            try:
                piece()
            except BaseException as e:
                batch.fail(e)
            else:
                batch.finish()
        del task, batch, piece  # Or it would hold them while it waits.
