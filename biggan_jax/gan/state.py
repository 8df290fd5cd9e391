"""The whole state of a run: what a checkpoint holds and a step maps to the next."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from biggan_jax.models import networks

Tree = Any


class GanState(flax.struct.PyTreeNode):
    """Both networks, their optimizers and G's average.

    The EMA generator is (`ema_params`, `ema_batch_stats`, `g_spectral`): u is copied, not averaged,
    so it needs no place of its own. Random draws and the place in the data follow from `step`.
    """

    step: jax.Array  # int32: finished steps.
    g_params: Tree
    g_batch_stats: Tree
    g_spectral: Tree
    g_opt: Tree
    d_params: Tree
    d_spectral: Tree
    d_opt: Tree
    ema_params: Tree
    ema_batch_stats: Tree


def optimizer(config: Mapping[str, Any], learning_rate: float) -> optax.GradientTransformation:
    """Adam with eps outside the root, after bias correction (spec section 11.6).

    With beta1 = 0 the first moment is the gradient, so none is kept. Over the first
    `optim.warmup` updates the learning rate rises in equal parts; Adam's first updates move every
    weight by the whole rate, however small its gradient.
    """
    o = config["optim"]
    rate: float | optax.Schedule = learning_rate
    if o["warmup"]:
        rate = lambda count: learning_rate * jnp.minimum(1.0, (count + 1) / o["warmup"])  # noqa: E731
    if o["beta1"] == 0:
        rms = optax.scale_by_rms(
            decay=o["beta2"], eps=o["eps"], eps_in_sqrt=False, bias_correction=True
        )
        return optax.chain(rms, optax.scale_by_learning_rate(rate))
    return optax.adam(rate, b1=o["beta1"], b2=o["beta2"], eps=o["eps"])


def init(config: Mapping[str, Any]) -> GanState:
    """Makes the state before the first step, a function of `config.seed`.

    Jit it with `out_shardings`, or hand it to `jax.eval_shape`.
    """
    m = config["model"]
    g, d = networks.build(config)
    g_key, d_key = jax.random.split(jax.random.key(config["seed"]))
    labels = jnp.zeros((1,), jnp.int32)
    z = jnp.zeros((1, m["z_dim"]), jnp.float32)
    image = jnp.zeros((1, m["resolution"], m["resolution"], 3), jnp.float32)
    g_vars = g.init(g_key, z, labels, train=False)
    d_vars = d.init(d_key, image, labels)
    o = config["optim"]
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731  One buffer can't be donated twice.
    return GanState(
        step=jnp.zeros((), jnp.int32),
        g_params=g_vars["params"],
        g_batch_stats=g_vars["batch_stats"],
        g_spectral=g_vars["spectral"],
        g_opt=optimizer(config, o["g_lr"]).init(g_vars["params"]),
        d_params=d_vars["params"],
        d_spectral=d_vars["spectral"],
        d_opt=optimizer(config, o["d_lr"]).init(d_vars["params"]),
        ema_params=copy(g_vars["params"]),
        ema_batch_stats=copy(g_vars["batch_stats"]),
    )
