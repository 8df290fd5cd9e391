"""What the readers of all kinds of TFDS files share."""

import abc

import numpy as np

from biggan_jax.data.crops import Crop
from biggan_jax.data.examples import Examples
from biggan_jax.data.shards import Shards
from biggan_jax.data.source import BARE_PIECE, Source


class ShardSource(Source):
    """Records of shards; how to get at their bytes is for `fill` and `label` to say.

    Attributes:
      shards: which record lies where.
      examples: what is in a record.
    """

    def __init__(
        self,
        name: str,
        split: str,
        where: str,
        class_names: tuple[str, ...],
        shards: Shards,
        examples: Examples,
    ):
        super().__init__(name, split, where, class_names, examples.recipe)
        self.shards, self.examples = shards, examples
        if examples.bare:
            self.piece = BARE_PIECE

    def __len__(self) -> int:
        return len(self.shards)

    @abc.abstractmethod
    def fill(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> None:
        """Reads a few records; see `Source.fill`."""

    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns image and label of record `i`; see `Source.get`."""
        image = np.empty((1, self.resolution, self.resolution, 3), np.uint8)
        label = np.empty(1, np.int32)
        self.fill(np.array([i]), image, label, np.array([crop]))
        return image[0], int(label[0])

    def name_of(self, file: int, place: int) -> str:
        """Returns what to call a record of a file in messages."""
        return f"{self.shards.name(file, place)} in {self.where}"

    def name_of_record(self, i: int) -> str:
        """Returns what to call record `i` in messages."""
        known = f"record {i} of data.name={self.name!r}, split {self.split!r}"
        return f"{self.name_of(*self.shards.locate(i))} ({known})"
