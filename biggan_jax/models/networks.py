"""Both networks of a config."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from biggan_jax.models import attention, biggan, biggan_deep, norm, ops


def build(
    config: Mapping[str, Any], platform: str | None = None, woven: int = 1
) -> tuple[nn.Module, nn.Module]:
    """Makes the generator and the discriminator.

    Args:
      config: resolved; its `model` part is read.
      platform: of the devices that will run them ("cpu", "tpu", ...), where they may not be those
        of JAX's default backend; the forms of operations depend on it (`models/forms.py`).
      woven: how many batches G is given at once, see `norm.BatchNorm`.

    Returns:
      G, called as `(z, labels, train)`, and D, called as `(images, labels)`.
    """
    m = config["model"]
    init, dtype = ops.INITS[m["init"]], jnp.dtype(m["dtype"])
    spectral = {"eps": m["sn_eps"], "rule": m["sigma_rule"], "kernel_init": init}
    conv = partial(ops.SpectralConv, **spectral, dtype=dtype, backend=platform)
    dense = partial(ops.SpectralDense, **spectral)
    bn = partial(
        norm.BatchNorm,
        eps=m["bn_eps"],
        momentum=m["bn_momentum"],
        sn_eps=m["sn_eps"],
        sigma_rule=m["sigma_rule"],
        gain_offset=0.0 if m["compare_gan"] else 1.0,
        group_size=m["bn_group_size"],
        kernel_init=init,
        num_classes=m["num_classes"],
        woven=woven,
        dtype=dtype,
    )
    common = {
        "resolution": m["resolution"],
        "num_classes": m["num_classes"],
        "conv": conv,
        "dense": dense,
        "attend": partial(attention.Attention, conv, backend=platform),
        "remat": m["remat"],
    }
    g_parts = common | {
        "ch": m["g_ch"],
        "z_dim": m["z_dim"],
        "shared_dim": m["shared_dim"],
        "z_first": m["condition_order"] == "z_first",
        "rgb_channels": m["rgb_channels"],
        "up": "unpool" if m["compare_gan"] else "up",
        "attention": tuple(m["g_attention"]),
        "bn": bn,
        "out_bn": partial(bn, eps=m["out_bn_eps"]),
        "kernel_init": init,
    }
    family = {"biggan": biggan, "biggan_deep": biggan_deep}[m["arch"]]
    table = family.COMPARE_GAN_D_CHANNELS if m["compare_gan"] else family.D_CHANNELS
    d_parts = common | {
        "ch": m["d_ch"],
        "channels": table[m["resolution"]],
        "unit_range": m["compare_gan"],
        "attention": tuple(m["d_attention"]),
        "embed": partial(ops.SpectralEmbed, **spectral),
    }
    if m["arch"] == "biggan":
        g_parts["shared_embedding"] = m["shared_embedding"]
        g_parts["hierarchical_z"] = m["hierarchical_z"]
        d_parts["same_width_shortcut"] = not m["compare_gan"]
    else:
        g_parts["backend"] = d_parts["backend"] = platform
    return family.Generator(**g_parts), family.Discriminator(**d_parts)
