"""What a run says while it goes on. This is the only file that knows clu.

The same numbers go to three places: `metrics.jsonl` (one line a report, never two of one step),
TensorBoard events, and one line on the terminal; `status.json` says where the run is now.
`spectra.jsonl` holds the watchdog's looks at the weights.
"""

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from biggan_jax import files, host_tensorflow
from biggan_jax.train.rollback import Rollback
from biggan_jax.train.speed import Speed
from biggan_jax.train.step_time import StepTime

METRICS = "metrics.jsonl"
SPECTRA = "spectra.jsonl"


class Reporter:
    """Writes the reports of one run; in processes other than the main one it writes nothing."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        num_steps: int,
        images_per_step: int,
        is_main: bool = True,
        speed: Speed | None = None,
        step_time: StepTime | None = None,
    ):
        """Opens nothing yet; `start` does, and the first report the events.

        Args:
          workdir: the run folder; made at need.
          num_steps: the step at which the run ends.
          images_per_step: real images that D sees in one step.
          is_main: whether this process is the one that writes.
          speed: what of the hardware is used, for the progress lines; None to leave that out.
          step_time: is told how long steps take.
        """
        self._workdir = os.fspath(workdir)
        self._num_steps = num_steps
        self._images_per_step = images_per_step
        self._is_main = is_main
        self._speed = speed
        self._step_time = step_time
        self._status: dict[str, Any] = {
            "phase": "start",
            "step": 0,
            "images_per_second": None,
            "step_seconds": None,
            "mfu": None,
            "eta_seconds": None,
            "last_checkpoint": None,
            "rollbacks": 0,
        }
        self._events: Any = None
        self._lines: Any = None
        self._looks: Any = None
        self._last_line = -1
        self._mark: tuple[int, float] | None = None

    def start(self, step: int, rollbacks: Sequence[Rollback] = ()) -> None:
        """Begins or resumes at `step`, the number of steps done; forgets reports of later ones.

        Args:
          step: finished steps.
          rollbacks: all there were; each is a line of `metrics.jsonl` that stays.
        """
        self._status["step"] = step
        # The first step compiles: the rate is measured from the first progress line on.
        self._mark = None
        if not self._is_main:
            return
        self.close()
        os.makedirs(self._workdir, exist_ok=True)
        path = os.path.join(self._workdir, METRICS)
        self._last_line = _drop_lines_after(path, step, rollbacks)
        self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 - `close` closes it.
        path = os.path.join(self._workdir, SPECTRA)
        _drop_lines_after(path, step)
        self._looks = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line to `metrics.jsonl` and the same numbers to the TensorBoard events.

        Args:
          step: larger than at the call before.
          values: what is not finite becomes `null` in the line, as JSON has no NaN.

        Raises:
          ValueError: if the step was reported already.
        """
        if not self._is_main:
            return
        if step <= self._last_line:
            raise ValueError(f"step {step} after step {self._last_line}: reported already.")
        values = {"kimg": self._kimg(step)} | {k: float(v) for k, v in values.items()}
        finite = {k: _finite(v) for k, v in values.items()}
        self._lines.write(json.dumps({"step": step} | finite) + "\n")
        self._lines.flush()
        self._last_line = step
        self._writer().write_scalars(step, values)
        self._events.flush()

    def look(self, step: int, diversity: float, sigmas: Mapping[str, Sequence[float]]) -> None:
        """Appends one line to `spectra.jsonl`.

        Args:
          step: larger than at the call before.
          diversity: of fakes, see `gan/spectra.py`.
          sigmas: by weight, its largest singular values.
        """
        if not self._is_main:
            return
        plain = {name: [_finite(v) for v in values] for name, values in sigmas.items()}
        line = {"step": step, "diversity": _finite(diversity), "sigma": plain}
        self._looks.write(json.dumps(line) + "\n")
        self._looks.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes a picture to the TensorBoard events; uint8 `[H, W, 3]`."""
        if not self._is_main:
            return
        self._writer().write_images(step, {name: image})
        self._events.flush()

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Prints one line: step, thousands of images, images/s since the last line, ETA, ...

        The same rates go to TensorBoard, under `speed/`. They are no part of `metrics.jsonl`, which
        is a function of seed and step.
        """
        if self._is_main:
            self._writer()  # Before the clock is read: it may take seconds.
        now = time.perf_counter()
        then, before = self._mark or (step, now)
        self._mark = (step, now)
        per_step = (now - before) / (step - then) if step > then else None
        rate = eta = used = None
        if per_step:
            rate = self._images_per_step / per_step
            eta = max(0, self._num_steps - step) * per_step
            used = self._speed.mfu(per_step) if self._speed else None
        rates = {"images_per_second": rate, "step_seconds": per_step, "mfu": used}
        self._status |= {"step": step, "eta_seconds": eta} | rates
        if not self._is_main:
            return
        if per_step and self._step_time:
            self._step_time.add(per_step)
        known = {f"speed/{name}": value for name, value in rates.items() if value is not None}
        if known:
            self._events.write_scalars(step, known | _device_gib())
        parts = [
            f"step {step:,}/{self._num_steps:,}",
            f"{self._kimg(step):,.1f} kimg",
            "- images/s" if rate is None else f"{rate:,.1f} images/s",
            "" if per_step is None else f"{1e3 * per_step:,.1f} ms a step",
            "" if used is None else f"MFU {100 * used:.1f} %",
            f"ETA {'-' if eta is None else _clock(eta)}",
            *(f"{name} {value:.4g}" for name, value in metrics.items()),
            _memory(),
        ]
        print("  ".join(part for part in parts if part), flush=True)

    def status(self, phase: str, **fields: Any) -> None:
        """Writes `status.json`, whole or not at all.

        Args:
          phase: what the run does now, such as "train" or "done".
          **fields: further fields, or other values for the usual ones (`step`,
            `images_per_second`, `eta_seconds`, `last_checkpoint`, `rollbacks`); they stay until
            they are given again.
        """
        self._status |= {"phase": phase} | fields
        if self._is_main:
            os.makedirs(self._workdir, exist_ok=True)
            path = os.path.join(self._workdir, "status.json")
            files.write_whole(path, json.dumps(self._status, indent=2) + "\n")

    def close(self) -> None:
        """Flushes and closes all files."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lines is not None:
            self._lines.close()
            self._looks.close()
            self._lines = self._looks = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self):
        """Opened at the first use: TensorFlow's import takes seconds, and steps do not need it."""
        if self._events is None:
            self._events = summary_writer(self._workdir)
        return self._events

    def _kimg(self, step):
        return step * self._images_per_step / 1000


