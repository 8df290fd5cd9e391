"""What every data set is to the rest of the program: numbered records, in any order."""

import abc
from collections.abc import Sequence

import numpy as np

from biggan_jax.data.preprocess import Recipe

LABEL_SAMPLE = 50_000


class Source(abc.ABC):
    """Random access to labelled images; safe to read from several threads.

    Attributes:
      name: `data.name` of the config.
      split: `data.split` of the config.
      where: the folder that holds the data, for messages.
      class_names: one for each label, in the order of the labels.
      recipe: how pictures become images.
    """

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
    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Returns record `i`: image `[R, R, 3]` uint8, and its label.

        Raises:
          ConfigError: if the record cannot be read as an image.
        """

    @abc.abstractmethod
    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""

    @abc.abstractmethod
    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32, or None where that takes too long."""

    def label_sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (record numbers, their labels): of all, or of 50,000 evenly spaced ones."""
        if self._label_sample is None:
            labels = self.labels()
            if labels is None:
                chosen = evenly_spaced(len(self), LABEL_SAMPLE)
                self._label_sample = chosen, self._read_labels(chosen)
            else:
                self._label_sample = np.arange(len(self)), labels
        return self._label_sample

    def _read_labels(self, records):
        return np.array([self.label(int(i)) for i in records], np.int32)


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Returns at most `count` of the numbers 0..length - 1, evenly spaced, `[count]` int64."""
    if length <= count:
        return np.arange(length)
    return np.arange(count) * length // count
