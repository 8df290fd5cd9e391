"""`data.crop`: which square of a picture an image shows, as a function of seed and position."""

import math

import numpy as np

from biggan_jax.config import ConfigError

# A crop is (side, x, y): the side of the square in parts of the short edge, and where in its free
# room it lies. This one is the paper's: the short edge, in the middle of the long one.
Crop = tuple[float, float, float]
CENTRED: Crop = (1.0, 0.5, 0.5)

SMALLEST = math.sqrt(
    1 / 2
)  # Side of the smallest square, in parts of the short edge: half its area.
_LONGEST = 100  # Times the short edge; of a longer picture the centred square shows nothing.
# libjpeg decodes at any number of eighths, but libjpeg-turbo has vector code for these alone: 3/8
# costs more than 4/8.
_EIGHTHS = (1, 2, 4, 8)


def window(width: int, height: int, crop: Crop) -> tuple[int, int, int]:
    """Returns side, left and top of the square that a crop cuts out of a picture, in pixels.

    Raises:
      ConfigError: if the picture has no pixels, or is over 100 times as long as wide.
    """
    short, long = sorted((width, height))
    if short == 0 or long > _LONGEST * short:
        raise ConfigError(f"a picture of {width} x {height} pixels cannot be used")
    share, x, y = crop
    side = max(1, round(share * short))
    return side, int(x * (width - side)), int(y * (height - side))


def shortest(side: int, crop: Crop) -> int:
    """Returns how long the short edge must be for a crop's side to have `side` pixels."""
    edge = int(side / crop[0])
    return edge if round(crop[0] * edge) >= side else edge + 1


def reduced(width: int, height: int, at_least: int) -> tuple[int, int]:
    """Returns the smallest size to decode at that leaves the short edge `at_least` pixels.

    A picture whose short edge is below that anyway is decoded at its own size.
    """
    size = width, height
    for eighths in _EIGHTHS:
        size = -(-width * eighths // 8), -(-height * eighths // 8)
        if min(size) >= at_least:
            break
    return size


def random_zoom(seed: int, first: int, count: int) -> np.ndarray:
    """Draws squares of half to all of the centred square's area, anywhere in the picture.

    The numbers come from a counter-based generator (Philox) that is set to the position, so those
    of one position can be drawn without those before it.

    Args:
      seed: at least 0 and below 2^64.
      first: the first position in the endless row of epochs.
      count: how many positions.

    Returns:
      `[count, 3]`, a `Crop` each: side (uniform from sqrt(1/2) to 1), x, y (uniform
      from 0 to 1).
    """
    # One step of the counter gives four numbers of 64 bits.
    raw = np.random.Philox(key=seed, counter=first).random_raw(4 * count).reshape(count, 4)
    crops = (raw[:, :3] >> np.uint64(11)) * 2.0**-53
    crops[:, 0] = SMALLEST + (1 - SMALLEST) * crops[:, 0]
    return crops
