"""Device memory of a training step by parts, estimated where no compiler for the device is at hand.

Exact are the state (shapes) and what the backward pass keeps of the forward pass, as JAX's own
differentiation says it, rematerialisation included. Not known without the compiler is what it fuses
away, copies and lays out otherwise: the estimate adds a tenth, and a fixed reserve for the driver's
context and the libraries' workspaces. It has not been measured on a GPU yet.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from biggan_jax.gan import losses
from biggan_jax.gan import state as state_lib
from biggan_jax.models import networks
from biggan_jax.parallel import slices

RESERVE = 1.5 * slices.GIB  # The CUDA context, and workspaces of cuDNN and cuBLAS.
MARGIN = 0.1  # Of all the rest: copies and fragments.


class Estimator:
    """Memory of one device for any micro-batch, by four traces of a config's networks."""

    def __init__(self, config: Mapping[str, Any], platform: str = "gpu"):
        """Traces the networks of a resolved config at one and at two images a device."""
        self._state = jax.eval_shape(lambda: state_lib.init(config))
        one, two = (_kept(config, platform, self._state, images) for images in (1, 2))
        # Weights are kept once whatever the batch: a line through two points.
        self._kept = [(2 * a - b, b - a) for a, b in zip(one, two, strict=True)]

    def parts(self, images: int) -> dict[str, int]:
        """Returns {part: bytes} of a device.

        Args:
          images: of a micro-batch, on one device.

        Returns:
          state (parameters, moments, EMA, statistics), gradients, activations (kept for the
          backward pass of the larger of the two updates), reserve, and total.
        """
        s = self._state
        kept = max(fixed + images * each for fixed, each in self._kept)
        found = {
            "state": _bytes(s),
            "gradients": max(_bytes(s.g_params), _bytes(s.d_params)),
            "activations": kept,
        }
        found["reserve"] = int(RESERVE + MARGIN * sum(found.values()))
        return found | {"total": sum(found.values())}


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _kept(config, platform, state, images):
    """Bytes that the backward passes of a D update and of a G update keep of their forward ones."""
    g, d = networks.build(config, platform)
    m = config["model"]
    z, labels = jnp.zeros((images, m["z_dim"])), jnp.zeros((images,), jnp.int32)
    pairs = jnp.zeros((2 * images, m["resolution"], m["resolution"], 3))

    def judge(params, pictures, labels):
        variables = {"params": params, "spectral": state_like(state.d_spectral)}
        return d.apply(variables, pictures, labels, mutable=["spectral"])[0]

    def state_like(shapes):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def d_loss(params):
        logits = judge(params, pairs, jnp.concatenate([labels, labels]))
        return sum(losses.d_hinge(logits[0::2], logits[1::2]))

    def g_loss(params, d_params):
        variables = {
            "params": params,
            "batch_stats": state_like(state.g_batch_stats),
            "spectral": state_like(state.g_spectral),
        }
        fake, _ = g.apply(variables, z, labels, train=True, mutable=["batch_stats", "spectral"])
        return losses.g_hinge(judge(d_params, fake, labels))

    of_d = jax.eval_shape(lambda p: jax.vjp(d_loss, p)[1], state.d_params)
    of_g = jax.eval_shape(
        lambda p, q: jax.vjp(lambda p: g_loss(p, q), p)[1], state.g_params, state.d_params
    )
    return _bytes(of_d), _bytes(of_g)


def micro_batches(config: Mapping[str, Any], devices: int) -> list[int]:
    """Returns the accumulations that cut a config's batch evenly over devices, few ones first."""
    batch = config["batch_size"]
    return [a for a in range(1, batch + 1) if batch % (a * devices) == 0]
