"""What can be scored: images that a model makes, of a data set, in a folder or in a `.npz`."""

import functools
import hashlib
import os
import zipfile
from typing import Any, Protocol

import ml_collections
import numpy as np

from biggan_jax import config as config_lib
from biggan_jax import sampling
from biggan_jax.config import ConfigError
from biggan_jax.data import datasets
from biggan_jax.data import source as source_lib
from biggan_jax.sample import sheets
from biggan_jax.train import runs

ROUNDING = "round(127.5 (x + 1)), clipped to 0..255"
_LABELS = 0x1ABE15  # Beside the seed, so that labels and latents have nothing in common.


class Images(Protocol):
    """Numbered images of one size."""

    @property
    def labels(self) -> Any:
        """The class of each image, [N], or None where nothing says."""

    def __len__(self) -> int: ...

    def read(self, index: np.ndarray) -> Any:
        """Returns images `index`, consecutive numbers, as [N, H, W, 3] uint8."""

    def about(self) -> dict[str, Any]:
        """Returns what names these images, for JSON."""


class Generated:
    """Images of a model, each a function of (seed, place).

    Attributes:
      labels: [num], drawn uniformly from all classes: what was asked of the model.
    """

    labels: Any

    def __init__(
        self,
        model: sampling.Sampling,
        num: int,
        truncation: float | None = None,
        mode: str | None = None,
        seed: int = 0,
    ):
        """Makes nothing yet.

        Raises:
          ConfigError: if truncation, mode or seed cannot be.
        """
        model.check(truncation, mode, seed)
        self._make = functools.partial(model.sample, truncation=truncation, seed=seed, mode=mode)
        self._about = {
            "model": model.name,
            "step": model.step,
            "num": num,
            "seed": seed,
            "labels": "uniform over all classes, drawn",
            **model.protocol(truncation, mode),
            "rounding": ROUNDING,
        }
        classes = model.config.model.num_classes
        self.labels = np.random.default_rng([_LABELS, seed]).integers(classes, size=num)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: np.ndarray) -> np.ndarray:
        """See `Images`; the first time for a truncation makes BN statistics for it.

        Raises:
          ConfigError: if they hold NaN.
        """
        try:
            return self._make(self.labels[index], first=int(index[0]))
        except sheets.HoldsNaN as e:
            raise ConfigError(f"{self._about['model']}: the generator makes NaN.") from e

    def about(self) -> dict[str, Any]:
        """See `Images`."""
        return self._about


class FromSource:
    """Images of a data set."""

    def __init__(self, source: source_lib.Source):
        """Takes an open data set."""
        self._source = source
        self.resolution = source.resolution

    def __len__(self) -> int:
        return len(self._source)

    @property
    def labels(self) -> Any:
        """See `Images`."""
        return self._source.labels()

    def read(self, index: np.ndarray) -> np.ndarray:
        """See `Images`."""
        return source_lib.read(self._source, index)[0]

    def about(self) -> dict[str, Any]:
        """See `Images`."""
        recipe = self._source.recipe
        return {
            "data": self._source.name,
            "split": self._source.split,
            "num": len(self),
            "resolution": recipe.resolution,
            "resize": recipe.resize,
        }


class FromArray:
    """Images of a `.npz`, as the ADM sampling scripts write them: `arr_0` uint8 [N, H, W, 3].

    Attributes:
      labels: `arr_1` where there are as many as images, or None.
    """

    labels: Any

    def __init__(self, path: str):
        """Reads the file.

        Raises:
          ConfigError: if it is none or holds no such array.
        """
        arrays = read_npz(path)
        images = arrays.get("arr_0")
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ConfigError(f"{path!r} holds no images: arr_0 must be uint8 [N, H, W, 3].")
        self._images, self._path = images, path
        labels = arrays.get("arr_1")
        fits = labels is not None and labels.dtype.kind in "iu" and labels.shape == images.shape[:1]
        self.labels = labels if fits else None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: np.ndarray) -> np.ndarray:
        """See `Images`."""
        return self._images[index]

    def about(self) -> dict[str, Any]:
        """See `Images`."""
        return {
            "file": os.path.basename(self._path),
            "sha256": sha256(self._images),
            "num": len(self),
            "size": list(self._images.shape[1:3]),
        }


