"""What `biggan sample` and `biggan walk` write: sheets, folders of PNGs, `.npz` files, videos."""

import contextlib
import dataclasses
import os
import time
from typing import Any

import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.sample import names, outputs, sheets, video, walk
from biggan_jax.sampling import Sampling, progress_bar

MAX_SHEET = 5_000  # Images; more are asked for as files.


@dataclasses.dataclass(frozen=True)
class Request:
    """What is sampled.

    Attributes:
      classes: see `names.pick`; None for the first ten in a sheet, all in files.
      num: images a class.
      seed: of the latents.
      truncation: see `Model.sample`.
      mode: see `Model.sample`.
      batch: see `Model.stream`.
      out: a PNG to write, a class a column; None for none.
      images: a folder to make, with a PNG an image; None for none.
      npz: a `.npz` to write; None for none.
    """

    classes: str | None = None
    num: int = 8
    seed: int = 0
    truncation: float | None = None
    mode: str | None = None
    batch: int | None = None
    out: str | None = None
    images: str | None = None
    npz: str | None = None

    def check(self) -> None:
        """Checks what can be checked before a model is loaded.

        Raises:
          ConfigError: naming the option.
        """
        if self.num < 1:
            raise ConfigError(f"--num={self.num}: must be at least 1.")
        if self.out:
            outputs.check_file(self.out, ".png", "--out")
        if self.images:
            files.check_new_folder(self.images, "--images")
        if self.npz:
            outputs.check_file(self.npz, ".npz", "--npz")


def sample(model: Sampling, request: Request) -> dict[str, Any]:
    """Generates images once and writes them in every form asked for.

    The order is one image of each class, then the next of each: the first images stay the same when
    more are asked for.

    Args:
      model: from `api.open_any`.
      request: what and where to.

    Returns:
      Facts: "images", "outputs" (paths), "devices", "statistics_seconds" (until the first block is
      on its way), "seconds" (of all images, with compiling), "images_per_second" (all but the first
      block, whose time has the compiling in it; null where there is only one).

    Raises:
      ConfigError: if the request cannot be met; nothing has been written then.
    """
    request.check()
    picked = names.pick(request.classes or "all", model.class_names)
    if request.classes is None and request.out:
        picked = picked[:10]
    labels = np.tile(picked, request.num)
    if request.out and len(labels) > MAX_SHEET:
        raise ConfigError(
            f"--num={request.num}: a sheet of {len(labels):,} images is more than {MAX_SHEET:,};"
            " take --images or --npz."
        )
    begun = time.perf_counter()
    blocks = model.stream(
        labels, request.truncation, request.seed, request.mode, batch=request.batch
    )
    started = time.perf_counter()
    size = model.config.model.resolution
    kept = []
    with contextlib.ExitStack() as stack:
        sinks = []
        if request.images:
            sinks.append(stack.enter_context(outputs.folder(request.images)))
        if request.npz:
            shape = (len(labels), size, size, 3)
            sinks.append(stack.enter_context(outputs.npz(request.npz, shape)))
        bar = stack.enter_context(progress_bar(len(labels), model.progress))
        first_block = 0
        for start, images in blocks:
            for sink in sinks:
                sink(images, labels[start : start + len(images)])
            if request.out:
                kept.append(images)
            bar.update(len(images))
            if not start:
                first_block, first_done = len(images), time.perf_counter()
    ended = time.perf_counter()
    if request.out:
        picture = sheets.sheet(
            np.concatenate(kept),
            len(picked),
            column_labels=[model.class_names[i] for i in picked],
            title=_title(model, request.seed, request.truncation, request.mode),
        )
        sheets.save_png(picture, request.out)
    rest = len(labels) - first_block
    return {
        "images": len(labels),
        "outputs": [path for path in (request.out, request.images, request.npz) if path],
        "devices": model.devices,
        "statistics_seconds": started - begun,
        "seconds": ended - started,
        "images_per_second": rest / (ended - first_done) if rest else None,
    }


