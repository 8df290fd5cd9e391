"""From any picture to the square RGB image a network sees: `[R, R, 3]`, uint8."""

import io
import os
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError

# Modes in which Pillow keeps 16-bit grey; "I" is how it opens 16-bit PGM, among others.
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def to_square(image: Any, resolution: int, resize: str = "area") -> np.ndarray:
    """Cuts the centred square out of a picture and scales it.

    The crop takes the whole short edge and the middle of the long edge, as the paper does for
    ImageNet (Brock et al. 2018, section 4). Transparent pictures are laid on white, an EXIF
    orientation is obeyed, 16-bit values are divided by 257.

    Args:
      image: a `PIL.Image.Image` of any mode but floats, or an array `[H, W]`, `[H, W, 1]`,
        `[H, W, 3]` (RGB) or `[H, W, 4]` (RGBA) of uint8, uint16 or bool.
      resolution: pixels of a side of the result.
      resize: "area" (the mean of the pixels a new one covers; bicubic where pictures grow),
        "bilinear" or "lanczos" (both low-pass filtered where pictures shrink).

    Returns:
      `[resolution, resolution, 3]`, uint8.

    Raises:
      ConfigError: if the picture holds floats or other values without an agreed range, has no
        pixels or is an array of another shape, or `resize` is unknown.
    """
    from PIL import Image, ImageOps

    if resize not in ("area", "bilinear", "lanczos"):
        raise ConfigError(f"data.resize={resize!r}: must be one of area, bilinear, lanczos.")
    picture = image if isinstance(image, Image.Image) else _from_array(np.asarray(image))
    picture = ImageOps.exif_transpose(picture)
    width, height = picture.size
    side = min(width, height)
    if side == 0:
        raise ConfigError(f"a picture of {width} x {height} pixels cannot be used.")
    # Cropped before resizing: `resize(box=...)` would let the filter read beyond the box.
    left, top = (width - side) // 2, (height - side) // 2
    picture = _to_rgb(picture.crop((left, top, left + side, top + side)))
    if side != resolution:
        if resize == "area":
            method = Image.Resampling.BOX if side > resolution else Image.Resampling.BICUBIC
        elif resize == "bilinear":
            method = Image.Resampling.BILINEAR
        else:
            method = Image.Resampling.LANCZOS
        picture = picture.resize((resolution, resolution), method)
    return np.array(picture)


def decode(file: str | bytes, where: str, resolution: int, resize: str = "area") -> np.ndarray:
    """Reads one encoded picture (PNG, JPEG, WebP, ...) and makes it square.

    Args:
      file: a path, or the bytes of a file.
      where: what to call the picture in an error message: a path, or data set and record.
      resolution: as in `to_square`.
      resize: as in `to_square`.

    Returns:
      `[resolution, resolution, 3]`, uint8. Of an animation, the first frame.

    Raises:
      ConfigError: naming the picture and why it cannot be read.
    """
    from PIL import Image

    empty = len(file) == 0 if isinstance(file, bytes) else _is_empty(file)
    if empty:
        raise ConfigError(f"{where} is not a picture: it is an empty file.")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return to_square(picture, resolution, resize)
    # Pillow's format readers raise whatever a broken file led them to (OSError, SyntaxError,
    # struct.error, ...); to the user all of it means the same.
    except Exception as e:
        reason = str(e).splitlines()[0].rstrip(".") if str(e) else type(e).__name__
        raise ConfigError(f"{where} cannot be read as a picture: {reason}.") from e


def _is_empty(path):
    return os.path.isfile(path) and os.path.getsize(path) == 0


def _from_array(array):
    from PIL import Image

    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise ConfigError(
            f"an array of shape {list(array.shape)} is not a picture; allowed: [H, W], [H, W, 1],"
            " [H, W, 3], [H, W, 4]."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _to_8_bits(array)
    elif array.dtype != np.uint8:
        raise ConfigError(
            f"pixels of type {array.dtype} have no agreed range; allowed: uint8, uint16, bool."
        )
    return Image.fromarray(array)


def _to_rgb(picture):
    from PIL import Image

    if picture.mode in _GREY_16:
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ConfigError("its 32-bit pixels have no agreed range; store 8 or 16 bits")
        picture = Image.fromarray(_to_8_bits(values))
    elif picture.mode == "F":
        raise ConfigError("its floating-point pixels have no agreed range; store 8 or 16 bits")
    if picture.has_transparency_data:
        # Colours under transparent pixels are undefined: white stands for paper.
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(paper, picture.convert("RGBA"))
    return picture.convert("RGB")


def _to_8_bits(values):
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
