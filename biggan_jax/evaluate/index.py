"""Real images to look samples up in: a reference file that holds small copies of its pictures.

`biggan evaluate --make-reference OUT --with-images` writes one; the features in it are of at most
10,000 images, evenly spaced, and so are the pictures: `arr_0` [M, h, w, 3] uint8, and `arr_1` [M],
their classes. What is nearer than `near_threshold` is suspect, see `copies`.
"""

from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import copies, extractors, images, reference

NEAREST = 5  # Real images beside each sample.
_SIDE = 64  # Pixels of a copy at most.
_TILE = 16  # Images a call: every number of them compiles once.
THRESHOLD = "near_threshold"


class Near(NamedTuple):
    """The real images nearest to some samples, the nearest first.

    Attributes:
      places: [N, k] of them in the index.
      ratios: [N, k] distances in feature space, over the threshold.
    """

    places: np.ndarray
    ratios: np.ndarray


def add_pictures(made: reference.Reference) -> None:
    """Gives a reference small copies of the images whose features it holds.

    Raises:
      ConfigError: if it was made of statistics alone.
    """
    if made.source is None or made.features is None:
        raise ConfigError("--with-images: --reference holds statistics alone, no images.")
    count, kept = len(made.source), len(made.features)
    index = np.arange(kept) * count // kept  # As `engine.Engine.run` chose them.
    parts = [made.source.read(index[i : i + 100]) for i in range(0, kept, 100)]
    pictures = np.stack([_small(picture) for part in parts for picture in part])
    labels = made.source.labels
    made.pictures = pictures, None if labels is None else np.asarray(labels)[index]
    made.about[THRESHOLD] = copies.threshold(made.features)


def _small(picture):
    height, width = picture.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    if scale == 1:
        return picture
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


class Index:
    """A file of `add_pictures`, with the network that its features are of.

    Attributes:
      pictures: [M, h, w, 3] uint8.
      labels: [M] or None.
      extractor: the network.
    """

    def __init__(self, path: str, weights: str | None = None):
        """Reads the file and the network's weights, from where `extractors.load` finds them.

        Raises:
          ConfigError: if the file has no pictures, or the weights are not those it was made with.
        """
        arrays = images.read_npz(path)
        found = reference.load_arrays(path, arrays)
        if found is None or found.features is None or THRESHOLD not in found.about:
            raise ConfigError(
                f"--index={path}: holds no pictures; make it by biggan evaluate --make-reference"
                " --with-images."
            )
        name = found.about["extractor"]["name"]
        fitting = [n for n in extractors.NAMES if name == n or name.startswith(f"{n}_")]
        if not fitting:
            raise ConfigError(f"--index={path}: was made with {name}, which is not known.")
        self.extractor = extractors.load(max(fitting, key=len), weights)
        reference.check_extractor(path, found.about["extractor"], self.extractor)
        shown = images.FromArray(path)
        self.pictures, self.labels = shown.read(np.arange(len(shown))), shown.labels
        self._features = np.asarray(found.features, np.float64)
        self._squares = (self._features**2).sum(axis=1)
        self._threshold = found.about[THRESHOLD]
        if len(self.pictures) != len(self._features):
            raise ConfigError(f"--index={path}: pictures and features are not as many.")
        self._params = jax.device_put(self.extractor.params)
        self._call = jax.jit(self.extractor)

    def find(self, samples: np.ndarray) -> Near:
        """Returns the real images nearest to samples [N, H, W, 3] uint8."""
        rows = []
        for start in range(0, len(samples), _TILE):
            index = np.minimum(np.arange(start, start + _TILE), len(samples) - 1)
            rows.append(np.asarray(self._call(self._params, samples[index])["features"]))
        fakes = np.concatenate(rows)[: len(samples)].astype(np.float64)
        squares = (fakes**2).sum(axis=1)[:, None] + self._squares - 2 * fakes @ self._features.T
        places = np.argsort(squares, axis=1, kind="stable")[:, :NEAREST]
        apart = np.sqrt(np.maximum(np.take_along_axis(squares, places, axis=1), 0))
        return Near(places, apart / (self._threshold or np.nan))
