"""The emoji of docs/data.md: Fluent emoji on white, from the archive that npm packs."""

import io
import os
import pathlib
import tarfile

import numpy as np
from PIL import Image

PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
ARCHIVE = "lobehub-fluent-emoji-3d-1.1.0.tgz"
PLACE = pathlib.Path(__file__).parents[2] / ".venv" / "emoji"  # Where `make interop` packs it.


def archive():
    """Returns the archive's path, in the folder BIGGAN_EMOJI or where `make interop` puts it."""
    path = pathlib.Path(os.environ.get("BIGGAN_EMOJI", PLACE), ARCHIVE)
    return path if path.is_file() else None


def pictures(count, size):
    """Returns emoji without skin tones, evenly spaced, `[count, size, size, 3]` uint8."""
    tones = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
    with tarfile.open(archive()) as tar:
        members = sorted(
            (m for m in tar if m.name.endswith(".webp") and not tones & _codes(m.name)),
            key=lambda member: member.name,
        )
        chosen = [members[i * len(members) // count] for i in range(count)]
        return np.stack([_square(tar.extractfile(member).read(), size) for member in chosen])


def _codes(name):
    return set(pathlib.PurePath(name).stem.lower().split("-"))


def _square(data, size):
    """As `biggan prepare` does it: what is transparent is white."""
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA").resize((size, size), Image.Resampling.BOX)
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return np.asarray(page.convert("RGB"))
