"""`biggan export`: statistics by truncation, the writing, the run after it, the comparison.

Every export is written beside its place, loaded again by the program it is for, run, and compared
with the source; only then it gets its name. So whatever lies there made the source's images.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import comparing, export_card, formats, frozen, huggingface, layout
from biggan_jax.interop.bundle import Bundle
from biggan_jax.interop.comparing import Generate
from biggan_jax.sample import latents, sheets

# Where statistics are made unless a model brings its own. A bound of 4 is as good as none.
_BOUNDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
_FACTORS = (0.1, 0.25, 0.5, 0.75, 1.0)
TRUNCATIONS = {"threshold": _BOUNDS, "clamp": _BOUNDS, "hub": _FACTORS, "std": _FACTORS}
STORED = "stored"
_ROWS = 4  # Of a bundle's sheet.


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes:
      out: the folder to make.
      name: `formats.BUNDLE`, one of `formats.WRITABLE` or of `formats.PROGRAMS`.
      truncations: for which to make BN statistics: numbers with commas between; "stored" for none,
        to take those stored with the weights; None for the model's own, if it brings any, else
        those of `TRUNCATIONS`.
      licence: of the weights, for the card.
      scores: a JSON file of names and numbers, for the card.
      parameters: of the format stablehlo: "inside" the program, the default, or "apart".
    """

    out: str
    name: str
    truncations: str | None = None
    licence: str | None = None
    scores: str | None = None
    parameters: str | None = None

    def check(self) -> None:
        """Checks what can be checked before a model is read.

        Raises:
          ConfigError: if the request cannot be met.
        """
        formats.check_writable(self.name)
        files.check_new_folder(self.out, "OUT")
        if self.name in formats.PROGRAMS:
            formats.program(self.name)
        if self.parameters not in (None, "inside", "apart"):
            raise ConfigError(f"--parameters={self.parameters}: must be inside or apart.")
        if self.parameters and self.name != "stablehlo":
            raise ConfigError("--parameters: goes with --format=stablehlo.")
        for option, value in (
            ("truncations", self.truncations),
            ("licence", self.licence),
            ("scores", self.scores),
        ):
            if value is not None and self.name in formats.WRITABLE:
                raise ConfigError(f"--{option}: has no place in the format {self.name}.")
        if self.scores is not None:
            _read_scores(self.scores)


@dataclasses.dataclass(frozen=True)
class Tools:
    """What `biggan_jax.api` brings: it stands above this room.

    Attributes:
      generate: makes of a bundle its (z, labels, truncation) to images.
      statistics: makes of a bundle its truncation to BN statistics, a tree.
      make_table: gives a bundle the statistics that the format huggingface needs.
    """

    generate: Callable[[Bundle], Generate]
    statistics: Callable[[Bundle], Callable[[float], Any]]
    make_table: Callable[[Bundle], None]


def export(bundle: Bundle, request: Request, tools: Tools) -> list[str]:
    """Writes a model in the format asked for, runs what was written and compares it.

    Args:
      bundle: the model; statistics are added to it.
      request: checked.
      tools: to run it.

    Returns:
      Sentences that the user should read; the first says how far the images differ.

    Raises:
      ConfigError: if the format cannot hold the model, or the images differ by more than
        `comparing.LIMIT`; nothing has been written then.
    """
    if request.name in formats.WRITABLE:
        return _foreign(bundle, request, tools)
    grid = _truncations(request.truncations, bundle)
    table = _table(grid, tools.statistics(_exact(bundle))) if grid else {}
    if request.truncations is not None:
        bundle = _without_table(bundle)
    if grid:
        bundle.grid = grid
        bundle.add("table", table)
    if request.licence is not None:
        bundle.source["licence"] = request.licence
    if request.scores is not None:
        bundle.source["scores"] = _read_scores(request.scores)
    with comparing.on_cpu():
        source = tools.generate(_exact(bundle))
        if request.name == formats.BUNDLE:
            found = _bundle(bundle, request.out, source, tools)
        else:
            found = _program(bundle, request, source)
    return [bundle_lib.difference_line(found)]


def _exact(bundle):
    return dataclasses.replace(bundle, model=frozen.exact(bundle.model))


def _without_table(bundle):
    tensors = {k: v for k, v in bundle.tensors.items() if not k.startswith("table/")}
    return dataclasses.replace(bundle, tensors=tensors, grid=())


