"""The files of a TFDS split: which record lies in which file, and at which place."""

import bisect
import os
from collections.abc import Iterable

import numpy as np


class Shards:
    """Records that follow one another through parts of files.

    Attributes:
      files: the paths.
      skip: `[files]`, records of each file that do not belong, at its beginning.
      start: `[files + 1]`, number of the first record of each file; at the end, how many there are.
    """

    def __init__(self, parts: Iterable[tuple[str, int, int]]):
        """Takes (path, records to skip, records to take) of each file."""
        taken = [(path, skip, take) for path, skip, take in parts if take]
        self.files = [path for path, _, _ in taken]
        self.skip = np.array([skip for _, skip, _ in taken], np.int64)
        self.start = np.cumsum([0, *(take for _, _, take in taken)])
        self._skip, self._start = self.skip.tolist(), self.start.tolist()

    def __len__(self) -> int:
        return self._start[-1]

    def locate(self, i: int) -> tuple[int, int]:
        """Returns the number of the file that holds record `i`, and the place in that file.

        One record at a time and without NumPy, each of whose calls may let go of the interpreter's
        lock: while other threads read, waiting for it takes longer than all the rest.

        Raises:
          IndexError: if there is no such record.
        """
        if not 0 <= i < self._start[-1]:
            raise IndexError(f"record {i} must lie in 0 to {len(self) - 1}.")
        file = bisect.bisect_right(self._start, i) - 1
        return file, i - self._start[file] + self._skip[file]

    def cut(self, first: int, last: int) -> "Shards":
        """Returns the records from `first` to `last`, exclusive."""
        parts = []
        for i, path in enumerate(self.files):
            a, b = np.clip([first, last], self.start[i], self.start[i + 1]) - self.start[i]
            parts.append((path, int(self.skip[i] + a), int(b - a)))
        return Shards(parts)

    def name(self, file: int, place: int) -> str:
        """Returns what to call a record in messages: the file's name and the place in it."""
        return f"record {place} of {os.path.basename(self.files[file])}"
