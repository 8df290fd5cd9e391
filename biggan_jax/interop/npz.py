"""The weights alone, for programs that bring their own network: an .npz of flat names."""

import json
import os
from collections.abc import Callable

import jax
import numpy as np

from biggan_jax import files
from biggan_jax.interop import graph, stablehlo
from biggan_jax.interop.frozen import Frozen

NAME = "npz"
PACKAGES = ()
WEIGHTS, MODEL = "generator.npz", "model.json"
USE = """import json
import numpy as np

arrays = dict(np.load("generator.npz"))  # biggan_jax/interop/frozen.py says what has which name,
model = json.load(open("model.json"))  # and biggan_jax/interop/graph.py computes with them."""


def write(frozen: Frozen, folder: str) -> None:
    """Writes `generator.npz`, the arrays of `Frozen`, and `model.json`, its model.

    Args:
      frozen: the generator.
      folder: is there and empty.
    """
    stablehlo.save_arrays(os.path.join(folder, WEIGHTS), frozen.arrays)
    text = json.dumps(frozen.model, indent=2) + "\n"
    files.write_whole(os.path.join(folder, MODEL), text)


def load(folder: str) -> Callable[..., np.ndarray]:
    """Returns `generate(z, y, truncation)` with what lies in a folder."""
    with open(os.path.join(folder, MODEL)) as f:
        model = json.load(f)
    with np.load(os.path.join(folder, WEIGHTS)) as file:
        frozen = Frozen(model, dict(file))

    @jax.jit
    def call(arrays, z, y, truncation):
        return graph.generator(stablehlo.JaxOps(arrays), frozen, z, y, truncation)

    def generate(z, y, truncation):
        inputs = (np.asarray(x, np.float32) for x in (z, y, truncation))
        return np.asarray(call(frozen.arrays, *inputs))

    return generate
