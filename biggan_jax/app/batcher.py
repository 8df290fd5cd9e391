"""One thread that computes: what many ask for at once is computed together.

A tile of a model takes as long for one image as for all of its places (`sample/tiles.py`), so rows
of different requests share one where their key is the same: the model and its BN statistics. The
images do not depend on what stands beside them.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

Compute = Callable[[Any, np.ndarray, np.ndarray], np.ndarray]


class Busy(RuntimeError):
    """More is being worked on than may be at once; to be asked again later."""

    def __init__(self):
        super().__init__("busy: too many requests at once; ask again in a moment.")


class Gate:
    """Lets requests in until there are too many of them, or of their bytes."""

    def __init__(self, most: int, most_bytes: int):
        """Takes the bounds; a request that is alone may be of any size."""
        self._most, self._most_bytes = most, most_bytes
        self._lock = threading.Lock()
        self._inside, self._bytes = 0, 0

    @contextlib.contextmanager
    def admitted(self, size: int) -> Iterator[None]:
        """Counts a request of `size` bytes while the block lasts.

        Raises:
          Busy: if it would be too many.
        """
        with self._lock:
            full = self._inside >= self._most or self._bytes + size > self._most_bytes
            if self._inside and full:
                raise Busy
            self._inside += 1
            self._bytes += size
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                self._bytes -= size


class Made(NamedTuple):
    """Images uint8 [N, H, W, 3], and the seconds of computing that fell to them."""

    images: np.ndarray
    seconds: float


class _Job:
    def __init__(self, key, z, mix):
        self.key, self.z, self.mix = key, z, mix
        self.future: Future = Future()
        self.parts: list[np.ndarray] = []
        self.done, self.seconds = 0, 0.0


class Batcher:
    """Computes on a thread of its own, rows of different requests together."""

    def __init__(self, compute: Compute, most: Callable[[Any], int], together: bool = True):
        """Starts the thread.

        Args:
          compute: makes uint8 [N, H, W, 3] of a key, latents [N, D] and classes [N, K].
          most: rows of a key that are computed at once.
          together: whether rows of different requests are; only measurements want them apart.
        """
        self._compute, self._most, self._together = compute, most, together
        self._waiting: collections.deque = collections.deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="images", daemon=True)
        self._thread.start()

    def images(self, key: Hashable, z: np.ndarray, mix: np.ndarray) -> Made:
        """Returns the images of latents [N, D] and classes [N, K]; waits for them.

        Raises:
          Exception: what `compute` raises.
        """
        return self._put(_Job(key, z, mix))

    def call(self, work: Callable[[], Any]) -> Any:
        """Returns what `work` returns, called on the thread in its turn."""
        return self._put(work, Future())

    def close(self) -> None:
        """Ends the thread after what it is at; what waits is refused."""
        with self._news:
            self._closed = True
            self._news.notify()
        self._thread.join()

    def _put(self, job, future=None):
        future = future or job.future
        with self._news:
            if self._closed:
                raise Busy
            self._waiting.append((job, future))
            self._news.notify()
        return future.result()

    def _work(self):
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                job, future = self._waiting.popleft()
                jobs = [job, *self._beside(job)] if isinstance(job, _Job) else []
            if not jobs:
                _settle(future, job)
                continue
            self._step(jobs)
            # At the end of the line, so that a long walk does not keep others from a picture.
            with self._news:
                self._waiting.extend((j, j.future) for j in jobs if not j.future.done())
        for _, future in self._waiting:
            future.set_exception(Busy())

    def _beside(self, job):
        """Takes jobs out of the line that fill up the places beside a job's next rows."""
        free = self._most(job.key) - (len(job.z) - job.done)
        if not self._together or free <= 0:
            return []
        taken = []
        for other in [j for j, _ in self._waiting if isinstance(j, _Job) and j.key == job.key]:
            if free <= 0:
                break
            taken.append(other)
            free -= len(other.z) - other.done
        # By identity: jobs hold arrays, which do not compare to a yes or no.
        chosen = {id(j) for j in taken}
        self._waiting = collections.deque(p for p in self._waiting if id(p[0]) not in chosen)
        return taken

    def _step(self, jobs):
        """Computes the next rows of jobs of one key."""
        free, parts = self._most(jobs[0].key), []
        for job in jobs:
            count = min(free, len(job.z) - job.done)
            parts.append(slice(job.done, job.done + count))
            free -= count
        begun = time.perf_counter()
        try:
            z = np.concatenate([j.z[p] for j, p in zip(jobs, parts, strict=True)])
            mix = np.concatenate([j.mix[p] for j, p in zip(jobs, parts, strict=True)])
            images = self._compute(jobs[0].key, z, mix)
        except Exception as e:
            for job in jobs:
                job.future.set_exception(e)
            return
        seconds = (time.perf_counter() - begun) / len(z)
        start = 0
        for job, part in zip(jobs, parts, strict=True):
            count = part.stop - part.start
            job.parts.append(images[start : start + count])
            job.done += count
            job.seconds += seconds * count
            start += count
            if job.done == len(job.z):
                job.future.set_result(Made(np.concatenate(job.parts), job.seconds))


def _settle(future, work):
    try:
        future.set_result(work())
    except Exception as e:
        future.set_exception(e)
