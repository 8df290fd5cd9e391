"""Parts of a data set: some classes (`data.classes`), a share of the records (`data.fraction`)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data.crops import Crop
from biggan_jax.data.source import Source


class Subset(Source):
    """Some records of another source, perhaps with other labels. Keeps 8 bytes a record of its own.

    Attributes:
      whole: the other source.
    """

    def __init__(
        self,
        whole: Source,
        records: np.ndarray,
        class_names: Sequence[str],
        labels: np.ndarray | None,
    ):
        """Takes the records `[N]` of `whole`, and their labels `[N]` int32 if they are known."""
        super().__init__(whole.name, whole.split, whole.where, class_names, whole.recipe)
        self.whole = whole
        self.sequential, self.worth_caching = whole.sequential, whole.worth_caching
        self.count_all_up_to = whole.count_all_up_to
        self._records, self._labels = records, labels

    def __len__(self) -> int:
        return len(self._records)

    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns image and label of record `i`; see `Source.get`."""
        image, label = self.whole.get(int(self._records[i]), crop)
        return image, label if self._labels is None else int(self._labels[i])

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        if self._labels is None:
            return self.whole.label(int(self._records[i]))
        return int(self._labels[i])

    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32, or None where that takes too long."""
        return super().labels() if self._labels is None else self._labels

    def pieces(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> Iterator[Callable[[], None]]:
        """Cuts the reading of many records into functions; see `Source.pieces`."""
        if self._labels is not None:
            labels[...] = self._labels[records]
            labels = np.empty_like(labels)  # What the other source calls them is of no use.
        return self.whole.pieces(self._records[records], images, labels, crops)

    def read_labels(self, records: np.ndarray) -> np.ndarray:
        """Returns the labels of records, `[N]` int32."""
        if self._labels is None:
            return self.whole.read_labels(self._records[records])
        return self._labels[records]


def some_classes(source: Source, classes: tuple[int, ...]) -> Subset:
    """Keeps some classes of a data set, numbered anew in the order they are named.

    Finding their records takes every label: of a TFDS data set as large as ImageNet, minutes.

    Args:
      source: the data set.
      classes: the numbers that the classes have in it.

    Raises:
      ConfigError: if one is no class or named twice, or none of them has images.
    """
    for i, number in enumerate(classes):
        if type(number) is not int or not 0 <= number < source.num_classes:
            raise ConfigError(
                f"data.classes={classes}: {number!r} is no class of"
                f" data.name={source.name!r}, which has 0 to {source.num_classes - 1}."
            )
        if number in classes[:i]:
            raise ConfigError(f"data.classes={classes}: {number} is named twice.")
    labels = source.labels()
    if labels is None:
        labels = source.read_labels(np.arange(len(source)))
    records = np.flatnonzero(np.isin(labels, classes))
    if not len(records):
        raise ConfigError(
            f"data.classes={classes}: split {source.split!r} of data.name={source.name!r} has"
            " no images of these classes."
        )
    names = [source.class_names[number] for number in classes]
    new = np.array([classes.index(k) for k in labels[records]], np.int32)
    return Subset(source, records, names, new)


def fraction(source: Source, share: float, seed: int) -> Subset:
    """Keeps the first `round(share * len)` records, at least one, of a permutation of all.

    So a smaller share of the same seed lies in a larger one. Drawing takes 0.1 us and for a moment
    16 bytes a record of the whole. Not by `Order`: of small sets its permutations of two seeds may
    have three times as many records in common at the front as chance would give.

    Args:
      source: the data set.
      share: above 0, at most 1.
      seed: of the permutation.
    """
    count = max(1, round(share * len(source)))
    # Sorted by raw numbers, which NumPy promises to keep, unlike how it makes permutations of them.
    drawn = np.argsort(np.random.Philox(key=seed).random_raw(len(source)), kind="stable")
    records = np.sort(drawn[:count])  # In the order of the files: neighbours stay neighbours.
    return Subset(source, records, source.class_names, None)