@dataclasses.dataclass
class _Row:
    name: str
    shape: tuple[int, ...]
    size: int


def parameter_table(params: Mapping[str, Any]) -> str:
    """Returns a table of name, shape and size of each array, and the total.

    Args:
      params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
    """
    from clu import parameter_overview

    # clu's own overview sums with np.prod, which makes the total a float as soon as one parameter
    # is a scalar (the gain of attention is); so only its table is taken.
    rows = [
        _Row(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            tuple(leaf.shape),
            math.prod(leaf.shape),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]
    table = parameter_overview.make_table(rows)
    return f"{table}\nTotal: {sum(row.size for row in rows):,} parameters"


def summary_writer(workdir: str) -> Any:
    """Returns clu's writer of TensorBoard events into a folder; to be closed."""
    host_tensorflow.load()
    from clu.metric_writers import SummaryWriter

    return SummaryWriter(workdir)


def _finite(value):
    return value if math.isfinite(value) else None


def _drop_lines_after(path, step, rollbacks=()):
    """Removes the lines of later steps and what a killed process left half; returns the last.

    Lines of rollbacks stay; one that its process did not come to write is added.
    """
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            lines = f.readlines()
    kept = []
    last = -1
    for line in lines:
        try:
            at = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith("\n") and last < at <= step and "rollback" not in json.loads(line):
            kept.append(line)
            last = at
    # After what was known when it happened, which is what lies before the step gone back to.
    for back in reversed(rollbacks):
        place = sum(json.loads(line)["step"] <= back.to for line in kept)
        entry = {"step": back.at, "rollback": back.number, "from": back.at, "to": back.to}
        kept.insert(place, json.dumps(entry | {"rule": back.rule, "text": back.text}) + "\n")
    if kept != lines:
        files.write_whole(path, "".join(kept))
    return last


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _device_gib():
    """What the first device says of its memory; nothing on CPUs."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_in_use" not in stats:
        return {}
    peak = stats.get("peak_bytes_in_use", stats["bytes_in_use"])
    used = {"device_gib": stats["bytes_in_use"], "device_peak_gib": peak}
    return {f"speed/{name}": size / 2**30 for name, size in used.items()}


def _memory():
    if gib := _device_gib():
        used, peak = gib.values()
        return f"device memory {used:.2f} GiB (peak {peak:.2f})"
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm", encoding="ascii") as f:
            pages = int(f.read().split()[1])
        return f"process memory {pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.2f} GiB"
    return ""  # Neither the device nor the system tells.
