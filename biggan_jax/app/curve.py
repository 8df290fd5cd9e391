"""The scores of a model over truncations, where `biggan evaluate` has left some, with a mark."""

import glob
import io
import json
import os
from typing import Any, NamedTuple

import numpy as np


class Score(NamedTuple):
    """One value of one metric."""

    name: str
    step: int
    truncation: float
    mode: str
    value: float


def read(folder: str) -> list[Score]:
    """Returns what the `metric-*.jsonl` of a run folder say of images at a truncation.

    Of several values for one place the last counts; damaged lines are left out, as a run that goes
    on may be at one.
    """
    found: dict[tuple, Score] = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "metric-*.jsonl"))):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                for score in _scores(line):
                    found[score[:4]] = score
    return list(found.values())


def at(scores: list[Score], step: int | None, mode: str) -> dict[str, list[Score]]:
    """Returns the scores of a step and a mode by metric, ascending by truncation."""
    chosen: dict[str, list[Score]] = {}
    for score in sorted(scores, key=lambda s: s.truncation):
        if score.mode == mode and score.step == step and not score.name.endswith("_std"):
            chosen.setdefault(score.name, []).append(score)
    return chosen


def estimate(points: list[Score], truncation: float | None) -> float | None:
    """Returns a metric at a truncation, linear between its points; None outside of them."""
    t = [p.truncation for p in points]
    if truncation is None or not t or not t[0] <= truncation <= t[-1]:
        return None
    return float(np.interp(truncation, t, [p.value for p in points]))


def text(chosen: dict[str, list[Score]], truncation: float | None) -> str:
    """Returns the curve in words, for who does not see it."""
    parts = []
    for name, points in chosen.items():
        low, high = points[0], points[-1]
        said = f"{name} from {low.value:.4g} at truncation {low.truncation:g} to {high.value:.4g}"
        said += f" at {high.truncation:g}"
        here = estimate(points, truncation)
        parts.append(said + (f", about {here:.4g} here" if here is not None else ""))
    return "; ".join(parts)


def draw(chosen: dict[str, list[Score]], truncation: float | None) -> bytes:
    """Returns a PNG with a plot a metric (four at most), the truncation in use marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order = sorted(chosen, key=lambda n: (not n.startswith(("fid", "fd", "is")), n))[:4]
    figure = Figure(figsize=(4 * len(order), 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(order), squeeze=False)[0], order, strict=True):
        points = chosen[name]
        axes.plot([p.truncation for p in points], [p.value for p in points], "o-")
        here = estimate(points, truncation)
        if truncation is not None:
            axes.axvline(truncation, color="tab:red", alpha=0.4)
        if here is not None:
            axes.plot([truncation], [here], "D", color="tab:red", markersize=9)
            axes.set_title(f"{here:.4g} at {truncation:g}", fontsize=10)
        axes.set(xlabel="truncation", ylabel=name)
        axes.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()


def _scores(line: str) -> list[Score]:
    try:
        row: dict[str, Any] = json.loads(line)
        images = row.pop("protocol")["images"]
        step, truncation, mode = row.pop("step"), images["truncation"], images["mode"]
        if truncation is None:
            return []
        return [Score(n, step, float(truncation), mode, float(v)) for n, v in row.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
