"""Plan against truth: the step time that a run measured beside the plan of its config."""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.parallel import slices
from biggan_jax.plan import bounds, search, text
from biggan_jax.train import report, runs

FILE = "plan.json"


def compare(run: str, **how) -> dict[str, Any]:
    """Plans the config of a run for what it ran on, and writes both beside each other.

    Args:
      run: the folder of a run that has reported how fast it is; `plan.json` is written there.
      **how: the other arguments of `search.plan`.

    Returns:
      plan, what `search.plan` says; measured: step_seconds (the median of the times between two
      progress lines, with all that a run does between steps), reports (how many), device_kind,
      devices, processes and slices; and ratio, measured over the plan's largest bound, None where
      the plan says that it does not fit.

    Raises:
      ConfigError: if the folder is no run, has not reported yet, or ran on what cannot be planned.
    """
    config = ml_collections.ConfigDict(runs.read_config(run))
    config.preset = ""  # What it chose is in the config.
    seen = _measured(run)
    row = search.plan(config, slices.find(_name(run, seen)), **how)
    ratio = seen["step_seconds"] / row["step_seconds"] if row["fits"] else None
    answer = {"plan": row, "measured": seen, "ratio": ratio}
    files.write_whole(os.path.join(run, FILE), json.dumps(answer, indent=2) + "\n")
    return answer


def as_text(answer: Mapping[str, Any]) -> str:
    """Returns what `compare` found, for people."""
    row, seen = answer["plan"], answer["measured"]
    lines = [
        f"measured on {seen['devices']} x {seen['device_kind']} in {seen['processes']} process(es):"
        f" {1e3 * seen['step_seconds']:.2f} ms a step (median of {seen['reports']} reports)"
    ]
    if answer["ratio"]:
        lines.append(
            f"that is {answer['ratio']:.2f} times the bound that rules"
            f" ({bounds.NAMES[row['ruling']]}, {1e3 * row['step_seconds']:.2f} ms)"
        )
    return "\n\n".join([text.text({"plans": [row], "tried": {}}), "\n".join(lines)])


def _measured(run):
    try:
        with open(os.path.join(run, report.STEP_TIME), encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise config_lib.ConfigError(
            f"--run={run}: the run has not measured how fast it is (no {report.STEP_TIME}); it does"
            " with its second progress line."
        ) from None


def _name(run, seen):
    """The name of what a run ran on, as `slices.find` takes it."""
    chip, kind = slices.of_device(seen["device_kind"]), seen["device_kind"]
    if chip is None:
        raise config_lib.ConfigError(
            f"--run={run}: it ran on {kind!r}, for which there are no plans; there are for TPUs and"
            " for A100, H100 and H200."
        )
    if chip.platform == "gpu":
        return f"gpu:{chip.name}x{seen['devices']}"
    cores = seen["devices"] // seen["slices"] * chip.cores // chip.devices
    times = "" if seen["slices"] == 1 else f"x{seen['slices']}"
    return f"{chip.name}-{cores if chip.named_by_cores else cores // chip.cores}{times}"
