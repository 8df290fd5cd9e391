"""A generator frozen for other programs: plain arrays, spectral norm folded in, one flat dict."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.interop import layout
from biggan_jax.interop.bundle import Bundle
from biggan_jax.models import networks

TRUNCATIONS = "truncations"


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What `graph.generator` computes with.

    Attributes:
      model: a resolved `config.model`, for float32.
      arrays: float32, by flat names: MODULE/kernel (HWIO or [in, out]) and MODULE/bias of
        convolutions and dense layers, divided by their sigma; `shared/embedding` [K, S]; of a
        batch norm BN/gain and BN/bias, matrices [D, C] on the condition or vectors [C] in the last
        one, BN/mean and BN/var [R, C], one row a truncation; attention's gamma; `truncations` [R].
    """

    model: dict[str, Any]
    arrays: dict[str, np.ndarray]


def exact(model: dict[str, Any]) -> dict[str, Any]:
    """Returns the model as it is exported: the same one, computed in float32."""
    return {**model, "dtype": "float32", "remat": False}


def freeze(bundle: Bundle) -> Frozen:
    """Freezes the generator of a bundle that is sampled."""
    model, tensors = exact(bundle.model), bundle.generator()
    kernels = _normalized(model, tensors)
    arrays = {}
    for place, value in tensors.items():
        collection, *module, leaf = place.split("/")
        if collection != "params":
            continue
        value = np.asarray(kernels.get("/".join(module), value) if _is_matrix(leaf) else value)
        if module[-1] in ("gain", "bias"):  # A projection of the condition, or a class table.
            leaf = module.pop()
        if module == ["out_conv"]:
            value = value[..., :3]  # Nobody sees the other channels; sigma was that of all.
        arrays["/".join([*module, leaf])] = np.array(value, np.float32, order="C")
    table = bundle.part("table")
    for place, value in tensors.items():
        if place.startswith("batch_stats/"):
            rows = table[place] if table else value[None]
            arrays[place.removeprefix("batch_stats/")] = np.asarray(rows, np.float32)
    arrays[TRUNCATIONS] = np.asarray(bundle.grid if table else [1.0], np.float32)
    return Frozen(model, dict(sorted(arrays.items())))


def _is_matrix(leaf):
    return leaf in ("kernel", "embedding")


def _normalized(model, tensors):
    """{module: kernel / sigma} as the network itself computes them, by whatever rule."""
    generator, _ = networks.build({"model": model})

    def kernels(variables):
        found = {}

        def watch(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.method_name == "normalized":
                found["/".join(context.module.path)] = result
            return result

        z, labels = jnp.zeros((1, model["z_dim"])), jnp.zeros((1,), jnp.int32)
        with nn.intercept_methods(watch):
            generator.apply(variables, z, labels, train=False)
        return found

    return jax.jit(kernels)(layout.unflatten(tensors))
