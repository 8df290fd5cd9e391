"""StableHLO through `jax.export`: the generator for any batch on CPU, CUDA and TPU in one file."""

import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from biggan_jax import files
from biggan_jax.interop import graph
from biggan_jax.interop.frozen import Frozen
from biggan_jax.models import conv, resample

NAME = "stablehlo"
PACKAGES = ()
PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, PARAMETERS, LOADER = "generator.stablehlo", "parameters.npz", "load.py"
USE = """from load import generate  # Needs jax and numpy.

images = generate(z, y, truncation)"""

_LOADER = '''"""The generator beside this file; needs jax and numpy alone."""

import pathlib

import jax
import jax.export
import numpy as np

HERE = pathlib.Path(__file__).parent
CALL = jax.jit(jax.export.deserialize(bytearray((HERE / "{program}").read_bytes())).call)
{parameters}

def generate(z, y, truncation=1.0):
    """Images [N, {size}, {size}, 3] in [-1, 1] for z [N, {z_dim}] and class weights y [N, {k}]."""
    inputs = (np.asarray(x, np.float32) for x in (z, y, truncation))
    return np.asarray(CALL({before}*inputs))
'''
_APART = f"""with np.load(HERE / "{PARAMETERS}") as file:
    PARAMETERS = jax.device_put(dict(file))
"""


class JaxOps:
    """`graph.Ops` in jax.numpy; maps are NHWC."""

    def __init__(self, arrays: Mapping[str, jax.Array]):
        """Takes the frozen arrays, or tracers in their place."""
        self._arrays = arrays

    def weight(self, name: str) -> jax.Array:
        """Returns a frozen array."""
        return jnp.asarray(self._arrays[name])

    constant = staticmethod(jnp.asarray)
    relu = staticmethod(jax.nn.relu)
    rsqrt = staticmethod(jax.lax.rsqrt)
    softmax = staticmethod(jax.nn.softmax)
    images = staticmethod(jnp.tanh)
    up = staticmethod(resample.nearest_up2)
    unpool = staticmethod(resample.unpool2)

    def matmul(self, a: jax.Array, b: jax.Array, transpose_b: bool = False) -> jax.Array:
        """Multiplies."""
        return a @ (b.swapaxes(-1, -2) if transpose_b else b)

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Puts columns beside each other."""
        return jnp.concatenate(parts, axis=1)

    def columns(self, x: jax.Array, start: int, stop: int) -> jax.Array:
        """Returns some columns."""
        return x[:, start:stop]

    def unit(self, x: jax.Array) -> jax.Array:
        """Limits to [0, 1]."""
        return jnp.clip(x, 0, 1)

    def first_map(self, x: jax.Array, channels: int) -> jax.Array:
        """Makes the map that the blocks start from."""
        return x.reshape(-1, 4, 4, channels)

    def spread(self, x: jax.Array, channels: int) -> jax.Array:
        """Makes numbers a channel fit a map."""
        return x.reshape(-1, 1, 1, channels)

    def conv(self, x: jax.Array, place: str) -> jax.Array:
        """Convolves; the plain form, as the program is for all platforms."""
        kernel = self.weight(f"{place}/kernel")
        convolve = conv.conv1x1 if len(kernel) == 1 else conv.conv3x3
        y = convolve(x, kernel, form="plain")
        return y + self.weight(f"{place}/bias") if f"{place}/bias" in self._arrays else y

    def first_channels(self, x: jax.Array, count: int) -> jax.Array:
        """Drops the other channels."""
        return x[..., :count]

    def max_pool(self, x: jax.Array) -> jax.Array:
        """Takes the largest of 2x2 pixels."""
        window = (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")

    def pixels(self, x: jax.Array) -> jax.Array:
        """Makes a row of pixels."""
        return x.reshape(-1, x.shape[1] * x.shape[2], x.shape[3])

    def as_map(self, x: jax.Array, size: int) -> jax.Array:
        """The inverse of `pixels`."""
        return x.reshape(-1, size, size, x.shape[-1])


def write(frozen: Frozen, folder: str, parameters: str = "inside") -> None:
    """Writes the program, its loader and, if they are to be apart, its parameters.

    Args:
      frozen: the generator.
      folder: is there and empty.
      parameters: "inside" the program or "apart" from it, in a .npz of `Frozen.arrays`.
    """
    model, apart = frozen.model, parameters == "apart"
    batch = jax.export.symbolic_shape("batch")[0]
    shapes = ((batch, model["z_dim"]), (batch, model["num_classes"]), ())
    inputs: list[Any] = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def generate(*arguments):
        arrays, (z, y, truncation) = arguments[:-3], arguments[-3:]
        return graph.generator(JaxOps(*(arrays or [frozen.arrays])), frozen, z, y, truncation)

    if apart:
        specs = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in frozen.arrays.items()}
        inputs.insert(0, specs)
        save_arrays(os.path.join(folder, PARAMETERS), frozen.arrays)
    exported = jax.export.export(jax.jit(generate), platforms=PLATFORMS)(*inputs)
    files.write_whole(os.path.join(folder, PROGRAM), bytes(exported.serialize()))
    text = _LOADER.format(
        program=PROGRAM,
        parameters=_APART if apart else "",
        size=model["resolution"],
        z_dim=model["z_dim"],
        k=model["num_classes"],
        before="PARAMETERS, " if apart else "",
    )
    files.write_whole(os.path.join(folder, LOADER), text)


def load(folder: str) -> Callable[..., np.ndarray]:
    """Returns `generate(z, y, truncation)` of the loader in a folder."""
    return runpy.run_path(os.path.join(folder, LOADER))["generate"]


def open_program(folder: str) -> Callable[..., np.ndarray]:
    """As `load`, but runs no Python of the folder: it may be a stranger's."""
    with open(os.path.join(folder, PROGRAM), "rb") as f:
        call = jax.jit(jax.export.deserialize(bytearray(f.read())).call)
    place = os.path.join(folder, PARAMETERS)
    before = []
    if os.path.exists(place):
        with np.load(place) as file:
            before.append(jax.device_put(dict(file)))

    def generate(z, y, truncation):
        inputs = (np.asarray(x, np.float32) for x in (z, y, truncation))
        return np.asarray(call(*before, *inputs))

    return generate


def save_arrays(path: str, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as an uncompressed .npz, which NumPy can map and compresses badly anyway."""
    np.savez(path, **arrays)
