"""A checkpoint of a run as a bundle."""

from typing import Any

import numpy as np

from biggan_jax.gan.state import GanState
from biggan_jax.interop import layout
from biggan_jax.interop.bundle import Bundle
from biggan_jax.train import runs

# Where the tensors of a bundle's networks lie in a state. The average shares G's u.
FIELDS = {
    "g/params": "g_params",
    "g/batch_stats": "g_batch_stats",
    "g/spectral": "g_spectral",
    "ema/params": "ema_params",
    "ema/batch_stats": "ema_batch_stats",
    "d/params": "d_params",
    "d/spectral": "d_spectral",
}


def tensors(state: GanState) -> dict[str, Any]:
    """Returns a state's networks as `{name: array}`, named as in a bundle; no `ema/spectral`."""
    flat: dict[str, Any] = {}
    for prefix, field in FIELDS.items():
        flat |= layout.flatten(getattr(state, field), prefix)
    return flat


def to_bundle(run: str, step: int | None = None) -> Bundle:
    """Reads a run as a bundle: both generators and D, without the optimizers.

    Args:
      run: a run folder.
      step: which checkpoint; None for the latest.

    Raises:
      ConfigError: if the folder is no run or holds no such checkpoint.
    """
    config, _, state = runs.load_state(run, step)
    bundle = Bundle(
        name=config.name,
        model={k: list(v) if isinstance(v, tuple) else v for k, v in config.model.items()},
        tensors={name: np.asarray(array) for name, array in tensors(state).items()},
        standing_images=config.sample.standing_passes * config.sample.standing_batch,
        class_names=runs.class_names(run),
        source={
            "format": "biggan-jax run",
            "files": {},
            "itr": int(state.step),
            "notes": [
                f"Checkpoint of step {int(state.step):,}; a step is {config.d_steps} updates of D"
                f" and one of G on {config.batch_size:,} images each."
            ],
        },
    )
    bundle.add("ema", {k: v for k, v in bundle.part("g").items() if k.startswith("spectral/")})
    return bundle
