"""What every data set is to the rest of the program: numbered records, in any order."""

import abc
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from biggan_jax.data import prefetch
from biggan_jax.data.crops import CENTRED, Crop
from biggan_jax.data.preprocess import Recipe

LABEL_SAMPLE = 50_000
# Records handled in one go. Handing out a piece takes 20 to 40 us and a bare image 60 to 120; large
# pieces of encoded pictures, which take ten times that, would leave threads idle at the end.
BARE_PIECE, _PIECE = 64, 16


class Source(abc.ABC):
    """Random access to labelled images; safe to read from several threads.

    Attributes:
      name: `data.name` of the config.
      split: `data.split` of the config.
      where: the folder that holds the data, for messages.
      class_names: one for each label, in the order of the labels.
      recipe: how pictures become images.
      sequential: whether records can only be read one after the other at a useful speed.
      worth_caching: whether an image costs more to make than to look up.
      piece: how many images at most one thread makes in one go.
      count_all_up_to: records of which `labels` reads every label.
      sampling: which records `sample` takes, in words.
    """

    sequential = False
    worth_caching = True
    piece = _PIECE
    count_all_up_to = 200_000  # Reading every label of more would delay the start by minutes.
    sampling = "evenly spaced"

    def __init__(
        self, name: str, split: str, where: str, class_names: Sequence[str], recipe: Recipe
    ):
        self.name = name
        self.split = split
        self.where = where
        self.class_names = tuple(class_names)
        self.recipe = recipe
        self._label_sample: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def resolution(self) -> int:
        """Pixels of a side of every image."""
        return self.recipe.resolution

    @property
    def num_classes(self) -> int:
        """How many classes the data set knows, whether or not this split has images of each."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns record `i`: image `[R, R, 3]` uint8, cut out as `crop` says, and its label.

        Raises:
          ConfigError: if the record cannot be read as an image of one of the classes.
        """

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Returns record `i` with the centred crop; see `get`."""
        return self.get(i, CENTRED)

    @abc.abstractmethod
    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""

    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32, or None where that takes too long."""
        if len(self) > self.count_all_up_to:
            return None
        return self.read_labels(np.arange(len(self)))

    def fill(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> None:
        """Reads a few records, in this thread.

        Args:
          records: `[N]`, record numbers.
          images: `[N, R, R, 3]` uint8, filled in.
          labels: `[N]` int32, filled in.
          crops: `[N, 3]`, a `crops.Crop` each, or None for the centred one.

        Raises:
          ConfigError: see `get`.
        """
        for place, (i, crop) in enumerate(with_crops(records, crops)):
            images[place], labels[place] = self.get(i, crop)

    def pieces(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> Iterator[Callable[[], None]]:
        """Cuts the reading of many records into functions for `prefetch.Job`; see `fill`."""
        for part in parts(len(records), self.piece):
            yield functools.partial(
                self.fill,
                records[part],
                images[part],
                labels[part],
                None if crops is None else crops[part],
            )

    def sample(self, count: int) -> np.ndarray:
        """Returns at most `count` record numbers from all over the data set, in order."""
        return evenly_spaced(len(self), count)

    def label_sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (record numbers, their labels): of all, or of 50,000 from all over it."""
        if self._label_sample is None:
            labels = self.labels()
            if labels is None:
                chosen = self.sample(LABEL_SAMPLE)
                self._label_sample = chosen, self.read_labels(chosen)
            else:
                self._label_sample = np.arange(len(self)), labels
        return self._label_sample

    def read_labels(self, records: np.ndarray) -> np.ndarray:
        """Returns the labels of records, `[N]` int32, read by several threads."""
        labels = np.empty(len(records), np.int32)

        def some(part):
            labels[part] = [self.label(i) for i in records[part].tolist()]

        calls = (functools.partial(some, part) for part in parts(len(records), BARE_PIECE))
        prefetch.run(prefetch.Job({}, calls))
        return labels


def read(source: Source, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads records with several threads.

    Args:
      source: the data set.
      records: `[N]`, record numbers.

    Returns:
      Images `[N, R, R, 3]` uint8 and labels `[N]` int32, in the order asked for.

    Raises:
      ConfigError: if a record cannot be read as an image of one of the classes.
    """
    images = np.empty((len(records), source.resolution, source.resolution, 3), np.uint8)
    labels = np.empty(len(records), np.int32)
    prefetch.run(prefetch.Job({}, source.pieces(records, images, labels)))
    return images, labels


def with_crops(records: np.ndarray, crops: np.ndarray | None) -> Iterator[tuple[int, Crop]]:
    """Returns (number, crop) pairs of `[N]` records and `[N, 3]` crops or None."""
    if crops is None:
        return zip(records.tolist(), itertools.repeat(CENTRED), strict=False)
    return zip(records.tolist(), map(tuple, crops.tolist()), strict=True)


def parts(count: int, at_most: int) -> Iterator[slice]:
    """Cuts `count` images into pieces small enough that all threads have work."""
    size = min(at_most, max(1, count // prefetch.threads()))
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Returns at most `count` of the numbers 0..length - 1, evenly spaced, `[count]` int64."""
    if length <= count:
        return np.arange(length)
    return np.arange(count) * length // count
