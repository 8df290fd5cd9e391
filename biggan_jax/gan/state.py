"""The whole state of a run: what a checkpoint holds and a step maps to the next."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib

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


def optimizer(
    config: Mapping[str, Any], learning_rate: float, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """Adam with eps outside the root, after bias correction (spec section 11.6).

    With beta1 = 0 the first moment is the gradient, so none is kept. Over the first
    `optim.warmup` updates the learning rate rises in equal parts; Adam's first updates move every
    weight by the whole rate, however small its gradient.

    Its state is a tuple that begins with the moments and their count.

    Args:
      config: resolved; its `optim` part is read.
      learning_rate: after the warm-up.
      frozen: modules at the top of the tree whose parameters stay as they are.
    """
    o = config["optim"]
    rate: float | optax.Schedule = learning_rate
    if o["warmup"]:
        rate = lambda count: learning_rate * jnp.minimum(1.0, (count + 1) / o["warmup"])  # noqa: E731
    if o["beta1"] == 0:
        adam = optax.scale_by_rms(
            decay=o["beta2"], eps=o["eps"], eps_in_sqrt=False, bias_correction=True
        )
    else:
        adam = optax.scale_by_adam(b1=o["beta1"], b2=o["beta2"], eps=o["eps"])
    parts = [adam, optax.scale_by_learning_rate(rate)]
    if frozen:
        mask = lambda tree: jax.tree.map_with_path(lambda path, _: path[0].key in frozen, tree)  # noqa: E731
        parts.append(optax.masked(optax.set_to_zero(), mask))
    return optax.chain(*parts)


def d_optimizer(config: Mapping[str, Any]) -> optax.GradientTransformation:
    """D's Adam; the first `optim.freeze_d_blocks` blocks stay as they are.

    FreezeD (Mo et al. 2020): fine-tuned on few images, a D whose layers nearest the image keep what
    they learnt from many overfits less. All that stands before the first free block is frozen: for
    BigGAN-deep also its first convolution, and attention behind a frozen block. Their parameters
    alone: moments gather on, and `u` goes on turning towards the singular vector.
    """
    m, count = config["model"], config["optim"]["freeze_d_blocks"]
    deep = m["arch"] == "biggan_deep"
    stages = count // (2 if deep else 1)  # Each of the first ones halves the size.
    frozen = {f"block{i}" for i in range(count)}
    frozen |= {f"attention{m['resolution'] >> i}" for i in range(1, stages + 1)}
    if deep and count:
        frozen.add("in_conv")
    return optimizer(config, config["optim"]["d_lr"], frozen)


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
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731  One buffer can't be donated twice.
    return GanState(
        step=jnp.zeros((), jnp.int32),
        g_params=g_vars["params"],
        g_batch_stats=g_vars["batch_stats"],
        g_spectral=g_vars["spectral"],
        g_opt=optimizer(config, config["optim"]["g_lr"]).init(g_vars["params"]),
        d_params=d_vars["params"],
        d_spectral=d_vars["spectral"],
        d_opt=d_optimizer(config).init(d_vars["params"]),
        ema_params=copy(g_vars["params"]),
        ema_batch_stats=copy(g_vars["batch_stats"]),
    )


def shardings(
    config: Mapping[str, Any],
    mesh: Mesh | AbstractMesh,
    whole: bool = False,
    shapes: GanState | None = None,
) -> GanState:
    """Who holds what of the state: every device all of it, or with ZeRO-1 and FSDP parts of some.

    Args:
      config: resolved.
      mesh: the mesh ("data",), with devices or without.
      whole: as if `parallel` of the config were "data".
      shapes: of `init`, where they are at hand; tracing it takes a second.
    """
    if shapes is None:
        shapes = jax.eval_shape(lambda: init(config))
    held = jax.tree.map(lambda x: mesh_lib.replicated(mesh), shapes)
    if whole or config["parallel"] == "data":
        return held
    cut = lambda tree: jax.tree.map(lambda x: mesh_lib.spread(mesh, x.shape), tree)  # noqa: E731
    names = ["g_opt", "d_opt", "ema_params"]
    names += ["g_params", "d_params"] if config["parallel"] == "fsdp" else []
    return held.replace(**{name: cut(getattr(shapes, name)) for name in names})
