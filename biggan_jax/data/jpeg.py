"""Large JPEGs at reduced size, by the shortest way: `data.decode=scaled`.

Opening a file with Pillow and copying its pixels in and out costs a tenth of decoding it, and each
call that lets go of the interpreter's lock may have to wait for it. Here one decodes, one scales,
and little else is done. Images are those of `preprocess`, bit for bit; what is out of the ordinary
is left to it.
"""

import threading
from typing import Any

import numpy as np

from biggan_jax.data import crops

# libjpeg decodes at any number of eighths, but libjpeg-turbo has vector code for these alone: 3/8
# costs more than 4/8.
_EIGHTHS = (1, 2, 4, 8)
_LARGEST = 2**26  # Pixels. Pillow warns of more.

# The first bytes of a file; the segment after which come pixels; the segments that hold EXIF or
# XMP, which say how to turn a picture, and other pictures (or a colour profile).
_JPEG, _PIXELS, _EXIF, _MORE = b"\xff\xd8", 0xDA, 0xE1, 0xE2


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


def square(data: bytes, resolution: int, crop: crops.Crop) -> np.ndarray | None:
    """Decodes a JPEG at reduced size, cuts out a square and scales it by area.

    Args:
      data: a file.
      resolution: pixels of a side of the result.
      crop: which square.

    Returns:
      `[R, R, 3]` uint8, not to be written to; None if this is no JPEG in colour, may have to be
      turned, is damaged, or is too small, too large or too long.
    """
    import simplejpeg
    from PIL import Image

    if not _is_plain(data):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or width * height > _LARGEST:
            return None
        width, height = reduced(width, height, crops.shortest(resolution, crop))
        side, left, top = crops.window(width, height, crop)
        if side < resolution:
            return None
        # A row more than there are, as Pillow wants whole rows after the corner of the square.
        pixels = np.empty((height + 1, width, 4), np.uint8)
        simplejpeg.decode_jpeg(
            data, "RGBX", min_height=height, min_width=width, buffer=pixels[:height]
        )
    except ValueError:  # From the decoder or of the crop; `preprocess` finds the words.
        return None
    corner = pixels.reshape(-1)[4 * (top * width + left) :]
    picture: Any = Image.frombuffer("RGBA", (side, side), corner, "raw", "RGBA", 4 * width, 1)
    if side > resolution:
        picture = shrunk(picture, resolution)
    out = np.frombuffer(picture.tobytes("raw", "RGB"), np.uint8)
    return out.reshape(resolution, resolution, 3)


def shrunk(picture: Any, size: int) -> Any:
    """Scales a square down by area, three times as fast as Pillow.

    Args:
      picture: a square `PIL.Image.Image`, RGB, or RGBA and opaque.
      size: pixels of a side of the result.

    Returns:
      A `PIL.Image.Image` of the same mode, good until this thread asks for another of its size.
    """
    import cykooz_resizer as cykooz
    from PIL import Image

    key = picture.mode, size
    if key not in _mine.held:
        by_area = cykooz.ResizeAlg.convolution(cykooz.FilterType.box)
        options = cykooz.ResizeOptions(resize_alg=by_area)
        _mine.held[key] = cykooz.Resizer(), Image.new(picture.mode, (size, size)), options
    resizer, out, options = _mine.held[key]
    resizer.resize_pil(picture, out, options)
    return out


class _Mine(threading.local):
    """What a thread uses again for each picture: fresh memory costs more than filling it."""

    def __init__(self):
        self.held = {}


_mine = _Mine()


def _is_plain(data):
    """Whether a JPEG has nothing before its pixels that says to turn it or holds other pictures."""
    if not data.startswith(_JPEG):
        return False
    at = len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind == _PIXELS:
            return True
        if kind in (_EXIF, 0xFF) or (kind == _MORE and data[at + 4 : at + 8] == b"MPF\0"):
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