@dataclasses.dataclass(frozen=True)
class Walk:
    """What `walk` walks.

    Attributes:
      out: a .png (a sheet, a leg a row), .gif or .mp4 to write.
      classes: one a point, over and over; see `names.pick`. None for the first alone.
      points: how many; None for as many as classes, but four of a single class.
      frames: from a point to the next.
      how: the way between latents, of `walk.WAYS`.
      loop: whether to end where it began.
      lock_z: whether all points have the first one's latent, so that only the class moves.
      chunks: numbers with commas between, of the chunks of a split z that move, the others stay as
        in the first point; "each" for each alone, one after the other, a row each of a sheet; None
        for the whole of z.
      seed: of the latents of the points: those of images 0, 1, ... of `sample`.
      truncation: see `Model.sample`.
      mode: see `Model.sample`.
      fps: frames a second of a video.
      batch: see `Model.stream`.
    """

    out: str = "walk.gif"
    classes: str | None = None
    points: int | None = None
    frames: int = 16
    how: str = "spherical"
    loop: bool = False
    lock_z: bool = False
    chunks: str | None = None
    seed: int = 0
    truncation: float | None = None
    mode: str | None = None
    fps: int = 12
    batch: int | None = None

    def check(self) -> None:
        """Checks what can be checked before a model is loaded.

        Raises:
          ConfigError: naming the option.
        """
        ending = os.path.splitext(self.out)[1].lower()
        if ending not in (".png", *video.ENDINGS):
            raise ConfigError(f"--out={self.out}: must end in .png, .gif or .mp4.")
        outputs.check_file(self.out, ending, "--out")
        if ending in video.ENDINGS:
            video.check(self.out, self.fps)
        if self.points is not None and self.points < 2:
            raise ConfigError(f"--points={self.points}: must be at least 2.")
        if self.lock_z and self.chunks is not None:
            raise ConfigError("--lock-z: leaves nothing for --chunks to move.")


def walk_to(model: Sampling, request: Walk) -> dict[str, Any]:
    """Writes a walk through latents and classes.

    Args:
      model: from `api.open_any`.
      request: what and where to.

    Returns:
      Facts: "frames", "outputs", "seconds".

    Raises:
      ConfigError: if the request cannot be met; nothing has been written then.
    """
    request.check()
    picked = names.pick(request.classes, model.class_names) if request.classes else [0]
    if request.lock_z and len(picked) < 2:
        raise ConfigError("--lock-z: needs two classes or more, or nothing would move.")
    count = request.points or (len(picked) if len(picked) > 1 else 4)
    begun = time.perf_counter()
    z = model.latents(count, request.truncation, request.seed, request.mode)
    classes = [picked[i % len(picked)] for i in range(count)]
    if request.lock_z:
        z[:] = z[0]
    walks = [z]
    if request.chunks is not None:
        groups = _chunks(request.chunks, model)
        walks = [walk.only_chunks(z, z[0], group, model.slots) for group in groups]
    frames = np.concatenate(
        [
            model.walk(
                list(zip(points, classes, strict=True)),
                request.frames,
                request.truncation,
                request.mode,
                request.how,
                request.loop,
                request.batch,
            )
            for points in walks
        ]
    )
    if request.out.lower().endswith(".png"):
        columns = len(frames) // len(walks) if len(walks) > 1 else request.frames
        picture = sheets.sheet(
            frames,
            columns,
            row_labels=[f"chunk {i}" for i in range(len(walks))] if len(walks) > 1 else None,
            title=_title(model, request.seed, request.truncation, request.mode),
        )
        sheets.save_png(picture, request.out)
    else:
        video.save(frames, request.out, request.fps)
    seconds = time.perf_counter() - begun
    return {"frames": len(frames), "outputs": [request.out], "seconds": seconds}


def _chunks(text, model):
    if model.slots == 1:
        raise ConfigError(f"--chunks: {model.name} does not split z into chunks.")
    if text == "each":
        return [[i] for i in range(model.slots)]
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError(f"--chunks={text}: must be numbers with commas between, or each.")
    return [[int(word) for word in words]]


def _title(model, seed, truncation, mode):
    return ", ".join([model.title, f"seed {seed}", model.describe(truncation, mode)])
