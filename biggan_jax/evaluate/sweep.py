"""Scores over truncations: the table, and the curve of the paper's figure 17."""

import io
import json
import os
from collections.abc import Sequence
from typing import Any

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import images

_NAME = "truncation_sweep"
_SHARES = ("label_accuracy", "copies")


def parse(text: str | None) -> tuple[float | None, ...]:
    """Reads `--truncation`: nothing, a number, or FIRST:LAST:STEP with LAST among them.

    Raises:
      ConfigError: if it is none of these.
    """
    if text is None:
        return (None,)
    try:
        parts = [float(part) for part in text.split(":")]
        if len(parts) == 1:
            return tuple(parts)
        first, last, step = parts
        count = round((last - first) / step) + 1
        if first > 0 and step > 0 and 1 < count <= 1000 and last >= first:
            # Of 0.1 and 0.1 the third sum would be 0.30000000000000004.
            return tuple(round(first + i * step, 9) for i in range(count))
    except (ValueError, ZeroDivisionError, OverflowError):
        pass
    raise ConfigError(
        f"--truncation={text}: must be a number or FIRST:LAST:STEP, as in 0.1:1.0:0.1."
    )


def folder(path: str, out: str | None, what: str = "sweep") -> str:
    """Returns where a sweep, or what else it is, is written.

    Raises:
      ConfigError: if there is no such place.
    """
    if out is None:
        if not images.is_run(path):
            raise ConfigError(
                f"--out: {path!r} is no run folder, so say where the {what} is to be written."
            )
        out = path
    files.check_folder(out, "--out")
    return out


def write(place: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Writes `truncation_sweep.json` and `.png`; returns their paths."""
    os.makedirs(place, exist_ok=True)
    paths = [os.path.join(place, f"{_NAME}.{ending}") for ending in ("json", "png")]
    files.write_whole(paths[0], json.dumps(list(results), indent=2) + "\n")
    files.write_whole(paths[1], draw(results))
    return paths


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns all metrics as lines of text, a truncation a column where there are several."""
    names = list(results[0]["metrics"])
    columns = [[_truncation(r)] + [f"{r['metrics'][n]:.6g}" for n in names] for r in results]
    if len(results) == 1:
        return "\n".join(f"{n:32} {v}" for n, v in zip(names, columns[0][1:], strict=True))
    rows = [["truncation", *names], *columns]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def draw(results: Sequence[dict[str, Any]]) -> bytes:
    """Returns a PNG: the distance over truncation, variety against quality, and shares.

    Quality and variety are Inception Score and Fréchet distance where both were measured, as in
    the paper's figure, else precision and recall. The shares are label accuracy and copies. What
    was not measured stays away.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(results[0]["metrics"])
    at = [r["protocol"]["images"]["truncation"] for r in results]
    values = {name: [r["metrics"][name] for r in results] for name in names}
    first = lambda *starts: next((n for n in names if n.startswith(starts)), None)  # noqa: E731
    distance, score = first("fid", "fd"), first("is")
    precision, recall = first("precision"), first("recall")
    x, y = (distance, score) if distance and score else (recall, precision)
    shares = [name for name in names if name.startswith(_SHARES)]
    count = 1 + (x is not None) + bool(shares)
    figure = Figure(figsize=(max(11, 5 * count), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = iter(figure.subplots(1, count, squeeze=False)[0])
    axis, shown = next(axes), distance or names[0]
    axis.plot(at, values[shown], "o-")
    axis.set(xlabel="truncation", ylabel=shown)
    if x is not None:
        axis = next(axes)
        axis.plot(values[x], values[y], "o-")
        for t, a, b in zip(at, values[x], values[y], strict=True):
            axis.annotate(f"{t:g}", (a, b), textcoords="offset points", xytext=(4, 4))
        axis.set(xlabel=x, ylabel=y)
    if shares:
        axis = next(axes)
        for name in shares:
            axis.plot(at, values[name], "o-", label=name)
        axis.set(xlabel="truncation", ylabel="share of the images", ylim=(-0.02, 1.02))
        axis.legend()
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    protocol = results[0]["protocol"]
    about = protocol["images"]
    figure.suptitle(
        f"{about['model']}, {about['num']:,} images a point,"
        f" mode {about['mode']}, features {protocol['extractor']['name']}"
    )
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _truncation(result):
    value = result["protocol"]["images"].get("truncation")
    return "none" if value is None else f"{value:g}"
