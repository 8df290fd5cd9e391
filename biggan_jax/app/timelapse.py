"""The training of a run as a film: its sheets of fakes, the same latents step by step."""

import os
import re

import numpy as np
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.train import pictures

_NAME = re.compile(r"fakes_(\d+)\.png")
_MOST = 240  # Frames of the film.


def steps(run: str) -> list[int]:
    """Returns the steps that a run folder has a sheet of, ascending; none of a bundle."""
    folder = os.path.dirname(os.path.join(run, pictures.fakes_name(0)))
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def sheet(run: str, step: int) -> bytes:
    """Returns the PNG of a step.

    Raises:
      ConfigError: if the run has none.
    """
    known = steps(run)
    if step not in known:
        said = f"one of {', '.join(map(str, known))}" if known else "left out: there is no sheet"
        raise ConfigError(f"step={step}: must be {said}.")
    with open(os.path.join(run, pictures.fakes_name(step)), "rb") as f:
        return f.read()


def frames(run: str) -> np.ndarray:
    """Returns the sheets as frames, uint8 [F, H, W, 3], H and W even as videos want them.

    Raises:
      ConfigError: if the folder holds no sheet.
    """
    known = steps(run)
    if not known:
        raise ConfigError("there is no time-lapse: this is no run folder with sheets of fakes.")
    picked = np.unique(np.linspace(0, len(known) - 1, min(_MOST, len(known))).round().astype(int))
    found: list[np.ndarray] = []
    for i in reversed(picked):
        with Image.open(os.path.join(run, pictures.fakes_name(known[i]))) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2]
        # A title that grew makes a sheet wider; what is compared lies at its left.
        height, width = found[0].shape[:2] if found else pixels.shape[:2]
        frame = np.full((height, width, 3), 255, np.uint8)
        part = pixels[:height, :width]
        frame[: len(part), : part.shape[1]] = part
        found.append(frame)
    return np.stack(found[::-1])
