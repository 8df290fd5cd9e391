"""Pictures of a run's numbers: `curves.png`, and `spectra.png`, layers by steps.

Drawn from what the run wrote, `metrics.jsonl` and `spectra.jsonl`, so at any time and after any
end.

A line of `spectra.jsonl`: `{"step", "diversity", "sigma": {weight: [s0, s1, s2]}}`. A line of
`metrics.jsonl` that has "rollback" is none of metrics: `{"step": k, "rollback": n, "from": k,
"to": c, "rule": name}`; the run went back from step k to the checkpoint of step c. Steps behind
it come again, and both times are drawn.
"""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biggan_jax import files

METRICS, SPECTRA = "metrics.jsonl", "spectra.jsonl"
CURVES_PNG, SPECTRA_PNG = "curves.png", "spectra.png"

_WIDTH = 11.0  # Inches; at 100 dots each.
_DPI = 100
_MOST_COLUMNS = 1200  # Of the heat map: beyond, several looks share one.
_SMOOTH_FROM = 60  # Points; with more, a running median is drawn over pale curves.
_LINEAR_TO = 20.0  # Losses and logits beyond are drawn on a logarithmic scale.
_NAMED = 6  # Weights named in the curves: those with the largest values at the end.
_COLORS = {"real": "#1b7837", "fake": "#762a83", "D": "#b2560d", "G": "#2166ac", "gap": "#444444"}

Line = Mapping[str, Any]


def draw(workdir: str) -> list[str]:
    """Draws what there is; returns the paths written, curves first.

    Args:
      workdir: the run folder; a file that is missing or empty leaves out what it would give.
    """
    metrics = read(os.path.join(workdir, METRICS))
    spectra = [line for line in read(os.path.join(workdir, SPECTRA)) if "sigma" in line]
    rollbacks = [line for line in metrics if "rollback" in line]
    metrics = [line for line in metrics if "rollback" not in line]
    written = []
    if metrics or spectra:
        written.append(os.path.join(workdir, CURVES_PNG))
        files.write_whole(written[-1], curves_png(metrics, spectra, rollbacks))
    if spectra:
        written.append(os.path.join(workdir, SPECTRA_PNG))
        files.write_whole(written[-1], spectra_png(spectra, rollbacks))
    return written


def read(path: str) -> list[dict[str, Any]]:
    """Returns the lines of a JSON-lines file that are whole; none where there is no file."""
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            for text in f:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # Cut by a kill.
                if isinstance(line, dict) and "step" in line:
                    lines.append(line)
    return lines