class FromFolder:
    """Pictures of a folder and its sub-folders, sorted by path; all of one size."""

    labels: Any = None

    def __init__(self, folder: str):
        """Lists the pictures.

        Raises:
          ConfigError: if there are none.
        """
        from PIL import Image

        endings = Image.registered_extensions()
        self._folder = folder
        self._paths = sorted(
            os.path.join(place, name)
            for place, _, names in os.walk(folder)
            for name in names
            if os.path.splitext(name)[1].lower() in endings and not name.startswith(".")
        )
        if not self._paths:
            raise ConfigError(f"{folder!r} holds no pictures.")
        self._size = self._open(0).shape

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Returns images.

        Raises:
          ConfigError: if one cannot be read or is of another size than the first.
        """
        return np.stack([self._open(i) for i in index.tolist()])

    def about(self) -> dict[str, Any]:
        """See `Images`; the hash is over the names of the files."""
        names = "\n".join(os.path.relpath(path, self._folder) for path in self._paths)
        return {
            "folder": os.path.basename(os.path.abspath(self._folder)),
            "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
            "num": len(self),
            "size": list(self._size[:2]),
        }

    def _open(self, i):
        from PIL import Image

        path = self._paths[i]
        try:
            with Image.open(path) as opened:
                image = np.asarray(opened.convert("RGB"))
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path!r} cannot be read as a picture: {e}.") from e
        if i and image.shape != self._size:
            raise ConfigError(
                f"{path!r} is of {image.shape[1]}x{image.shape[0]} pixels and"
                f" {self._paths[0]!r} of {self._size[1]}x{self._size[0]}: all must be alike; biggan"
                " prepare makes them so."
            )
        return image


class First:
    """The first images of a set."""

    def __init__(self, whole: Images, num: int):
        """Takes the set."""
        self._whole, self._num = whole, num

    def __len__(self) -> int:
        return self._num

    @property
    def labels(self) -> Any:
        """See `Images`."""
        labels = self._whole.labels
        return None if labels is None else labels[: self._num]

    def read(self, index: np.ndarray) -> Any:
        """See `Images`."""
        return self._whole.read(index)

    def about(self) -> dict[str, Any]:
        """See `Images`."""
        return {**self._whole.about(), "num": self._num}


def data_set(name: str, directory: str | None, resolution: int, like: Any = None) -> FromSource:
    """Opens a data set as a run reads it.

    Args:
      name: `NAME` or `NAME:SPLIT`; "data" or "data:SPLIT" is that of the run `like`.
      directory: as `data.dir` of a config.
      resolution: pixels of a side.
      like: config of a run, or None.

    Raises:
      ConfigError: if it cannot be opened, or "data" is asked for without a run.
    """
    name, _, split = name.partition(":")
    if name == "data":
        if like is None:
            raise ConfigError("--reference=data: only a run folder says what its data is.")
        config = ml_collections.ConfigDict(like)
    else:
        config = config_lib.default()
        config.data.name, config.data.dir = name, directory
        config.model.resolution = resolution
    if split:
        config.data.split = split
    return FromSource(datasets.open_source(config))


def is_run(path: str) -> bool:
    """Whether a path is a run folder."""
    return os.path.isfile(os.path.join(path, runs.CONFIG)) and os.path.isdir(
        os.path.join(path, runs.CHECKPOINTS)
    )


def read_npz(path: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a `.npz`; nothing in it is run.

    Raises:
      ConfigError: if it is none or cannot be read.
    """
    if not os.path.isfile(path):
        raise ConfigError(f"there is no file {path!r}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise ConfigError(f"{path!r} cannot be read as .npz: {e}.") from e


def sha256(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's bytes, hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
