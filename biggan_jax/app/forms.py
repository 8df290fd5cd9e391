"""What the app hands out: pictures, archives and videos as bytes, with their content types."""

import base64
import io
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from biggan_jax.app.studio import Nearest, Shown
from biggan_jax.evaluate import copies
from biggan_jax.evaluate.index import Index
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

NEAREST_ROWS = 20  # Of a sheet of nearest real images.


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


def nearest(found: Nearest, index: Index, title: str) -> bytes:
    """Returns images, a row each, with the real ones nearest to them, as a PNG."""
    cells, labels = [], []
    rows = zip(found.shown.images, found.near.places, found.near.ratios, strict=True)
    for i, (image, places, ratios) in enumerate(rows):
        if i == NEAREST_ROWS:
            break
        cells += [image, *(copies.same_size(index.pictures[j], image.shape[:2]) for j in places)]
        labels.append(f"{found.shown.numbers[i]}: {_ratio(ratios[0])}")
    count = found.near.places.shape[1]
    columns = ["sample", *(f"real {i + 1}" for i in range(count))]
    picture = sheets.sheet(np.stack(cells), count + 1, columns, labels, title)
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def nearest_record(found: Nearest, index: Index) -> list[dict[str, Any]]:
    """Returns the same for JSON; places are those of the index, classes those of the data set."""
    classes = index.labels
    return [
        {
            "number": number,
            "nearest": [
                {
                    "place": int(place),
                    "class": None if classes is None else int(classes[place]),
                    "of_threshold": float(ratio) if np.isfinite(ratio) else None,
                }
                for place, ratio in zip(places, ratios, strict=True)
            ],
        }
        for number, places, ratios in zip(found.shown.numbers, *found.near, strict=True)
    ]


def _ratio(ratio):
    return f"{ratio:.2f} of the threshold" if np.isfinite(ratio) else "no threshold"


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
