"""What a config would make (`--dry-run`) and what a run folder holds (`biggan inspect`)."""

import json
import os
from typing import Any

import jax
import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.interop import bundle
from biggan_jax.train import checkpoint, report, runs
from biggan_jax.train import digest as digest_lib

# What models from elsewhere may do differently, besides sizes.
CONVENTIONS = (
    "condition_order",
    "sigma_rule",
    "rgb_channels",
    "compare_gan",
    "bn_eps",
    "out_bn_eps",
    "sn_eps",
)


def dry_run(config: ml_collections.ConfigDict) -> str:
    """Returns the resolved config and the parameter tables as text; makes no array.

    Raises:
      ConfigError: if the config cannot be used.
    """
    # Asking JAX for its devices would start the backend; a dry run can do without where told.
    count = config.device_count or jax.device_count()
    resolved = config_lib.resolve(config, count)
    state = jax.eval_shape(lambda: state_lib.init(resolved))
    parts = [config_lib.to_json(resolved)]
    for name, tree in (("G", state.g_params), ("D", state.d_params)):
        parts += [f"{name}:", report.parameter_table(tree), ""]
    g, d = parameter_count(state.g_params), parameter_count(state.d_params)
    return "\n".join([*parts, f"G {g:,}", f"D {d:,}", f"G + D {g + d:,} parameters"])


def parameter_count(tree: Any) -> int:
    """Returns the number of values in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def inspect(run: str, digest: bool = False, step: int | None = None) -> dict[str, Any]:
    """Returns what is in a run folder.

    Args:
      run: the folder.
      digest: read the checkpoint and hash its state.
      step: which checkpoint; None for the latest.

    Returns:
      name, step (of the latest checkpoint, the one asked for, or the one that was hashed; None if
      there is none), checkpoints, num_steps, parameters, status, last_metrics, sheets and, where
      asked for, digest.

    Raises:
      ConfigError: if the folder is no run or has no such checkpoint.
    """
    config = runs.read_config(run)
    state = jax.eval_shape(lambda: state_lib.init(config))
    folder = os.path.join(run, runs.CHECKPOINTS)
    steps = []
    if os.path.isdir(folder):
        with checkpoint.Checkpoints(folder, keep=None) as saved:
            steps = saved.steps()
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise config_lib.ConfigError(
            f"{run!r}: there is no checkpoint of step {step}; there are {there}."
        )
    pictures = os.path.join(run, "samples")
    facts = {
        "name": config.name,
        "step": step if step is not None else steps[-1] if steps else None,
        "num_steps": config.num_steps,
        "checkpoints": steps,
        "parameters": {
            "G": parameter_count(state.g_params),
            "D": parameter_count(state.d_params),
        },
        "data": config.data.name,
        "resolution": config.model.resolution,
        "status": _json(os.path.join(run, "status.json")),
        "last_metrics": _last_line(os.path.join(run, "metrics.jsonl")),
        "sheets": sorted(os.listdir(pictures)) if os.path.isdir(pictures) else [],
    }
    if digest:
        _, _, restored = runs.load_state(run, step)
        facts |= {"step": int(restored.step), "digest": digest_lib.digest(restored)}
    return facts


def inspect_bundle(folder: str, digest: bool = False) -> dict[str, Any]:
    """Returns what is in a bundle: name, model, parameters, truncation, source, digest.

    Args:
      folder: the bundle; every tensor is checked.
      digest: hash the tensors.

    Raises:
      ConfigError: if it is damaged.
    """
    found = bundle.read(folder)
    facts = {
        "name": found.name,
        "model": found.model,
        "parameters": {
            text: sum(v.size for k, v in found.part(part).items() if k.startswith("params/"))
            for part, text in (("g", "G"), ("ema", "EMA of G"), ("d", "D"))
            if found.part(part)
        },
        "truncation": found.truncation,
        "truncations_with_statistics": len(found.grid),
        "source": found.source,
    }
    if digest:
        facts["digest"] = digest_lib.digest(found.tensors)
    return facts


def bundle_text(facts: dict[str, Any]) -> str:
    """Returns what `inspect_bundle` found, for people."""
    model = facts["model"]
    counts = ", ".join(f"{name} {count:,}" for name, count in facts["parameters"].items())
    lines = [
        f"{facts['name']}: a bundle, {model['arch']} at {model['resolution']} px,"
        f" {model['num_classes']:,} classes",
        f"parameters: {counts}",
        f"truncation: {facts['truncation']}"
        f" ({facts['truncations_with_statistics'] or 'no'} truncations with statistics)",
        ", ".join(f"{key} {model[key]}" for key in CONVENTIONS),
        f"from: {facts['source'].get('format', 'not known')}",
        *(f"note: {note}" for note in facts["source"].get("notes", ())),
    ]
    if "digest" in facts:
        lines.append(f"digest: {facts['digest']}")
    return "\n".join(lines)


def text(facts: dict[str, Any]) -> str:
    """Returns what `inspect` found, for people."""
    g, d = facts["parameters"]["G"], facts["parameters"]["D"]
    lines = [
        f"{facts['name']}: {facts['data']} at {facts['resolution']} px, G {g:,} and D {d:,}"
        " parameters",
        f"checkpoints: {', '.join(f'{s:,}' for s in facts['checkpoints']) or 'none'}"
        f" of {facts['num_steps']:,} steps",
    ]
    if facts["status"]:
        status = facts["status"]
        lines.append(f"phase: {status['phase']} at step {status['step']:,}")
    if facts["last_metrics"]:
        numbers = {k: v for k, v in facts["last_metrics"].items() if v is not None}
        lines.append("last report: " + ", ".join(f"{k} {v:,.4g}" for k, v in numbers.items()))
    lines.append(f"sheets: {', '.join(facts['sheets']) or 'none'}")
    if "digest" in facts:
        lines.append(f"digest of step {facts['step']:,}: {facts['digest']}")
    return "\n".join(lines)


def _json(path):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


def _last_line(path):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        for line in reversed(f.read().splitlines()):
            try:
                return json.loads(line)
            except ValueError:  # A killed process left half a line.
                continue
    return None
