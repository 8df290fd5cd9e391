"""Device memory of a training step by parts, estimated where no compiler for the device is at hand.

Exact are the state (shapes, cut as ZeRO-1 and FSDP cut them), the batch, and what the backward pass
keeps of the forward pass, as JAX's own differentiation says it, rematerialisation included; weights
that FSDP gathers are in it. Not known without the compiler is what it fuses away, copies and lays
out otherwise: the estimate adds a tenth, and a fixed reserve for the driver's context and the
libraries' workspaces. It has not been measured on a GPU yet.
"""

import bisect
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from biggan_jax.gan import losses
from biggan_jax.gan import state as state_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.models import networks
from biggan_jax.parallel import slices

RESERVE = 1.5 * slices.GIB  # The CUDA context, and workspaces of cuDNN and cuBLAS.
MARGIN = 0.1  # Of all the rest: copies and fragments.
_MOST = 2**20  # Images of a micro-batch on a device; more is not looked for.
# What traces found; they take seconds, and depend neither on the batch nor on the devices.
_traced: dict[Any, tuple[Any, list[tuple[int, int]]]] = {}


class Estimator:
    """Memory of one device for any micro-batch, by four traces of a config's networks.

    Attributes:
      parameters: {"G", "D"}: how many.
    """

    def __init__(self, config: Mapping[str, Any], platform: str = "gpu", hosts: int = 1):
        """Traces the networks of a config, as `config.resolve` gives it, at one and two images.

        The devices of each of `hosts` have all parts of the state that `parallel` cuts up.
        """
        devices, rounds, pixels = config["device_count"], config["d_steps"], 3 * _side(config) ** 2
        shape, names = (hosts, devices // hosts), ("slice", "data")
        mesh = AbstractMesh(shape, names, axis_types=(AxisType.Auto,) * 2)
        key = (config["model"], config["optim"], platform)
        if key not in _traced:
            _traced[key] = _trace(config, platform)
        shapes, self._kept = _traced[key]
        state = step_lib.abstract_state(config, mesh, shapes=shapes)
        count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
        self.parameters = {"G": count(state.g_params), "D": count(state.d_params)}
        self._images = config["batch_size"] // devices
        # Pixels and labels of all D updates, and the pixels of one as floats.
        self._image = rounds * (pixels + 4) + 4 * pixels
        self._state = device_bytes(state)
        self._gradients = max(_bytes(state.g_params), _bytes(state.d_params))

    def parts(self, images: int) -> dict[str, int]:
        """Returns {part: bytes} of a device.

        Args:
          images: of a micro-batch, on one device; more than the config has make a larger batch.

        Returns:
          state (parameters, moments, EMA, statistics; a device's part of them), batch, gradients
          (whole, before they are summed over devices), activations (kept for the backward pass of
          the larger of the two updates), reserve, and total.
        """
        found = {
            "state": self._state,
            "batch": max(images, self._images) * self._image,
            "gradients": self._gradients,
            "activations": max(fixed + images * each for fixed, each in self._kept),
        }
        found["reserve"] = int(RESERVE + MARGIN * sum(found.values()))
        return found | {"total": sum(found.values())}

    def largest(self, memory: float) -> int:
        """Returns the most images of a micro-batch on a device of so many bytes; 0 if none fits."""
        total = lambda images: self.parts(images)["total"]  # noqa: E731
        return bisect.bisect_right(range(1, _MOST + 1), memory, key=total)


def device_bytes(tree: Any) -> int:
    """Returns the bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _side(config):
    return config["model"]["resolution"]


def _trace(config, platform):
    """Shapes of the state, and (bytes, bytes an image) that D's and G's backward passes keep."""
    state = jax.eval_shape(lambda: state_lib.init(config))
    one, two = (_kept(config, platform, state, images) for images in (1, 2))
    # Weights are kept once whatever the batch: a line through two points.
    return state, [(2 * a - b, b - a) for a, b in zip(one, two, strict=True)]


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
