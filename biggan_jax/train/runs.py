"""Reading a run folder: its config and its checkpoints."""

import json
import os

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import checkpoint

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
DATA = "data_report.json"


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


def load_state(run: str, step: int | None = None):
    """Reads a run's latest checkpoint, or that of `step`, onto one device.

    Returns:
      The resolved config, the mesh of one device and the state.

    Raises:
      ConfigError: if the folder is no run or holds no such checkpoint.
    """
    config = read_config(run)
    mesh = mesh_lib.make_mesh(1)
    with checkpoint.Checkpoints(os.path.join(run, CHECKPOINTS), keep=None) as saved:
        state, _ = saved.restore(step_lib.abstract_state(config, mesh), step)
    return config, mesh, state


def class_names(run: str) -> tuple[str, ...]:
    """Returns the names of the classes that a run was trained on, from its data report."""
    read_config(run)
    path = os.path.join(run, DATA)
    try:
        with open(path) as f:
            return tuple(json.load(f)["class_names"])
    except (OSError, ValueError, KeyError, TypeError):
        raise config_lib.ConfigError(f"{path!r} is missing or damaged: train writes it.") from None
