"""Random access to a TFDS split that is stored as ArrayRecord files, without TensorFlow."""

import os
import threading
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data.examples import Examples
from biggan_jax.data.preprocess import Crop
from biggan_jax.data.shards import Shards
from biggan_jax.data.source import Source, with_crops

# One record a read: what else lies near it belongs to other batches.
_OPTIONS: dict[str, Any] = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}
_OTHER_FILES = 200  # Besides the shards, a process has libraries, logs and checkpoints open.


class ArrayRecordSource(Source):
    """Records of ArrayRecord shards; each file is opened when it is first needed."""

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
        self._shards, self._examples = shards, examples
        self._readers: list[Any] = [None] * len(shards.files)
        self._opening = threading.Lock()
        _allow_open_files(len(shards.files) + _OTHER_FILES)

    def __len__(self) -> int:
        return len(self._shards)

    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns image and label of record `i`; see `Source.get`."""
        image = np.empty((1, self.resolution, self.resolution, 3), np.uint8)
        label = np.empty(1, np.int32)
        self.fill(np.array([i]), image, label, np.array([crop]))
        return image[0], int(label[0])

    def fill(
        self,
        records: np.ndarray,
        images: np.ndarray,
        labels: np.ndarray,
        crops: np.ndarray | None = None,
    ) -> None:
        """Reads a few records; see `Source.fill`.

        Raises:
          ConfigError: naming the file and the place in it, if a file or record is missing or
            damaged, or see `Examples.fill`.
        """
        files, places = (found.tolist() for found in self._shards.locate(records))
        read, decode = self._read, self._examples.fill
        for k, (i, crop) in enumerate(with_crops(records, crops)):
            record = read(i, files[k], places[k])
            labels[k] = decode(i, record, images[k], crop, self._where)

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        file, place = self._place(i)
        return self._examples.label(i, self._read(i, file, place), self._where)

    def _read(self, i, file, place):
        # The reader raises whatever its C++ met (RuntimeError, IndexError, ...).
        try:
            return (self._readers[file] or self._open(file)).read([place])[0]
        except Exception as e:
            reason = " ".join(str(e).split()).rstrip(".") or type(e).__name__
            if not os.path.exists(self._shards.files[file]):
                reason = "there is no such file (any more)"
            raise ConfigError(f"{self._where(i)} cannot be read: {reason}.") from e

    def _open(self, file):
        from array_record.python import array_record_module

        with self._opening:
            if self._readers[file] is None:
                path = self._shards.files[file]
                self._readers[file] = array_record_module.ArrayRecordReader(path, **_OPTIONS)
            return self._readers[file]

    def _place(self, i):
        return (int(found[0]) for found in self._shards.locate(np.array([i])))

    def _where(self, i):
        file, place = self._place(i)
        known = f"record {i} of data.name={self.name!r}, split {self.split!r}"
        return f"{self._shards.name(file, place)} in {self.where} ({known})"


def _allow_open_files(count):
    """Raises this process's limit: 1,024 is a common one, and how many files ImageNet has."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ConfigError(
            f"data.name: its {count - _OTHER_FILES} files cannot all be open, since this machine"
            f" allows a process {hard} (ulimit -Hn); it must allow {count}."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