def _truncations(text, bundle):
    """For which truncations statistics are to be made; none where those that are there serve."""
    if text == STORED or (text is None and bundle.grid):
        return ()
    if text is None:
        return TRUNCATIONS[bundle.truncation]
    found = []
    for word in text.split(","):
        try:
            found.append(float(word))
        except ValueError as e:
            raise ConfigError(
                f"--truncations={text}: must be numbers with commas between, or {STORED}."
            ) from e
        latents.check_truncation(found[-1], bundle.truncation)
    if found != sorted(set(found)):
        raise ConfigError(f"--truncations={text}: must ascend.")
    return tuple(found)


def _read_scores(path) -> dict[str, float]:
    try:
        with open(path) as f:
            scores = json.load(f)
    except (OSError, ValueError) as e:
        raise ConfigError(f"--scores={path}: cannot be read: {str(e).splitlines()[0]}.") from e
    numbers = isinstance(scores, dict) and all(type(v) in (int, float) for v in scores.values())
    if not numbers or not scores:
        raise ConfigError(f"--scores={path}: must hold a JSON object of names and numbers.")
    return scores


def _table(grid, statistics):
    import tqdm

    rows = [
        layout.flatten(jax.tree.map(np.asarray, statistics(truncation)), "batch_stats")
        for truncation in tqdm.tqdm(grid, "standing statistics")
    ]
    return {place: np.stack([row[place] for row in rows]) for place in rows[0]}


def _program(bundle, request, source) -> dict[str, Any]:
    """Writes for another program, see `formats.PROGRAMS`."""
    program, name = formats.program(request.name), request.name
    options = {"parameters": request.parameters or "inside"} if name == "stablehlo" else {}
    frozen_generator = frozen.freeze(bundle)
    tried = comparing.points(bundle)
    with files.new_folder(request.out) as temporary:
        program.write(frozen_generator, temporary, **options)
        run, classes = program.load(temporary), bundle.model["num_classes"]
        weighted = lambda z, labels, t: run(z, comparing.one_hot(labels, classes), t)  # noqa: E731
        found = comparing.compare(source, weighted, tried, name)
        about = export_card.about(bundle, frozen_generator, name, found, temporary) | options
        text = export_card.card(bundle, about, program.USE)
        place = lambda file: os.path.join(temporary, file)  # noqa: E731
        files.write_whole(place(export_card.ABOUT), json.dumps(about, indent=2) + "\n")
        files.write_whole(place(bundle_lib.CARD), text)
    return found


def _bundle(bundle, out, source, tools) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def finish(folder):
        again = tools.generate(_exact(bundle_lib.read(folder)))
        found.update(comparing.compare(source, again, comparing.points(bundle), formats.BUNDLE))
        _sheet(bundle, source, os.path.join(folder, bundle_lib.SHEET))
        return found

    bundle_lib.write(bundle, out, finish)
    return found


def _sheet(bundle, source, path):
    grid, classes = bundle.grid or (1.0,), min(10, bundle.model["num_classes"])
    truncation = min(grid, key=lambda t: abs(t - 1))
    index = np.arange(_ROWS * classes)
    z = latents.draw(0, jnp.asarray(index), bundle.model["z_dim"], truncation, bundle.truncation)
    images = sheets.to_uint8(source(np.asarray(z), index % classes, truncation))
    names = bundle.class_names or [str(i) for i in range(classes)]
    said = latents.describe(truncation, bundle.truncation)
    title = f"{bundle.name}: seed 0, {said}"
    sheets.save_png(sheets.sheet(images, classes, list(names[:classes]), title=title), path)


def _foreign(bundle, request, tools) -> list[str]:
    """Writes in a format of `formats.WRITABLE`, and reads it back as an import does."""
    if request.name == huggingface.NAME:
        rows = len(bundle.grid)
        huggingface.check(bundle)  # Now, as the statistics take a while.
        if rows < 2 or not np.allclose(bundle.grid, np.linspace(0, 1, rows), rtol=0, atol=1e-6):
            bundle = _without_table(bundle)
            tools.make_table(bundle)
    place = os.path.abspath(request.out)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{os.path.basename(place)}.", suffix=".tmp", dir=os.path.dirname(place)
    ) as temporary:
        written = os.path.join(temporary, "model")
        notes = formats.write(bundle, written, request.name)
        back = formats.read(written, request.name)
        # What the format has no table for holds the statistics of the networks.
        kept = bundle if back.grid else _without_table(bundle)
        with comparing.on_cpu():
            source, again = (tools.generate(_exact(one)) for one in (kept, back))
            found = comparing.compare(source, again, comparing.points(kept), request.name)
        os.replace(written, place)
    return [bundle_lib.difference_line(found), *notes]
