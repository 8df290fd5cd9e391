"""Plan against truth: the step time that a run measured beside the plan of its config."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import bounds, search, text

FILE = "plan.json"  # In the run folder.


def compare(run: str, config: Mapping[str, Any], seen: Mapping[str, Any], **how) -> dict[str, Any]:
    """Plans the config of a run for what it ran on.

    Args:
      run: the run folder, for messages.
      config: the run's, resolved.
      seen: step_seconds, and device_kind, devices and slices of what the run ran on.
      **how: the other arguments of `search.plan`.

    Returns:
      plan, what `search.plan` says; measured, which is `seen`; bound, the name of the plan's
      largest, bound_seconds and ratio, measured over it; these three None where a compile says
      that the step does not fit.

    Raises:
      ConfigError: if the run ran on what cannot be planned for.
    """
    where = _where(run, seen)
    planned = ml_collections.ConfigDict(config)
    planned.preset = ""  # What it chose is in the config.
    row = search.plan(planned, where, **how)
    answer: dict[str, Any] = {"plan": row, "measured": dict(seen)}
    # That GPUs have too little memory is an estimate: the run tells otherwise.
    if not row["fits"] and not row["estimated"]:
        return answer | {"bound": None, "bound_seconds": None, "ratio": None}
    found = bounds.seconds(row, where)
    name = max(found, key=lambda name: found[name])
    ratio = seen["step_seconds"] / found[name]
    return answer | {"bound": name, "bound_seconds": found[name], "ratio": ratio}


def as_text(answer: Mapping[str, Any]) -> str:
    """Returns what `compare` found, for people."""
    seen = answer["measured"]
    lines = [
        f"measured on {seen['devices']} x {seen['device_kind']} in {seen['processes']} process(es):"
        f" {1e3 * seen['step_seconds']:.2f} ms a step (median of {seen['reports']} reports)"
    ]
    if answer["ratio"]:
        lines.append(
            f"that is {answer['ratio']:.2f} times the bound that rules"
            f" ({bounds.NAMES[answer['bound']]}, {1e3 * answer['bound_seconds']:.2f} ms)"
        )
    return "\n\n".join([text.text({"plans": [answer["plan"]], "tried": {}}), "\n".join(lines)])


def _where(run, seen):
    """The slice that a run ran on."""
    chip, kind = slices.of_device(seen["device_kind"]), seen["device_kind"]
    if chip is None:
        raise config_lib.ConfigError(
            f"--run={run}: it ran on {kind!r}, for which there are no plans; there are for TPUs and"
            " for A100, H100 and H200."
        )
    chips = seen["devices"] // chip.devices
    name = f"gpu:{chip.name}x{chips}"
    if chip.platform == "tpu":
        each = chips // seen["slices"] * (chip.cores if chip.named_by_cores else 1)
        name = f"{chip.name}-{each}" + (f"x{seen['slices']}" if seen["slices"] > 1 else "")
    try:
        return slices.find(name)
    except config_lib.ConfigError:
        raise config_lib.ConfigError(
            f"--run={run}: it ran on {seen['devices']} devices {kind!r}, which are no whole slices;"
            " name one, with the config, by --slice and --config."
        ) from None
