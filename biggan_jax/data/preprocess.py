"""From any picture to the square RGB image a network sees: `[R, R, 3]`, uint8."""

import dataclasses
import functools
import io
import os
from typing import Any

import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.data import crops
from biggan_jax.data.crops import CENTRED, Crop

# Modes in which Pillow keeps 16-bit grey; "I" is how it opens 16-bit PGM, among others.
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ORIENTATION = 0x0112  # The EXIF tag.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How pictures become images.

    Attributes:
      resolution: pixels of a side of the result.
      resize: "area" (the mean of the pixels a new one covers; bicubic where pictures grow),
        "bilinear" (of the four nearest pixels, as TensorFlow and PyTorch resize),
        "pil_bilinear" (low-pass filtered where pictures shrink, as BigGAN-PyTorch does by
        Pillow) or "lanczos" (likewise).
      decode: "exact", or "scaled": large JPEGs are decoded at a half, a quarter or an eighth of
        their size, the smallest that is not below `resolution`, and "area" that shrinks by no
        more than half by a faster filter than Pillow's; details differ (docs/performance.md).
      strict: whether damage that a JPEG decoder can gloss over makes a picture unreadable.
    """

    resolution: int
    resize: str = "area"
    decode: str = "exact"
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a method that is not known or not installed."""
        for key, allowed in (("resize", config_lib.RESIZES), ("decode", config_lib.DECODES)):
            value = getattr(self, key)
            if value not in allowed:
                raise ConfigError(f"data.{key}={value!r}: must be one of {', '.join(allowed)}.")
        if (self.decode, self.resize) == ("scaled", "area"):
            try:
                _short_way()
            except ImportError as e:
                raise ConfigError(
                    f"data.decode='scaled': Numba cannot be used here ({_reason(e)}); install it"
                    " anew, or use 'exact'."
                ) from e


def to_square(image: Any, recipe: Recipe, crop: Crop = CENTRED) -> np.ndarray:
    """Cuts a square out of a picture and scales it.

    The centred crop takes the whole short edge and the middle of the long edge, as the paper does
    for ImageNet (Brock et al. 2018, section 4). Transparent pictures are laid on white, an EXIF
    orientation is obeyed, 16-bit values are divided by 257.

    Args:
      image: a `PIL.Image.Image` of any mode but floats, or an array `[H, W]`, `[H, W, 1]`,
        `[H, W, 3]` (RGB) or `[H, W, 4]` (RGBA) of uint8, uint16 or bool.
      recipe: size and method; of "scaled" only the library that shrinks by area, and `strict` has
        no meaning here.
      crop: which square.

    Returns:
      `[R, R, 3]`, uint8.

    Raises:
      ConfigError: if the picture holds floats or other values without an agreed range, has no
        pixels, is over 100 times as long as wide or is an array of another shape.
    """
    from PIL import Image, ImageOps

    picture = image if isinstance(image, Image.Image) else _from_array(np.asarray(image))
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # Else this copies for nothing.
        picture = ImageOps.exif_transpose(picture)
    width, height = picture.size
    side, left, top = crops.window(width, height, crop)
    # Cropped before resizing: `resize(box=...)` would let the filter read beyond the box.
    if picture.size != (side, side):
        picture = picture.crop((left, top, left + side, top + side))
    picture = _to_rgb(picture)
    if side != recipe.resolution:
        picture = _resize(picture, recipe)
    return np.array(picture)


