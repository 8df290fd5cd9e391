"""What a training step has to compute: FLOPs of the networks as written, and those needed.

A multiplication and an addition are two. "As written" takes every layer where the paper puts it;
"needed" takes the exact forms with fewer products: a 3x3 beside a change of size by two as 2x2
phases (16 products for 36), a 1x1 beside one where there are fewer pixels (1 for 4). Winograd's
forms, which trade products for rounding, are not counted as a need. Counted are convolutions, dense
layers and attention; what a step does once whatever the batch (power iterations, orthogonal
regularisation, Adam, EMA) is not, and neither is what rematerialisation computes again.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import attention, networks, ops


class Flops(NamedTuple):
    """FLOPs in two countings."""

    as_written: float
    needed: float

    def __add__(self, other):
        return Flops(self.as_written + other.as_written, self.needed + other.needed)

    def times(self, factor: float) -> "Flops":
        """Returns `factor` times both."""
        return Flops(self.as_written * factor, self.needed * factor)


def forward(config: Mapping[str, Any]) -> tuple[Flops, Flops]:
    """Returns the FLOPs of one image through G and of one image through D, forwards.

    Args:
      config: resolved.
    """
    g, d = networks.build(config)
    m = config["model"]
    z, labels = jnp.zeros((1, m["z_dim"])), jnp.zeros((1,), jnp.int32)
    image = jnp.zeros((1, m["resolution"], m["resolution"], 3))
    return (
        _count(lambda: g.init(jax.random.key(0), z, labels, train=False)),
        _count(lambda: d.init(jax.random.key(0), image, labels)),
    )


def step(config: Mapping[str, Any]) -> Flops:
    """Returns the FLOPs of a whole step over all devices.

    A backward pass costs twice its forward pass, once for what is before it and once for weights.
    A D update makes a fake, then takes fake and real through D both ways; a G update goes through
    both networks both ways, but for D's weights.

    Args:
      config: resolved.
    """
    g, d = forward(config)
    d_update, g_update = g + d.times(2 * 3), g.times(3) + d.times(2)
    return (d_update.times(config["d_steps"]) + g_update).times(config["batch_size"])


def _count(run) -> Flops:
    seen: list[Flops] = []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__":
            module: Any = context.module
            x: Any = args[0] if args else None
            if isinstance(module, ops.SpectralConv):
                seen.append(_convolution(module, x))
            elif isinstance(module, ops.SpectralDense):
                seen.append(_alike(2 * x.shape[0] * x.shape[-1] * module.features))
            elif isinstance(module, attention.Attention):
                b, h, w, c = x.shape
                # Products with keys and with values; its 1x1 convolutions are modules themselves.
                seen.append(_alike(2 * b * (h * w) * (h * w // 4) * (c // 8 + c // 2)))
        return call(*args, **kwargs)

    def run_noted():
        with nn.intercept_methods(note):
            return run()

    jax.eval_shape(run_noted)
    return sum(seen[1:], seen[0])


def _alike(flops):
    return Flops(flops, flops)


def _convolution(module, x):
    b, h, w, c = x.shape
    features = module.features if module.keep is None else min(module.keep, module.features)
    products = 2 * b * h * w * c * features * module.size**2
    if module.resample in ("up", "unpool"):
        products *= 4
    if module.resample in ("up", "down"):
        return Flops(products, products * (16 / 36 if module.size == 3 else 1 / 4))
    return Flops(products, products)