def curves_png(
    metrics: Sequence[Line], spectra: Sequence[Line], rollbacks: Sequence[Line] = ()
) -> bytes:
    """Returns the curves as a PNG: losses, logits, gradients, diversity, sigma0.

    Args:
      metrics: lines of metrics; numbers that are None were not finite and are marked at the top.
      spectra: lines of looks.
      rollbacks: each is a vertical line with the name of its rule.
    """
    panels = []
    if metrics:
        panels += [
            ("losses", metrics, {"d_loss": "D", "g_loss": "G"}, "symlog"),
            ("D's logits", metrics, {"d_real": "real", "d_fake": "fake"}, "symlog"),
            ("gradient norms", metrics, {"d_grad_norm": "D", "g_grad_norm": "G"}, "log"),
        ]
    if spectra:
        panels += [("diversity of fakes", spectra, {"diversity": "G"}, "linear")]
    figure = _figure(2.1 * (len(panels) + 2 * bool(spectra)) + 0.4)
    heights = [1.0] * len(panels) + [2.0] * bool(spectra)
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    axes = list(axes[:, 0])
    for axis, (title, lines, curves, scale) in zip(axes, panels, strict=False):
        for name, kind in curves.items():
            _curve(axis, lines, lambda line, name=name: line.get(name), name, _COLORS[kind])
        if title == "D's logits":
            _curve(axis, lines, _gap, "d_real - d_fake", _COLORS["gap"])
        axis.set_ylabel(title)
        _scale(axis, scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        _legend(axis)
    if spectra:
        _sigma_curves(axes[-1], spectra)
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.margins(x=0.01)
        _mark(axis, rollbacks)
    _name_marks(axes[0], rollbacks)
    axes[-1].set_xlabel("step")
    return _png(figure)


def spectra_png(spectra: Sequence[Line], rollbacks: Sequence[Line] = ()) -> bytes:
    """Returns the heat map of sigma0, weights by steps, as a PNG; colours are logarithmic.

    A step that came again after a rollback shows its later value.

    Args:
      spectra: lines of looks, at least one.
      rollbacks: each is a vertical line.
    """
    import matplotlib.colors

    latest = {line["step"]: line["sigma"] for line in spectra}
    steps = sorted(latest)
    steps = steps[:: math.ceil(len(steps) / _MOST_COLUMNS)]
    names = list(latest[steps[-1]])
    values = np.array([[_top(latest[step].get(name)) for step in steps] for name in names])
    values = np.ma.masked_invalid(np.where(values > 0, values, np.nan))
    figure = _figure(0.165 * len(names) + 1.3)
    axis = figure.subplots()
    low, high = (float(values.min()), float(values.max())) if values.count() else (1.0, 1.0)
    # All alike, as before the first step: a range is needed all the same.
    norm = matplotlib.colors.LogNorm(low / 1.01, high * 1.01)
    axis.set_facecolor("#bbbbbb")  # What has no value.
    mesh = axis.pcolormesh(
        _edges(steps), np.arange(len(names) + 1), values, norm=norm, cmap="magma"
    )
    axis.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    axis.invert_yaxis()  # G's first weight on top, D's last at the bottom.
    first_d = next((i for i, name in enumerate(names) if name.startswith("D/")), 0)
    if first_d:
        axis.axhline(first_d, color="white", linewidth=1.5)
    _mark(axis, rollbacks, "#39e0ff")
    axis.set_xlabel("step")
    axis.set_title("largest singular value of each raw weight", fontsize=9)
    bar = figure.colorbar(mesh, ax=axis, pad=0.01, aspect=40)
    bar.ax.tick_params(which="both", labelsize=7)
    _log_ticks(bar.ax.yaxis)
    return _png(figure)


def _figure(height):
    # No pyplot: it would choose a window system and keep figures for ever.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _curve(axis, lines: Iterable[Line], value, label, color):
    """One curve, broken where the steps go back and where there is no number."""
    steps: list[float] = []
    values: list[float] = []
    lost = []
    for line in lines:
        if steps and line["step"] <= steps[-1]:
            steps.append(math.nan)
            values.append(math.nan)
        number = value(line)
        if number is None or not math.isfinite(number):
            lost.append(line["step"])
            number = math.nan
        steps.append(line["step"])
        values.append(number)
    if len(steps) > _SMOOTH_FROM:
        axis.plot(steps, values, color=color, linewidth=0.6, alpha=0.35)
        values = _running_median(values, len(values) // 40)
        axis.plot(steps, values, color=color, linewidth=1.3, label=label)
    else:
        axis.plot(steps, values, color=color, linewidth=1.1, marker=".", markersize=3, label=label)
    if lost and len(lost) < len(steps):
        top = axis.get_xaxis_transform()
        axis.plot(lost, [0.97] * len(lost), "x", color="red", markersize=5, transform=top)


def _running_median(values, width):
    half = max(1, width // 2)
    result = []
    for i, value in enumerate(values):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not math.isnan(v)]
        result.append(math.nan if math.isnan(value) else float(np.median(near)))
    return result


def _sigma_curves(axis, spectra):
    names = list(spectra[-1]["sigma"])
    last = {name: _top(spectra[-1]["sigma"][name]) for name in names}
    order = sorted(names, key=lambda name: last[name] if last[name] == last[name] else math.inf)
    for name in order:
        color = _COLORS["G" if name.startswith("G/") else "D"]
        steps: list[float] = []
        values: list[float] = []
        for line in spectra:
            back = bool(steps) and line["step"] <= steps[-1]
            steps += [math.nan, line["step"]] if back else [line["step"]]
            values += [math.nan] * back + [_top(line["sigma"].get(name))]
        named = name in order[-_NAMED:]
        axis.plot(
            steps,
            [v if v > 0 else math.nan for v in values],
            color=color,
            linewidth=1.2 if named else 0.6,
            alpha=0.9 if named else 0.35,
            label=f"{name} {last[name]:.3g}" if named else None,
        )
    axis.set_ylabel("sigma0 of raw weights\n(G blue, D orange)")
    _scale(axis, "log")
    _legend(axis)


def _legend(axis):
    """Beside the axis, where it hides nothing; the highest curve is named first."""
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        fontsize=7,
        frameon=False,
    )


def _log_ticks(axis):
    """Plain numbers; between powers of ten too, where there are few of those."""
    import matplotlib.ticker

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1.5, 0.5)))


def _scale(axis, scale):
    low, high = axis.get_ylim()
    if scale == "symlog" and max(-low, high) > _LINEAR_TO:
        axis.set_yscale("symlog", linthresh=_LINEAR_TO / 4)
    elif scale == "log":
        axis.set_yscale("log", nonpositive="mask")
        _log_ticks(axis.yaxis)
    axis.tick_params(axis="y", which="both", labelsize=7)


def _gap(line):
    pair = line.get("d_real"), line.get("d_fake")
    return None if None in pair else pair[0] - pair[1]


def _top(values):
    """sigma0 of a look's three values; NaN where it was not finite or not looked at."""
    return math.nan if not values or values[0] is None else float(values[0])


def _edges(steps):
    """Edges of the columns: half-way between two looks."""
    steps = np.asarray(steps, float)
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def _mark(axis, rollbacks, color="red"):
    for line in rollbacks:
        axis.axvline(line["from"], color=color, linewidth=1.0)
        axis.axvline(line["to"], color=color, linewidth=0.8, linestyle=":")


def _name_marks(axis, rollbacks):
    """Writes above the first axis what each rollback was for."""
    for i, line in enumerate(rollbacks):
        axis.annotate(
            f"{line['rollback']}: {line['rule']}, {line['from']:,} to {line['to']:,}",
            (line["from"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 9 * (i % 3)),
            textcoords="offset points",
            fontsize=7,
            color="red",
            ha="right",
        )
