"""Batches as a pure function of (seed, step).

Every epoch is a full permutation of the records, drawn anew, computed by Grain's index shuffle:
nothing is remembered from step to step, so a run that resumes at step N needs only
the number N, and gets batch N as fast as batch 0.
"""

import functools
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data.source import Source

# Pillow lets go of the interpreter lock while it decodes; more threads than this mostly wait.
_MAX_THREADS = 16

_SMALL = 4096  # Records up to which an epoch's order is computed as a whole.
_GRAIN_MINIMUM = 2**16


class Loader:
    """Gives the images of any step, `num_batches` batches of `batch_size`.

    Attributes:
      source: the data set.
      images: `[len(source), R, R, 3]` uint8 if the whole set is held in memory, else None.
      labels: `[len(source)]` int32, likewise.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        cache_mib: float,
    ):
        """Decodes the whole data set if it fits the cache.

        Args:
          source: the data set; it may be smaller than a batch, which then repeats records.
          batch_size: images in one forward pass over all devices.
          num_batches: batches a step takes, `d_steps * accumulation`.
          seed: of the order; at least 0.
          cache_mib: MiB that the decoded data set may take to be held in memory.

        Raises:
          ConfigError: if the source is empty, or a record to be cached cannot be read.
        """
        if len(source) == 0:
            raise ConfigError(f"data.name={source.name!r}: holds no images in {source.where}.")
        self.source = source
        self._shape = (num_batches, batch_size)
        self._order = _Order(len(source), seed)
        self.images: np.ndarray | None = None
        self.labels: np.ndarray | None = None
        if len(source) * source.resolution**2 * 3 <= cache_mib * 2**20:
            self.images, self.labels = read(source, np.arange(len(source)))

    def indices(self, step: int) -> np.ndarray:
        """Returns which records step `step` sees, `[num_batches, batch_size]` int64."""
        count = self._shape[0] * self._shape[1]
        return self._order(step * count, (step + 1) * count).reshape(self._shape)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns what step `step` (counted from 0) trains on.

        Returns:
          `image` `[num_batches, batch_size, R, R, 3]` uint8 and `label` `[num_batches,
          batch_size]` int32.

        Raises:
          ConfigError: if a record cannot be read as an image.
        """
        chosen = self.indices(step)
        if self.images is not None and self.labels is not None:
            return {"image": self.images[chosen], "label": self.labels[chosen]}
        images, labels = read(self.source, chosen.reshape(-1))
        return {
            "image": images.reshape(*chosen.shape, *images.shape[1:]),
            "label": labels.reshape(chosen.shape),
        }

    def prefetch(self, first_step: int, last_step: int, depth: int = 2) -> "Prefetch":
        """Prepares batches ahead of use in a thread of its own, from now on.

        Args:
          first_step: the first step wanted.
          last_step: where to end; as in `range`, this step is not included any more.
          depth: batches held ready or in the making.

        Returns:
          An iterator over (step, batch). It ends its thread when it is exhausted, closed, left as
          a context manager, or forgotten; an error of the thread is raised by `next`.
        """
        return Prefetch(self, first_step, last_step, depth)


class Prefetch:
    """Iterator over (step, batch) with a thread that works ahead; see `Loader.prefetch`."""

    def __init__(self, loader: Loader, first_step: int, last_step: int, depth: int):
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1.")
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._free = threading.Semaphore(depth)
        self._stop = threading.Event()
        # The thread must not know `self`: it would keep a forgotten iterator alive.
        self._thread = threading.Thread(
            target=_work,
            args=(loader, range(first_step, last_step), self._ready, self._free, self._stop),
            name="biggan-prefetch",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        return self

    def __next__(self) -> tuple[int, dict[str, np.ndarray]]:
        if self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        self._free.release()
        if isinstance(item, BaseException):
            self.close()
            raise item
        if item is None:
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """Ends the thread, at the latest when the batch it works on is done, and waits for it."""
        self._stop.set()
        self._free.release()
        self._thread.join()

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
        # thread cannot end any more.
        if hasattr(self, "_thread"):
            self._stop.set()
            self._free.release()


def read(source: Source, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Decodes records with a small pool of threads.

    Args:
      source: the data set.
      records: `[N]`, record numbers.

    Returns:
      Images `[N, R, R, 3]` uint8 and labels `[N]` int32, in the order asked for.

    Raises:
      ConfigError: if a record cannot be read as an image.
    """
    images = np.empty((len(records), source.resolution, source.resolution, 3), np.uint8)
    labels = np.empty(len(records), np.int32)

    def fill(place):
        images[place], labels[place] = source[int(records[place])]

    # A pool lives as long as one batch: starting it costs far less than decoding, and there is
    # nothing to shut down.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(len(records))):
            pass
    return images, labels


class _Order:
    """Which record stands at each position of the endless row of shuffled epochs."""

    def __init__(self, length, seed):
        import grain

        self._length = length
        # Grain permutes 2^16 numbers at least and skips those that are too large: 18 us for a
        # number below 1,437, 3 ms for one below 10. Few records are therefore put in the order
        # that they have within a permutation of 2^16, one epoch at a time.
        self._small = length <= _SMALL
        numbers = grain.MapDataset.range(_GRAIN_MINIMUM if self._small else length)
        shuffled = numbers.seed(seed).shuffle().repeat()
        self._shuffled = shuffled

        def epoch(number):
            first = number * _GRAIN_MINIMUM
            return np.argsort([shuffled[i] for i in range(first, first + length)])

        self._epoch = functools.lru_cache(maxsize=4)(epoch)

    def __call__(self, start, stop):
        if not self._small:
            return np.array([self._shuffled[i] for i in range(start, stop)], np.int64)
        first, last = start // self._length, (stop - 1) // self._length
        epochs = np.concatenate([self._epoch(i) for i in range(first, last + 1)])
        return epochs[start - first * self._length : stop - first * self._length]


def _work(loader, steps, ready, free, stop):
    try:
        for step in steps:
            free.acquire()
            if stop.is_set():
                return
            ready.put((step, loader.batch(step)))
        ready.put(None)
    except BaseException as e:
        ready.put(e)
