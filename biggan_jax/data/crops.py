"""`data.crop`: which square of a picture an image shows, as a function of seed and position."""

import math

import numpy as np

SMALLEST = math.sqrt(
    1 / 2
)  # Side of the smallest square, in parts of the short edge: half its area.


def random_zoom(seed: int, first: int, count: int) -> np.ndarray:
    """Draws squares of half to all of the centred square's area, anywhere in the picture.

    The numbers come from a counter-based generator (Philox) that is set to the position, so those
    of one position can be drawn without those before it.

    Args:
      seed: at least 0 and below 2^64.
      first: the first position in the endless row of epochs.
      count: how many positions.

    Returns:
      `[count, 3]`, a `preprocess.Crop` each: side (uniform from sqrt(1/2) to 1), x, y (uniform
      from 0 to 1).
    """
    # One step of the counter gives four numbers of 64 bits.
    raw = np.random.Philox(key=seed, counter=first).random_raw(4 * count).reshape(count, 4)
    crops = (raw[:, :3] >> np.uint64(11)) * 2.0**-53
    crops[:, 0] = SMALLEST + (1 - SMALLEST) * crops[:, 0]
    return crops
