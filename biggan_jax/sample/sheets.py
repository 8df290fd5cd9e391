"""Sheets of images: a grid with labels, as one PNG."""

import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from biggan_jax import files

_MARGIN = 8  # Around everything, in pixels.
_GAP = 2  # Between two images.
_TEXT = 14  # Height of a label.
_TITLE = 18
_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_COMFORTABLE = 64  # Images smaller than this are enlarged to about this size.


class HoldsNaN(ValueError):
    """Images that cannot be shown."""


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Returns `round(127.5 (x + 1))`, clipped to 0..255 (spec 14.5).

    Args:
      x: floats, where -1 is black and 1 is white; any shape.

    Raises:
      HoldsNaN: if a value is NaN.
    """
    x = np.asarray(x, np.float32)
    if np.isnan(x).any():
        raise HoldsNaN("the images hold NaN.")
    return np.clip(np.round(127.5 * (x + 1)), 0, 255).astype(np.uint8)


def sheet(
    images: np.ndarray,
    columns: int,
    column_labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    title: str = "",
    scale: int | None = None,
) -> Image.Image:
    """Lays images out in a grid, row by row.

    Args:
      images: uint8 `[N, H, W, 3]`; where N does not fill the last row, its end stays empty.
      columns: images in a row.
      column_labels: one text a column, above it; cut with "..." where the column is too narrow.
      row_labels: one text a row, left of it.
      title: a line above everything.
      scale: each pixel becomes `scale x scale` pixels (nearest neighbour, nothing is smoothed);
        `None` enlarges small images to about 64 pixels.

    Raises:
      ValueError: if the shapes, labels or numbers do not fit together.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"images are {images.dtype}{list(images.shape)}, not uint8[N, H, W, 3].")
    count, height, width, _ = images.shape
    if columns < 1:
        raise ValueError(f"columns={columns}: must be at least 1.")
    rows = -(-count // columns)
    for name, labels, wanted in (("column", column_labels, columns), ("row", row_labels, rows)):
        if labels is not None and len(labels) != wanted:
            raise ValueError(f"{len(labels)} {name} labels for {wanted} {name}s.")
    if scale is None:
        scale = max(1, _COMFORTABLE // height)
    if scale < 1:
        raise ValueError(f"scale={scale}: must be at least 1.")

    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    cell_h, cell_w = height * scale, width * scale
    text_font = ImageFont.load_default(_TEXT)
    title_font = ImageFont.load_default(_TITLE)
    left = top = _MARGIN
    if title:
        top += _TITLE + _MARGIN
    if column_labels is not None:
        top += _TEXT + _MARGIN // 2
    if row_labels is not None:
        left += _ceil(max(text_font.getlength(text) for text in row_labels)) + _MARGIN
    grid_w = columns * (cell_w + _GAP) - _GAP
    grid_h = rows * (cell_h + _GAP) - _GAP
    title_w = _ceil(title_font.getlength(title)) + _MARGIN
    page = Image.new("RGB", (max(left + grid_w, title_w) + _MARGIN, top + grid_h + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((_MARGIN, _MARGIN), title, _INK, title_font, anchor="lt")
    for i, text in enumerate(column_labels or ()):
        middle = left + i * (cell_w + _GAP) + cell_w // 2
        text = _fitted(text, cell_w, text_font)
        draw.text((middle, top - _MARGIN // 2), text, _INK, text_font, anchor="ms")
    for i, text in enumerate(row_labels or ()):
        middle = top + i * (cell_h + _GAP) + cell_h // 2
        draw.text((left - _MARGIN, middle), text, _INK, text_font, anchor="rm")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        at = (left + column * (cell_w + _GAP), top + row * (cell_h + _GAP))
        page.paste(Image.fromarray(image), at)
    return page


def save_png(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG so that a reader finds the old file or the new one, never half of it."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    data = io.BytesIO()
    image.save(data, format="PNG")
    files.write_whole(path, data.getvalue())


def _fitted(text, width, font):
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _ceil(length):
    return int(length) + 1
