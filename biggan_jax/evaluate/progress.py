"""How far an evaluation has come, on disk, so that one that was killed goes on.

The file's name is a hash of what is evaluated, so the same command finds it wherever it is given.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import extractors, images

EVERY = 60.0  # Seconds between two writes.

Arrays = dict[str, np.ndarray]


class Progress:
    """The file of one evaluation, in the cache folder."""

    def __init__(self, what: Mapping[str, Any]):
        """Takes all that the features depend on, as JSON has it."""
        text = json.dumps(what, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._path = os.path.join(extractors.cache_folder(), f"evaluation-{key}.npz")
        self._written = time.monotonic()

    def load(self) -> Arrays | None:
        """Returns what was written last; None if nothing was, or it cannot be read."""
        if not os.path.exists(self._path):
            return None
        try:
            return images.read_npz(self._path)
        except ConfigError:
            return None

    def offer(self, arrays: Callable[[], Arrays]) -> None:
        """Writes what `arrays` returns, if the last write is long enough ago."""
        if time.monotonic() - self._written < EVERY:
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays())
        files.write_whole(self._path, data.getvalue())
        self._written = time.monotonic()

    def done(self) -> None:
        """Takes the file away."""
        if os.path.exists(self._path):
            os.remove(self._path)
