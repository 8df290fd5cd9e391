"""Large JPEGs at reduced size, by the shortest way: `data.decode=scaled`.

Opening a file with Pillow and copying its pixels in and out costs a tenth of decoding it, and each
call that lets go of the interpreter's lock may have to wait for it. Here one decodes, one scales,
and little else is done. Images are those of `preprocess`, bit for bit; what is out of the ordinary
is left to it.
"""

import threading

import numpy as np

from biggan_jax.data import crops

# libjpeg decodes at any number of eighths, but libjpeg-turbo has vector code for these alone: 3/8
# costs more than 4/8.
_EIGHTHS = (1, 2, 4, 8)
_LARGEST = 2**26  # Pixels, below those of which Pillow warns.

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
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
    except ValueError:  # From the decoder or of the crop; `preprocess` finds the words.
        return None
    pixels = pixels[top : top + side, left : left + side]
    return pixels if side == resolution else shrunk(pixels, resolution)


def shrunk(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scales a square down by area, three times as fast as Pillow.

    On photos within a level of Pillow; where the centre of a pixel lies just on the border of two
    new ones, the two may count it to different ones.

    Args:
      pixels: `[N, N, 3]` uint8.
      size: pixels of a side of the result.

    Returns:
      `[size, size, 3]` uint8, not to be written to.
    """
    import cykooz_resizer as cykooz

    if not hasattr(_mine, "resizer"):
        _mine.resizer = cykooz.Resizer()
        _mine.options = cykooz.ResizeOptions(
            resize_alg=cykooz.ResizeAlg.convolution(cykooz.FilterType.box)
        )
    # Not by its functions for Pillow's pictures: those copy more.
    source = cykooz.ImageData(*pixels.shape[:2], cykooz.PixelType.U8x3, pixels.tobytes())
    result = cykooz.ImageData(size, size, cykooz.PixelType.U8x3)
    _mine.resizer.resize(source, result, _mine.options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)


_mine = threading.local()  # A resizer has memory of its own, which one thread at a time may use.


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
