"""Reading a run folder: its config and its checkpoints."""

import json
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import checkpoint

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DATA = "data_report.json"
STATUS = "status.json"


def read_config(run: str) -> ml_collections.FrozenConfigDict:
    """Returns the resolved config of a run folder.

    Raises:
      ConfigError: if the folder is none.
    """
    path = os.path.join(run, CONFIG)
    if not os.path.isfile(path):
        raise config_lib.ConfigError(f"{run!r} is not a run folder: it holds no {CONFIG}.")
    with open(path) as f:
        return config_lib.from_json(f.read())


def phase(run: str) -> str | None:
    """Returns what a run says it does, as of `Reporter.status`; None where it has not said."""
    try:
        with open(os.path.join(run, STATUS)) as f:
            return json.load(f)["phase"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_state(run: str, step: int | None = None):
    """Reads a run's latest good checkpoint, or that of `step`, onto one device.

    Damaged ones that are skipped are named on stderr.

    Returns:
      The resolved config, the mesh of one device and the state.

    Raises:
      ConfigError: if the folder is no run, holds no such checkpoint or only damaged ones, or its
        config describes another model than the checkpoint's.
    """
    config = read_config(run)
    mesh = mesh_lib.make_mesh(1)
    with checkpoint.Checkpoints(os.path.join(run, CHECKPOINTS), keep=None) as saved:
        for number, content in saved.manifests().items():
            changed = changes_since(content["meta"], config)
            changed = {k: v for k, v in changed.items() if k.startswith("model.")}
            if changed:
                raise config_lib.ConfigError(
                    f"{os.path.join(run, CONFIG)!r} was changed after the checkpoint of step"
                    f" {number} had been made with {changes_text(changed)}."
                )
        state, _ = saved.restore(step_lib.abstract_state(config, mesh), step)
    return config, mesh, state


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns `{dotted key: (value before, value now)}` of all keys in which two configs differ."""
    old, new = config_lib.flatten(before), config_lib.flatten(now)
    return {key: (old[key], value) for key, value in new.items() if old[key] != value}


def changes_since(meta: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns `changes` from the config in a checkpoint's `meta`; none if it holds no config."""
    if meta.get("config_sha256") in (None, config_lib.fingerprint(now)):
        return {}
    return changes(config_lib.from_json(json.dumps(meta["config"])), now)


def changes_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Returns changes as text: `optim.g_lr=0.1, and now it is 0.2; ...`."""
    return "; ".join(f"{k}={old!r}, and now it is {new!r}" for k, (old, new) in changed.items())


def class_names(run: str) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained on, from its data report."""
    read_config(run)
    path = os.path.join(run, DATA)
    try:
        with open(path) as f:
            return tuple(json.load(f)["class_names"])
    except (OSError, ValueError, KeyError, TypeError):
        raise config_lib.ConfigError(f"{path!r} is missing or damaged: train writes it.") from None
