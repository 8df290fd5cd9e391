"""What every loader is to the rest of the program: the images of each step, made ahead of need."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data import crops
from biggan_jax.data.prefetch import Buffers, Job, Prefetch
from biggan_jax.data.source import Source


class Batches(abc.ABC):
    """The columns of the global batches that one process needs.

    A step takes `num_batches` global batches of `batch_size` images. Row `b` of step `s` holds the
    positions `(s * num_batches + b) * batch_size` and on of an endless row of epochs: batches may
    straddle the border of two epochs, and of a data set smaller than a batch they hold every
    record once before any a second time, and so on. No record is left out at an epoch's end.

    Attributes:
      source: the data set.
      columns: which columns of a global batch are given.
      images: `[len(source), R, R, 3]` uint8 if the whole set is held in memory, else None.
      labels: `[len(source)]` int32, likewise.
      missing_guarantees: what this loader does not give, in words.
    """

    missing_guarantees: tuple[str, ...] = ()

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        num_batches: int,
        seed: int,
        crop: str = "center",
        columns: slice = slice(None),
    ):
        """Takes what all loaders need.

        Args:
          source: the data set.
          batch_size: images in one forward pass over all devices.
          num_batches: batches a step takes, `d_steps * accumulation`.
          seed: of order and crops; at least 0.
          crop: `data.crop` of the config.
          columns: neighbouring columns of the global batch, at least one; see
            `parallel.mesh.local_columns`.

        Raises:
          ConfigError: if the source is empty.
        """
        if len(source) == 0:
            raise ConfigError(f"data.name={source.name!r}: holds no images in {source.where}.")
        self.columns = range(batch_size)[columns]
        if len(self.columns) == 0 or self.columns.step != 1:
            raise ValueError(f"columns={columns}: must be neighbours within 0 to {batch_size}.")
        self.source = source
        self.images: np.ndarray | None = None
        self.labels: np.ndarray | None = None
        self._batch_size, self._num_batches = batch_size, num_batches
        self._seed, self._crop = seed, crop
        self._buffers = Buffers()

    @abc.abstractmethod
    def _jobs(self, first_step: int) -> Callable[[int], Job]:
        """Returns what makes the job of each step, asked for one after the other."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns what step `step` (counted from 0) trains on.

        Returns:
          `image` `[num_batches, len(columns), R, R, 3]` uint8 and `label` `[num_batches,
          len(columns)]` int32.

        Raises:
          ConfigError: if a record cannot be read as an image of one of the classes.
        """
        with self.prefetch(step, step + 1) as batches:
            return next(batches)[1]

    def prefetch(
        self,
        first_step: int,
        last_step: int,
        depth: int = 3,
        put: Callable[[dict[str, np.ndarray]], Any] | None = None,
    ) -> Prefetch:
        """Prepares batches ahead of use in threads of its own, from now on.

        Args:
          first_step: the first step wanted.
          last_step: where to end; as in `range`, this step is not included any more.
          depth: batches held ready or in the making.
          put: called with each batch, in one of the threads; what it returns is given instead. It
            may put the batch on devices, so that the copy too is done ahead of need.

        Returns:
          An iterator over (step, batch). It ends its threads when it is exhausted, closed, left as
          a context manager, or forgotten; an error of a thread is raised by `next`.
        """
        steps = range(first_step, last_step)
        return Prefetch(self._jobs(first_step), steps, depth=depth, put=put)

    def _positions(self, first_step, last_step):
        """Positions in the row of epochs, `[steps, num_batches, len(columns)]`."""
        rows = np.arange(first_step * self._num_batches, last_step * self._num_batches)
        positions = rows[:, None] * self._batch_size + np.arange(
            self.columns.start, self.columns.stop
        )
        return positions.reshape(last_step - first_step, self._num_batches, len(self.columns))

    def _crops(self, step):
        """Which square each image of a step shows, `[num_batches * len(columns), 3]`, or None."""
        if self._crop == "center":
            return None
        first = self._positions(step, step + 1)[0, :, 0].tolist()
        count = len(self.columns)
        return np.concatenate([crops.random_zoom(self._seed, start, count) for start in first])

    def _empty(self):
        """A batch to fill in: the arrays, and the same ones `[images, ...]`."""
        shape = (self._num_batches, len(self.columns))
        size = self.source.resolution
        images = self._buffers.take((*shape, size, size, 3))
        labels = np.empty(shape, np.int32)
        arrays = {"image": images, "label": labels}
        return arrays, images.reshape(-1, size, size, 3), labels.reshape(-1)
