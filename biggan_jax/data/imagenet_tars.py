"""ImageNet's two tar files as TFDS's `imagenet2012` builder wants them, read where they lie.

The training tar holds a tar a class, the validation tar pictures. Names, labels and their order are
those of the TFDS builder (its files are read for them); what is ours is that a picture is found by
its place in the tar, so nothing is unpacked, many processes read at once, and work that was stopped
goes on without reading again what was done.
"""

import array
import dataclasses
import os
import tarfile
from collections.abc import Iterator

import numpy as np
from etils import epath

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data.pictures import Collection

TRAIN = "ILSVRC2012_img_train.tar"
VALIDATION = "ILSVRC2012_img_val.tar"


@dataclasses.dataclass(frozen=True)
class TarRun:
    """Pictures at known places of one tar file."""

    tar: str
    names: tuple[str, ...]
    labels: tuple[int, ...]
    places: tuple[tuple[int, int], ...]  # Offset and size in bytes.

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, int, bytes | ConfigError]]:
        """Names are those of the files in the tar."""
        with _open(self.tar) as f:  # It may lie in a bucket.
            for name, label, (offset, size) in zip(
                self.names, self.labels, self.places, strict=True
            ):
                picture: bytes | ConfigError
                try:
                    f.seek(offset)
                    picture = f.read(size)
                except OSError as e:
                    picture = ConfigError(f"{self.tar} cannot be read there: {e.strerror or e}")
                if isinstance(picture, bytes) and len(picture) < size:
                    picture = ConfigError(f"{self.tar} ends within it")
                yield name, label, picture


class ImageNetTars(Collection):
    """Splits train and validation, as `imagenet2012` of TFDS has them."""

    def __init__(self, manual_dir: str):
        """Finds every picture; of ImageNet that reads 1.3 million headers.

        Raises:
          ConfigError: if a tar is missing, is no whole tar file or not laid out as ImageNet's.
        """
        host_tensorflow.load()  # TFDS reads the validation labels with it.
        import tensorflow_datasets as tfds
        from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

        names = tfds.features.ClassLabel(names_file=imagenet_common.label_names_file())
        self.class_names = names.names
        train, validation = (os.path.join(manual_dir, n) for n in (TRAIN, VALIDATION))
        for path in (train, validation):
            if not epath.Path(path).exists():
                raise ConfigError(
                    f"--manual-dir={manual_dir}: holds no {os.path.basename(path)}; both {TRAIN}"
                    f" and {VALIDATION} are needed, as image-net.org gives them to those who"
                    " register."
                )
        with _speaking_of(validation):
            labels = imagenet_common.get_validation_labels(validation)
        self._tables = {
            "train": _Table(train, _train_members(train, names)),
            "validation": _Table(validation, _validation_members(validation, labels, names)),
        }
        self.splits = {split: len(table.labels) for split, table in self._tables.items()}
        self.identity = {
            "tars": {n: _size(os.path.join(manual_dir, n)) for n in (TRAIN, VALIDATION)}
        }

    def run(self, split: str, start: int, stop: int) -> TarRun:
        """Returns pictures `start` to `stop - 1` of a split."""
        table = self._tables[split]
        return TarRun(
            table.tar,
            tuple(table.names[start:stop]),
            tuple(int(k) for k in table.labels[start:stop]),
            tuple((int(a), int(b)) for a, b in table.places[start:stop]),
        )


class _Table:
    """Where each picture of a tar lies; compact, for there are 1.3 million."""

    def __init__(self, tar, members):
        self.tar = tar
        self.names: list[str] = []
        labels, places = array.array("i"), array.array("q")
        for name, label, offset, size in members:
            self.names.append(name)
            labels.append(label)
            places.extend((offset, size))
        self.labels = np.array(labels, np.int32)
        self.places = np.array(places, np.int64).reshape(-1, 2)
        if not self.names:
            raise ConfigError(f"{tar}: holds no pictures.")


def _open(path):
    return epath.Path(path).open("rb")


def _size(path):
    return epath.Path(path).stat().length


def _files(file, path):
    """The members of the tar that begins where `file` stands."""
    size = _size(path)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # Else every header stays in memory.
            if not member.isfile():
                continue
            if member.offset_data + member.size > size:
                raise ConfigError(
                    f"{path}: is cut off within {member.name}; fetch or copy it again."
                )
            yield member


def _train_members(path, names):
    from tqdm import tqdm

    with _speaking_of(path), _open(path) as outer, _open(path) as inner:
        archives = tqdm(
            _files(outer, path), "looking", len(names.names), unit="class", mininterval=1
        )
        for archive in archives:
            wnid = os.path.basename(archive.name).removesuffix(".tar")
            if wnid not in names.names:
                raise ConfigError(
                    f"{path}: holds {archive.name!r}, which is not the tar of one of ImageNet's"
                    " 1,000 classes."
                )
            label = names.str2int(wnid)
            inner.seek(archive.offset_data)
            for member in _files(inner, path):
                yield member.name, label, member.offset_data, member.size


def _validation_members(path, labels, names):
    with _speaking_of(path), _open(path) as f:
        for member in _files(f, path):
            if member.name not in labels:
                raise ConfigError(f"{path}: there is no label for {member.name!r}.")
            label = names.str2int(labels[member.name])
            yield member.name, label, member.offset_data, member.size


class _speaking_of:
    """Turns what tarfile raises into one sentence."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, tarfile.TarError | OSError | EOFError):
            raise ConfigError(
                f"{self.path}: is not a whole tar file: {str(error).rstrip('.')}."
            ) from error