def decode(
    file: str | bytes,
    where: str,
    recipe: Recipe,
    crop: Crop = CENTRED,
    notes: list[str] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Reads one encoded picture (PNG, JPEG, WebP, ...) and makes it square.

    Args:
      file: a path, or the bytes of a file.
      where: what to call the picture in an error message: a path, or data set and record.
      recipe: how.
      crop: which square.
      notes: gets what had to be done to it beyond cropping and scaling down, as "kind: what".
      out: where to put the result, `[R, R, 3]` uint8 in C order; None makes a new array.

    Returns:
      The result. Of an animation, the first frame.

    Raises:
      ConfigError: naming the picture and why it cannot be read.
      ValueError: if `out` is no such array.
    """
    size = recipe.resolution
    if out is not None and not (
        out.shape == (size, size, 3) and out.dtype == np.uint8 and out.flags.carray
    ):
        raise ValueError(f"out: must be [{size}, {size}, 3] uint8 in C order, and writable.")
    short = recipe.decode == "scaled" and recipe.resize == "area" and notes is None
    square = _short_way() if short else None
    # Pillow's format readers raise whatever a broken file led them to (OSError, SyntaxError,
    # struct.error, ...); to the user all of it means the same.
    try:
        data = _content(file) if isinstance(file, str) else file
        if not data:
            raise ConfigError("it is an empty file")
        if square is not None:
            if out is None:
                out = np.empty((size, size, 3), np.uint8)
            if square(data, crop, out):
                return out
        from PIL import Image

        with Image.open(io.BytesIO(data)) as picture:
            if notes is not None:
                notes += _peculiarities(picture, recipe.resolution)
            image = to_square(_pixels(picture, data, recipe, crop), recipe, crop)
    except Exception as e:
        raise ConfigError(f"{where} cannot be read as a picture: {_reason(e)}.") from e
    if out is None:
        return image
    out[:] = image
    return out


@functools.cache  # An import, even the second, takes a hundredth of the time of a picture.
def _short_way():
    from biggan_jax.data import jpeg

    return jpeg.square


def _content(path):
    try:
        return _quickly(path)
    except (OSError, OverflowError):  # A pipe, or else this says what is the matter.
        with open(path, "rb") as f:
            return f.read()


def _quickly(path):
    """What a file holds, in half the time that `open` takes."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.lseek(file, 0, os.SEEK_END)
        os.lseek(file, 0, os.SEEK_SET)
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):
            data += more
    finally:
        os.close(file)
    return data


def _reason(error):
    if isinstance(error, FileNotFoundError):
        return "there is no such file (any more)"
    if "cannot identify image file" in str(error):
        return "no picture format begins as it does"
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def _pixels(picture, data, recipe, crop):
    """The picture decoded; a JPEG by libjpeg-turbo itself, which is faster and tells of damage."""
    from PIL import Image

    if picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
        return picture
    import simplejpeg

    width, height = picture.size
    if recipe.decode == "scaled":
        width, height = crops.reduced(width, height, crops.shortest(recipe.resolution, crop))
    try:
        colours = "RGB" if picture.mode == "RGB" else "GRAY"
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width)
    except ValueError:
        if recipe.strict:
            raise
        return picture  # Pillow refuses what ends too soon, and makes something of the rest.
    decoded = Image.fromarray(pixels if picture.mode == "RGB" else pixels[..., 0])
    orientation = picture.getexif().get(_ORIENTATION)
    if orientation is not None:
        decoded.getexif()[_ORIENTATION] = orientation
    return decoded


def _peculiarities(picture, resolution):
    found = []
    if picture.mode == "CMYK":
        found.append("CMYK: converted to RGB")
    elif picture.mode in _GREY_16:
        found.append("16-bit: reduced to 8")
    if picture.mode in ("1", "L", "LA", "La", *_GREY_16):
        found.append("grey: three equal channels")
    if getattr(picture, "n_frames", 1) > 1:
        found.append("animated: first frame taken")
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        found.append("EXIF: rotated as it says")
    if picture.has_transparency_data:
        found.append("transparent: laid on white")
    if min(picture.size) < resolution:
        found.append(f"enlarged: from {picture.width} x {picture.height} pixels")
    return found


def _resize(picture, recipe):
    from PIL import Image

    size = (recipe.resolution, recipe.resolution)
    side = picture.size[0]
    if recipe.resize == "area":
        if recipe.decode == "scaled" and recipe.resolution < side <= 2 * recipe.resolution:
            from biggan_jax.data.shrink import covered, shrink

            out = np.empty((*size, 3), np.uint8)
            shrink(np.array(picture.convert("RGBX")), 0, 0, covered(side, recipe.resolution), out)
            return out
        if side % recipe.resolution == 0:
            return picture.reduce(side // recipe.resolution)  # The same mean, four times as fast.
        shrinks = side > recipe.resolution
        return picture.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    if recipe.resize == "bilinear":
        scale = side / recipe.resolution
        matrix = (scale, 0, 0, 0, scale, 0)
        return picture.transform(
            size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
        )
    methods = {"pil_bilinear": Image.Resampling.BILINEAR, "lanczos": Image.Resampling.LANCZOS}
    return picture.resize(size, methods[recipe.resize])


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
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # It always copies.


def _to_8_bits(values):
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
