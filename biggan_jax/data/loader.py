"""Batches as a pure function of (seed, step), by random access to the records.

Every epoch is a full permutation of the records, drawn anew (order.py): nothing is remembered from
step to step, so a run that resumes at step N needs only the number N, and gets batch N as fast as
batch 0. Nothing depends on how many processes share the work either: each takes its columns of the
same global batches.
"""

from collections.abc import Callable

import numpy as np

from biggan_jax.data.batches import Batches
from biggan_jax.data.order import SMALL, Order
from biggan_jax.data.prefetch import Job
from biggan_jax.data.source import Source, read

_AT_ONCE = 8192  # Positions whose records are computed together; singly they cost ten times more.


class Loader(Batches):
    """Gives the images of any step; see `Batches`."""

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        cache_mib: float,
        crop: str = "center",
        columns: slice = slice(None),
    ):
        """Reads the whole data set if it fits the cache.

        Args:
          source: the data set; it may be smaller than a batch, which then repeats records.
          batch_size: images in one forward pass over all devices.
          num_batches: batches a step takes, `d_steps * accumulation`.
          seed: of order and crops; at least 0.
          cache_mib: MiB that the data set's images may take to be held in memory.
          crop: `data.crop` of the config; with any other than "center" no image comes twice, so
            none is held in memory.
          columns: neighbouring columns of the global batch.

        Raises:
          ConfigError: if the source is empty, or a record to be cached cannot be read.
        """
        super().__init__(
            source,
            batch_size=batch_size,
            num_batches=num_batches,
            seed=seed,
            crop=crop,
            columns=columns,
        )
        self._order = Order(len(source), seed)
        # Of small sets whole epochs are computed, so there the columns of others count too.
        columns_computed = batch_size if len(source) <= SMALL else len(self.columns)
        self._steps_at_once = max(1, _AT_ONCE // (num_batches * columns_computed))
        self._computed: tuple[int, np.ndarray] | None = None
        if fits(source, cache_mib, crop):
            self.images, self.labels = read(source, np.arange(len(source)))

    def indices(self, step: int) -> np.ndarray:
        """Returns which records step `step` sees, `[num_batches, len(columns)]` int64."""
        group, place = divmod(step, self._steps_at_once)
        computed = self._computed
        if computed is None or computed[0] != group:
            first = group * self._steps_at_once
            positions = self._positions(first, first + self._steps_at_once)
            self._computed = computed = group, self._order(positions)
        return computed[1][place]

    def _jobs(self, first_step: int) -> Callable[[int], Job]:
        return self._job

    def _job(self, step):
        arrays, images, labels = self._empty()
        chosen = self.indices(step).reshape(-1)
        if self.images is None or self.labels is None:
            pieces = self.source.pieces(chosen, images, labels, self._crops(step))
            return Job(arrays, pieces)
        held = self.images, self.labels

        def look_up():
            for all_of_them, out in zip(held, (images, labels), strict=True):
                # In the default mode NumPy would go through a copy, lest an index be wrong.
                np.take(all_of_them, chosen, axis=0, out=out, mode="clip")

        return Job(arrays, [look_up])


def fits(source: Source, cache_mib: float, crop: str) -> bool:
    """Returns whether a data set's images are to be held in memory."""
    size = len(source) * source.resolution**2 * 3
    return crop == "center" and source.worth_caching and size <= cache_mib * 2**20
