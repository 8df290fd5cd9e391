"""Which data set a config means, and what gives its batches."""

import os
from typing import Any

import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.data import pictures, preprocess, subsets, tfds_source
from biggan_jax.data.batches import Batches
from biggan_jax.data.crops import Crop
from biggan_jax.data.fake import FakeSource
from biggan_jax.data.loader import Loader, fits
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.source import Source, with_crops
from biggan_jax.data.tfrecord import StreamLoader, TfrecordSource


def open_source(config: Any) -> Source:
    """Opens the data set a resolved config names, preparing it first where TFDS has to.

    Args:
      config: as `config.resolve` gives it; `data` and `model.resolution` are read, of fake data
        `model.num_classes` too.

    Returns:
      The records of `data.split`; of these `data.classes` are taken first, then `data.fraction`.

    Raises:
      ConfigError: if there is no such data set, split, folder or class, it holds no labelled
        images, or it cannot be prepared.
    """
    data = config.data
    directory = os.path.expanduser(data.dir) if data.dir else None
    recipe = Recipe(config.model.resolution, data.resize, data.decode)
    source: Source
    if data.name == "folder":
        source = FolderSource(directory, data.split, recipe)
    elif data.name == "fake":
        source = FakeSource(config.model.num_classes, data.split, recipe)
    else:
        source = tfds_source.open_split(data.name, directory, data.split, recipe)
    if data.classes:
        source = subsets.some_classes(source, tuple(data.classes))
    if data.fraction < 1:
        source = subsets.fraction(source, data.fraction, data.fraction_seed)
    return source


def make_loader(source: Source, config: Any, columns: slice = slice(None)) -> Batches:
    """Returns what gives the batches of each step.

    Args:
      source: as `open_source` gives it.
      config: the same; `seed`, the sizes of a step and `data` are read.
      columns: which neighbouring columns of the global batch this process needs.

    Raises:
      ConfigError: if the source is empty, cannot be read, or is a part of a data set that can only
        be read as a whole.
    """
    common: dict[str, Any] = {
        "batch_size": config_lib.micro_batch_size(config),
        "num_batches": config.d_steps * config.accumulation,
        "seed": config.seed,
        "crop": config.data.crop,
        "columns": columns,
    }
    cache_mib = config.data.cache_mib
    if not source.sequential or fits(source, cache_mib, config.data.crop):
        return Loader(source, cache_mib=cache_mib, **common)
    if isinstance(source, TfrecordSource):
        return StreamLoader(source, **common)
    raise ConfigError(
        f"data.name={source.name!r}: data.classes and data.fraction need random access, but the"
        f" copy in {source.where} is stored as tfrecord and its part is not held in memory"
        " (data.cache_mib, data.crop='center'); prepare it as array_record."
    )


class FolderSource(Source):
    """A folder with one sub-folder a class, each holding pictures in any format Pillow reads.

    Classes are the sub-folders sorted by name, records the pictures sorted by class and name.
    Hidden entries and files whose ending belongs to no picture format are passed over.
    """

    def __init__(self, directory: str | None, split: str, recipe: Recipe):
        if directory is None:
            raise ConfigError(
                "data.dir is not set: data.name='folder' needs the folder that holds one"
                " sub-folder of pictures a class."
            )
        if split != "train":
            raise ConfigError(
                f"data.split={split!r}: a folder has no splits; leave it at 'train' and set"
                " data.dir to the folder of the images meant."
            )
        classes, names, self._labels = pictures.list_folder(directory, f"data.dir={directory!r}")
        super().__init__("folder", split, directory, classes, recipe)
        self._paths = [os.path.join(directory, name) for name in names]
        for path in self._paths:
            # Found here because it costs little; else training would stop there, hours in.
            if os.path.getsize(path) == 0:
                raise ConfigError(f"{path} is not a picture: it is an empty file.")

    def __len__(self) -> int:
        return len(self._paths)

    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns image and label of record `i`; see `Source.get`."""
        path = self._paths[i]
        return preprocess.decode(path, path, self.recipe, crop), int(self._labels[i])

    def fill(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> None:
        """Reads a few records, in this thread, without a copy; see `Source.fill`."""
        for place, (i, crop) in enumerate(with_crops(records, crops)):
            path = self._paths[i]
            preprocess.decode(path, path, self.recipe, crop, out=images[place])
            labels[place] = self._labels[i]

    def label(self, i: int) -> int:
        """Returns the number of the sub-folder record `i` lies in."""
        return int(self._labels[i])

    def labels(self) -> np.ndarray:
        """Returns the labels of all records, `[len]` int32."""
        return self._labels
