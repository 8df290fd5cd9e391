"""What `biggan prepare` reads: pictures as they are stored, encoded, with a name and a label.

A `Collection` lists all of them; a `Run` is a stretch of consecutive ones, small enough to be sent
to a process that works on it. Reading is left to the moment a picture is needed, so that a bad one
can be named and passed over.
"""

import abc
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from biggan_jax.config import ConfigError


class Run(Protocol):
    """Consecutive pictures of one split; to be pickled."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, int, bytes | ConfigError]]:
        """Gives name, label and the encoded picture, or why it cannot be read."""


class Collection(abc.ABC):
    """All pictures of a data set.

    Attributes:
      class_names: one for each label.
      splits: how many pictures each split has.
      identity: what tells this collection from another, for JSON.
    """

    class_names: Sequence[str]
    splits: Mapping[str, int]
    identity: Mapping[str, Any]

    @abc.abstractmethod
    def run(self, split: str, start: int, stop: int) -> Run:
        """Returns pictures `start` to `stop - 1` of a split."""


def read_file(path: str) -> bytes | ConfigError:
    """Returns what is in a file, or why that cannot be read."""
    try:
        with open(path, "rb") as f:
            return f.read()
    except FileNotFoundError:
        return ConfigError("there is no such file (any more)")
    except OSError as e:
        return ConfigError(f"it cannot be read: {e.strerror or e}")


@dataclasses.dataclass(frozen=True)
class FolderRun:
    """Files of a folder."""

    root: str
    names: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, int, bytes | ConfigError]]:
        """Names are relative to the folder."""
        for name, label in zip(self.names, self.labels, strict=True):
            yield name, label, read_file(os.path.join(self.root, name))


class Folder(Collection):
    """A folder with one sub-folder a class, sorted by name; the split is called train."""

    def __init__(self, root: str):
        """Lists the pictures.

        Raises:
          ConfigError: if there is no such folder, or it holds no sub-folders with pictures.
        """
        root = os.path.abspath(os.path.expanduser(root))
        self.class_names, self._names, self._labels = list_folder(root, f"folder:{root}")
        self._root = root
        self.splits = {"train": len(self._names)}
        self.identity = {"folder": root, "files": len(self._names)}

    def run(self, split: str, start: int, stop: int) -> FolderRun:
        """Returns pictures `start` to `stop - 1`."""
        labels = tuple(int(k) for k in self._labels[start:stop])
        return FolderRun(self._root, tuple(self._names[start:stop]), labels)


def list_folder(root: str, what: str) -> tuple[list[str], list[str], np.ndarray]:
    """Lists a folder with one sub-folder of pictures a class.

    Hidden entries and files whose ending belongs to no picture format are passed over.

    Args:
      root: the folder.
      what: how the user named it, for messages.

    Returns:
      Class names (the sub-folders, sorted), file names relative to `root` (sorted by class and
      name) and their labels `[N]` int32.

    Raises:
      ConfigError: if there is no such folder, it has no sub-folders, or one holds no pictures.
    """
    from PIL import Image

    endings = Image.registered_extensions()
    if not os.path.isdir(root):
        raise ConfigError(f"{what}: there is no such folder.")
    classes = sorted(e.name for e in _visible(root) if e.is_dir())
    if not classes:
        raise ConfigError(f"{what}: holds no sub-folders; there must be one for each class.")
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = sorted(
            e.name
            for e in _visible(os.path.join(root, name))
            if e.is_file() and os.path.splitext(e.name)[1].lower() in endings
        )
        if not files:
            raise ConfigError(
                f"{os.path.join(root, name)} holds no pictures, though every sub-folder of {what}"
                " is a class; remove it or fill it."
            )
        names += [os.path.join(name, file) for file in files]
        labels += [label] * len(files)
    return classes, names, np.array(labels, np.int32)


def _visible(directory):
    with os.scandir(directory) as entries:
        return [e for e in entries if not e.name.startswith(".")]


@dataclasses.dataclass(frozen=True)
class TfdsRun:
    """Records of a TFDS data set."""

    folder: str  # Of the data set, with its dataset_info.json.
    split: str
    start: int
    stop: int
    image_key: str
    label_key: str
    name_key: str | None
    random_access: bool

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[str, int, bytes | ConfigError]]:
        """Names are the data set's own where it has any, and numbers of records where not."""
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.folder)
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        read = self._random if self.random_access else self._in_order
        for i, record in zip(range(self.start, self.stop), read(builder, decoders), strict=True):
            number = f"{self.split}/{i}"
            if isinstance(record, ConfigError):
                yield number, 0, record
                continue
            name = record[self.name_key] if self.name_key else number
            name = name.decode() if isinstance(name, bytes) else str(name)
            yield name, int(record[self.label_key]), record[self.image_key]

    def _random(self, builder, decoders):
        records = builder.as_data_source(self.split, decoders=decoders)
        for i in range(self.start, self.stop):
            # ArrayRecord's readers raise whatever a broken file led them to.
            try:
                yield records[i]
            except Exception as e:
                reason = " ".join(str(e).split()) or type(e).__name__
                yield ConfigError(f"its record in {self.folder} cannot be read: {reason[:300]}")

    def _in_order(self, builder, decoders):
        import tensorflow_datasets as tfds

        from biggan_jax import host_tensorflow

        tf = host_tensorflow.load()
        records = builder.as_dataset(
            f"{self.split}[{self.start}:{self.stop}]",
            decoders=decoders,
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
        given = 0
        try:
            for record in records.as_numpy_iterator():
                yield record
                given += 1
        except tf.errors.OpError as e:  # What follows in this file cannot be found any more.
            reason = " ".join(e.message.split())
            for _ in range(given, len(self)):
                yield ConfigError(f"its file in {self.folder} cannot be read: {reason[:300]}")


class Tfds(Collection):
    """A data set that TFDS prepared, in whichever format."""

    def __init__(self, builder: Any, image_key: str, label_key: str):
        """Takes a builder whose data set is on disk, and which features are image and label."""
        import tensorflow_datasets as tfds

        info = builder.info
        self._folder = str(builder.data_path)
        texts = [k for k in ("file_name", "filename", "image/filename") if k in info.features]
        texts = [k for k in texts if isinstance(info.features[k], tfds.features.Text)]
        self._keys = image_key, label_key, texts[0] if texts else None
        formats = {f.value for f in info.available_file_formats()}
        self._random_access = "array_record" in formats
        self.class_names = list(info.features[label_key].names)
        self.splits = {name: split.num_examples for name, split in info.splits.items()}
        self.identity = {"tfds": info.full_name, "folder": self._folder}

    def run(self, split: str, start: int, stop: int) -> TfdsRun:
        """Returns pictures `start` to `stop - 1` of a split."""
        return TfdsRun(self._folder, split, start, stop, *self._keys, self._random_access)
