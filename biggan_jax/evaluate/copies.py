"""Does a model repeat its training images? Its samples beside the nearest ones, and a share.

A real image too has a nearest other one. What is nearer than nearly all of those, the 1st
percentile of their distances, is suspect; of new real images about 0.01 are.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from biggan_jax.evaluate import neighbours
from biggan_jax.evaluate.images import Images
from biggan_jax.sample import sheets

PERCENTILE = 1
_SHOWN = 8  # Samples of each kind on the sheet.
_NEAREST = 5  # Real images beside each.


class Found(NamedTuple):
    """How near fakes are to reals.

    distance: [N], of each fake to the nearest real image.
    threshold: the distance that is suspect.
    share: of the fakes that are nearer.
    """

    distance: np.ndarray
    threshold: float
    share: float


def find(real: np.ndarray, fake: np.ndarray) -> Found:
    """Compares features `[M, D]` of real and `[N, D]` of generated images.

    Raises:
      ConfigError: if there are fewer than two real images.
    """
    suspect = threshold(real)
    distance, _ = neighbours.nearest(fake, real)
    return Found(distance, suspect, float(np.mean(distance < suspect)))


def threshold(real: np.ndarray) -> float:
    """Returns the distance that is suspect, of features `[M, D]` of real images.

    Raises:
      ConfigError: if there are fewer than two.
    """
    return float(np.percentile(np.sqrt(neighbours.radii(real, [1])[0]), PERCENTILE))


def sheet(
    fakes: Images,
    reals: Images,
    fake: np.ndarray,
    real: np.ndarray,
    found: Found,
    title: str,
) -> Image.Image:
    """Returns samples with their nearest real images: the first ones, then the nearest of all.

    Args:
      fakes: the images that `fake` are the features of, all of them.
      reals: the images that `real` are the features of, or of some, evenly spaced.
      fake: [N, D].
      real: [M, D].
      found: of `find`.
      title: a line above.
    """
    first = np.arange(min(_SHOWN, len(fake)))
    rest = np.argsort(found.distance, kind="stable")
    rows = np.concatenate([first, rest[:_SHOWN]])
    pictures: list[Any] = []
    labels: list[str] = []
    count = min(_NEAREST, len(real))
    for place in rows.tolist():
        apart = ((np.float64(real) - np.float64(fake[place])) ** 2).sum(axis=1)
        nearest = np.argsort(apart, kind="stable")[:count]
        at = nearest * len(reals) // len(real)  # Which were kept, see `engine.Engine.run`.
        shown = [fakes.read(np.array([place])), *(reals.read(np.array([i])) for i in at)]
        pictures += [same_size(x[0], shown[0].shape[1:3]) for x in shown]
        kind = "first" if len(labels) < len(first) else "nearest"
        labels.append(f"{kind}: no. {place}, {_ratio(found, place)}")
    columns = ["sample", *(f"real {i + 1}" for i in range(count))]
    return sheets.sheet(np.stack(pictures), len(columns), columns, labels, title)


def _ratio(found, place):
    if not found.threshold:
        return f"distance {found.distance[place]:.3g}"
    return f"{found.distance[place] / found.threshold:.2f} of the threshold"


def same_size(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Returns a picture [H, W, 3] uint8, resized if it is not of `size`, rows and columns."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
