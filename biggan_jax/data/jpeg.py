"""Large JPEGs at reduced size, by the shortest way: `data.decode=scaled`.

Opening a file with Pillow and copying its pixels in and out costs a tenth of decoding it, and each
call that lets go of the interpreter's lock may have to wait for it. Here one decodes, one scales,
and little else is done. Images are those of `preprocess`, bit for bit; what is out of the ordinary
is left to it. As `shrink`, this is not to be imported before it is needed.
"""

import functools

import numba
import numpy as np
import simplejpeg

from biggan_jax.data import crops
from biggan_jax.data.shrink import covered, shrink

_LARGEST = 2**26  # Pixels, below those of which Pillow warns.


def square(data: bytes, crop: crops.Crop, out: np.ndarray) -> bool:
    """Decodes a JPEG at reduced size, cuts out a square and scales it by area.

    Args:
      data: a file.
      crop: which square.
      out: `[R, R, 3]` uint8 in C order, filled in.

    Returns:
      Whether that was done; not if this is no JPEG in colour, may have to be turned, is damaged, or
      is too small, too large or too long.
    """
    try:
        size = _size(np.frombuffer(data, np.uint8))
        width, height, left, top, both = _plan(size, len(out), crop)
        pixels = simplejpeg.decode_jpeg(data, "RGBX", min_height=height, min_width=width)
    except ValueError:  # From the decoder or the plan; `preprocess` finds the words.
        return False
    if pixels.shape[:2] != (height, width):  # The decoder found another header than `_size` did.
        return False
    shrink(pixels, left, top, both, out)
    return True


@functools.lru_cache(4096)  # Many pictures have one size.
def _plan(size, resolution, crop):
    """The size to decode at; left and top of the square in it; which pixels new ones cover."""
    width, height = size
    if not 0 < width * height <= _LARGEST:
        raise ValueError(f"{width} x {height} pixels are left to Pillow.")
    width, height = crops.reduced(width, height, crops.shortest(resolution, crop))
    side, left, top = crops.window(width, height, crop)
    return width, height, left, top, covered(side, resolution)


@numba.njit("UniTuple(int64, 2)(Array(uint8, 1, 'C', readonly=True))")
def _size(data):
    """Width and height of a JPEG in colour, `[bytes]` uint8.

    0, 0 if before its pixels something is out of the ordinary, or says to turn it, or that there
    are other pictures.
    """
    size = 0, 0
    at = 2
    if len(data) < at or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0
    # Segments follow, each with a mark, its kind and its length, as far as the one before the
    # pixels. Frames (baseline, extended, progressive) have bits, height, width and colours.
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xDA:  # Pixels.
            return size
        if kind == 0xE1 or kind == 0xFF:  # EXIF or XMP, which say how to turn it; fill bytes.
            return 0, 0
        if kind < 0xC0 or 0xD0 <= kind <= 0xD9:  # They have no length.
            return 0, 0
        if kind == 0xE2 and data[at + 4] == 0x4D:  # "MPF": other pictures; else colours.
            return 0, 0
        if 0xC0 <= kind <= 0xC2:
            if data[at + 4] != 8 or data[at + 9] != 3:
                return 0, 0
            size = data[at + 7] * 256 + data[at + 8], data[at + 5] * 256 + data[at + 6]
        at += 2 + data[at + 2] * 256 + data[at + 3]
    return 0, 0
