"""A generator made ready for sampling: spectral norm divided into the weights once, classes mixed.

The networks find the sigma of every layer in every call, and look classes up by number. Sampling
calls one generator many times and walks between classes. So the two methods that do these things
are intercepted (Flax's `nn.intercept_methods`), and the networks stay as they are trained.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import ops

_LEAF = {ops.SpectralConv: "kernel", ops.SpectralDense: "kernel", ops.SpectralEmbed: "embedding"}


def fold(generator: nn.Module, weights: Mapping[str, Any]) -> Any:
    """Divides every spectrally normalised kernel by its sigma.

    Args:
      generator: called as `(z, labels, train)`, with attributes `z_dim` and `num_classes`.
      weights: `{"params": tree, "spectral": tree}`.

    Returns:
      Parameters for `apply`, of the shapes of `weights["params"]`.
    """
    found = {}

    def record(method, args, kwargs, context):
        result = method(*args, **kwargs)
        if context.method_name == "normalized":
            found[(*context.module.path, _LEAF[type(context.module)])] = result
        return result

    def call(variables):
        found.clear()
        z, labels = jnp.zeros((1, generator.z_dim)), jnp.zeros(1, jnp.int32)
        # The statistics do not matter here, but a module wants to read some.
        with nn.intercept_methods(record):
            generator.apply(variables, z, labels, train=False, mutable=["batch_stats"])
        return dict(found)

    kernels = jax.jit(call)({k: weights[k] for k in ("params", "spectral")})
    return _replaced(weights["params"], kernels, ())


def _replaced(tree, kernels, path):
    if not isinstance(tree, Mapping):
        return kernels.get(path, tree)
    return {key: _replaced(value, kernels, (*path, key)) for key, value in tree.items()}


def apply(
    generator: nn.Module, params: Any, statistics: Any, z: jax.Array, mix: jax.Array
) -> jax.Array:
    """Generates images with stored BN statistics.

    Args:
      generator: as in `fold`.
      params: of `fold`.
      statistics: `batch_stats`.
      z: [B, z_dim].
      mix: [B, K] weights of the classes; each class table gives the weighted sum of its rows. A
        single 1 in a row is that class.

    Returns:
      [B, H, W, 3] in [-1, 1], float32.
    """

    def ready(method, args, kwargs, context):
        if context.method_name == "normalized":
            return args[0]
        if isinstance(context.module, ops.Embed) and context.method_name == "__call__":
            table: Any = context.module.get_variable("params", "embedding")
            return jnp.matmul(mix, table, precision=jax.lax.Precision.HIGHEST)
        return method(*args, **kwargs)

    variables = {"params": params, "batch_stats": statistics}
    with nn.intercept_methods(ready):
        labels = jnp.zeros(len(mix), jnp.int32)  # Their shape tells batch norm what it is given.
        images: Any = generator.apply(variables, z, labels, train=False)
    return images
