"""Which data set a config means: a folder, or any image data set TFDS can prepare, or a part."""

import os
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.source import Source
from biggan_jax.data.tfds_source import TfdsSource


def open_source(config: Any) -> Source:
    """Opens the data set a resolved config names, preparing it first where TFDS has to.

    Args:
      config: as `config.resolve` gives it; `data.name`, `data.dir`, `data.split`, `data.classes`,
        `data.resize`, `data.decode` and `model.resolution` are read.

    Raises:
      ConfigError: if there is no such data set, split, folder or class, it holds no labelled
        images, or it cannot be prepared.
    """
    data = config.data
    directory = os.path.expanduser(data.dir) if data.dir else None
    recipe = preprocess.Recipe(config.model.resolution, data.resize, data.decode)
    source: Source
    if data.name == "folder":
        source = FolderSource(directory, data.split, recipe)
    else:
        source = TfdsSource(data.name, directory, data.split, recipe)
    return ClassesSource(source, tuple(data.classes)) if data.classes else source


class FolderSource(Source):
    """A folder with one sub-folder a class, each holding pictures in any format Pillow reads.

    Classes are the sub-folders sorted by name, records the pictures sorted by class and name.
    Hidden entries and files whose ending belongs to no picture format are passed over.
    """

    def __init__(self, directory: str | None, split: str, recipe: preprocess.Recipe):
        if directory is None:
            raise ConfigError(
                "data.dir is not set: data.name='folder' needs the folder that holds one"
                " sub-folder of pictures a class."
            )
        if not os.path.isdir(directory):
            raise ConfigError(f"data.dir={directory!r}: there is no such folder.")
        if split != "train":
            raise ConfigError(
                f"data.split={split!r}: a folder has no splits; leave it at 'train' and set"
                " data.dir to the folder of the images meant."
            )
        classes = sorted(e.name for e in _visible(directory) if e.is_dir())
        if not classes:
            raise ConfigError(
                f"data.dir={directory!r}: holds no sub-folders; there must be one for each class."
            )
        super().__init__("folder", split, directory, classes, recipe)
        self._paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            paths = _pictures(os.path.join(directory, name))
            self._paths += paths
            labels += [label] * len(paths)
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        path = self._paths[i]
        return preprocess.decode(path, path, self.recipe), int(self._labels[i])

    def label(self, i: int) -> int:
        """Returns the number of the sub-folder record `i` lies in."""
        return int(self._labels[i])

    def labels(self) -> np.ndarray:
        """Returns the labels of all records, `[len]` int32."""
        return self._labels


class ClassesSource(Source):
    """Some classes of a data set, numbered anew in the order they are named.

    Finding their records takes every label: of a TFDS data set as large as ImageNet, minutes.
    """

    def __init__(self, source: Source, classes: tuple[int, ...]):
        """Takes the numbers that the classes have in `source`.

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
        names = [source.class_names[number] for number in classes]
        super().__init__(source.name, source.split, source.where, names, source.recipe)
        self._source = source
        labels = source.labels()
        if labels is None:
            labels = source._read_labels(range(len(source)))
        self._records = np.flatnonzero(np.isin(labels, classes))
        self._labels = np.array([classes.index(k) for k in labels[self._records]], np.int32)
        if not len(self._records):
            raise ConfigError(
                f"data.classes={classes}: split {source.split!r} of data.name={source.name!r} has"
                " no images of these classes."
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        image, _ = self._source[int(self._records[i])]
        return image, int(self._labels[i])

    def label(self, i: int) -> int:
        """Returns the new label of record `i`."""
        return int(self._labels[i])

    def labels(self) -> np.ndarray:
        """Returns the new labels of all records, `[len]` int32."""
        return self._labels


def _visible(directory):
    with os.scandir(directory) as entries:
        return [e for e in entries if not e.name.startswith(".")]


def _pictures(directory):
    from PIL import Image

    endings = Image.registered_extensions()
    files = [
        e
        for e in _visible(directory)
        if e.is_file() and os.path.splitext(e.name)[1].lower() in endings
    ]
    if not files:
        raise ConfigError(
            f"{directory} holds no pictures, though every sub-folder of data.dir is a class;"
            " remove it or fill it."
        )
    for entry in files:
        # Found here because it costs little; else training would stop at such a file, hours in.
        if entry.stat().st_size == 0:
            raise ConfigError(f"{entry.path} is not a picture: it is an empty file.")
    return sorted(e.path for e in files)
