"""Random access to a TFDS split that is stored as ArrayRecord files, without TensorFlow."""

import os
import threading
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data.examples import Examples
from biggan_jax.data.shard_source import ShardSource
from biggan_jax.data.shards import Shards
from biggan_jax.data.source import with_crops

# One record a read: what else lies near it belongs to other batches.
_OPTIONS: dict[str, Any] = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}
_OTHER_FILES = 200  # Besides the shards, a process has libraries, logs and checkpoints open.


class ArrayRecordSource(ShardSource):
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
        super().__init__(name, split, where, class_names, shards, examples)
        self._readers: list[Any] = [None] * len(shards.files)
        self._opening = threading.Lock()
        _allow_open_files(len(shards.files) + _OTHER_FILES)

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
        locate, read, decode = self.shards.locate, self._read, self.examples.fill
        # Bytes and not arrays: each view of NumPy's takes a hundredth of the time of an image.
        image, size = images.data.cast("B"), images[0].size
        found = []
        for i, crop in with_crops(records, crops):
            record = read(i, *locate(i))
            found.append(decode(i, record, image[:size], crop, self.name_of_record))
            image = image[size:]
        labels[:] = found

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        record = self._read(i, *self.shards.locate(i))
        return self.examples.label(i, record, self.name_of_record)

    def _read(self, i, file, place):
        # The reader raises whatever its C++ met (RuntimeError, IndexError, ...).
        try:
            reader = self._readers[file]
            if reader is None:
                reader = self._open(file)
            return reader.read([place])[0]
        except Exception as e:
            reason = " ".join(str(e).split()).rstrip(".") or type(e).__name__
            if not os.path.exists(self.shards.files[file]):
                reason = "there is no such file (any more)"
            raise ConfigError(f"{self.name_of_record(i)} cannot be read: {reason}.") from e

    def _open(self, file):
        from array_record.python import array_record_module

        with self._opening:
            if self._readers[file] is None:
                path = self.shards.files[file]
                self._readers[file] = array_record_module.ArrayRecordReader(path, **_OPTIONS)
            return self._readers[file]


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
