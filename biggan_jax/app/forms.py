"""What the app hands out: pictures, archives and videos as bytes, with their content types."""

import base64
import io
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from biggan_jax.app.studio import Shown
from biggan_jax.sample import sheets, video

IMAGES = {
    "sheet": ("image/png", "sheet.png"),
    "image": ("image/png", "image.png"),
    "zip": ("application/zip", "images.zip"),
    "npz": ("application/octet-stream", "images.npz"),
    "json": ("application/json", "images.json"),
}
WALKS = {
    "mp4": ("video/mp4", "walk.mp4"),
    "gif": ("image/gif", "walk.gif"),
    "png": ("image/png", "walk.png"),
}


def png(image: np.ndarray) -> bytes:
    """Returns one image, uint8 [H, W, 3], as a PNG."""
    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG")
    return data.getvalue()


def name(shown: Shown, place: int) -> str:
    """Returns how `biggan sample --images` names an image: number and class."""
    return f"{shown.numbers[place]:06d}_class{shown.labels[place]:04d}.png"


def sheet(shown: Shown, title: str) -> bytes:
    """Returns all images on one PNG."""
    picture = sheets.sheet(shown.images, shown.columns, shown.column_labels, title=title)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def archive(shown: Shown) -> bytes:
    """Returns a zip with a PNG an image."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as f:
        for i, image in enumerate(shown.images):
            # A ZipInfo of its own has no time in it: the same images, the same bytes.
            f.writestr(zipfile.ZipInfo(name(shown, i)), png(image))
    return data.getvalue()


def npz(shown: Shown) -> bytes:
    """Returns `arr_0`, the images, and `arr_1`, their labels, as `biggan sample --npz` does."""
    data = io.BytesIO()
    np.savez(data, arr_0=shown.images, arr_1=np.asarray(shown.labels, np.int64))
    return data.getvalue()


def record(shown: Shown, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns everything for JSON; the images are PNGs in base64."""
    logits = shown.logits
    return {
        **facts,
        "ms_per_image": 1e3 * shown.seconds / len(shown.images),
        "images": [
            {
                "number": shown.numbers[i],
                "class": shown.labels[i],
                "caption": shown.captions[i],
                "logit": None if logits is None else float(logits[i]),
                "png": base64.b64encode(png(image)).decode(),
            }
            for i, image in enumerate(shown.images)
        ],
    }


def moving(frames: np.ndarray, form: str, fps: int, columns: int) -> bytes:
    """Returns frames, uint8 [F, H, W, 3], in a form of `WALKS`; a PNG has `columns` in a row."""
    if form != "png":
        return video.encoded(frames, f".{form}", fps)
    data = io.BytesIO()
    sheets.sheet(frames, columns).save(data, format="PNG")
    return data.getvalue()
