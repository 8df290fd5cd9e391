"""Checkpoints of google/compare_gan: its BigGAN and BigGAN-deep (spec section 18.7).

Both networks, with compare_gan's own semantics (`model.compare_gan`): batch norm's gain lacks the
1, sizes are doubled with zeros, D sees images in [0, 1] and has other tables. Layouts are ours.
Its batch norms keep sums and a counter, which only its evaluation fills: that writes
`model-with-accu.ckpt`, with the generator alone, under `gen_module/`.
"""

import math
import os
import re
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout, tf_files
from biggan_jax.interop.bundle import Bundle
from biggan_jax.interop.layout import Entry
from biggan_jax.models import biggan, biggan_deep

NAME = "compare-gan"
_FIRST = "generator/fc_noise/kernel"
_AVERAGED = "/ExponentialMovingAverage"  # Ends the names of averaged weights.
# Sizes after which compare_gan's documentation and defaults put attention.
_G_ATTENTION = {64: 64, 128: 64, 256: 128, 512: 64}
_D_ATTENTION = {32: 16, 64: 32, 128: 64, 256: 64, 512: 64}
_MODULES = {
    "generator": {
        "shared": "embed_y",
        "linear": "fc_noise",
        "out_bn": "final_norm",
        "out_conv": "final_conv",
    },
    "discriminator": {
        "in_conv": "initial_conv",
        "linear": "final_fc",
        "embed": "embedding_fc",
    },
}
_PARTS = {
    "bn1": "bn1",
    "bn2": "bn2",
    "gain": "condition/gamma",
    "bias": "condition/beta",
    "theta": "conv2d_theta",
    "phi": "conv2d_phi",
    "g": "conv2d_g",
    "o": "conv2d_attn_g",
}
# Of BigGAN's blocks, by how they change the size.
_CONVS = {
    "up": {"conv1": "up_conv1", "conv2": "same_conv2", "conv_sc": "up_conv_shortcut"},
    "down": {"conv1": "same_conv1", "conv2": "down_conv2", "conv_sc": "down_conv_shortcut"},
    "same": {"conv1": "same_conv1", "conv2": "same_conv2", "conv_sc": "same_conv_shortcut"},
}
_DEEP_PARTS = {
    "bn1": "conv1/bn",
    "bn2": "conv2/bn",
    "bn3": "conv3/bn",
    "bn4": "conv4/bn",
    "conv1": "conv1/1x1_conv",
    "conv2": "conv2/3x3_conv",
    "conv3": "conv3/3x3_conv",
    "conv4": "conv4/1x1_conv",
    "conv_sc": "shortcut/add_channels",
}
_LEAVES = {
    "kernel": "kernel",
    "embedding": "kernel",
    "bias": "bias",
    "u": "kernel/u_var",
    "gamma": "sigma",
}
_HEAD_LEAVES = {"gain": "gamma", "bias": "beta"}
_SUMS = {"mean": "accu/accu_mean", "var": "accu/accu_variance"}
_MOVING = {"mean": "moving_mean", "var": "moving_variance"}


def recognise(path: str) -> bool:
    """Whether a path is a checkpoint of compare_gan's BigGAN or a folder of such."""
    try:
        prefix = tf_files.find_checkpoint(path)
        return prefix is not None and tf_files.Checkpoint(prefix).scope_of(_FIRST) is not None
    except ConfigError:
        return False


def read(path: str, overrides: Any = ()) -> Bundle:
    """Reads a checkpoint of compare_gan.

    Args:
      path: a prefix, as in "tfhub/250000/model-with-accu.ckpt", or a folder of checkpoints, of
        which the latest is taken.
      overrides: (dotted key, text) pairs for `config.model`. A checkpoint does not say its batch
        norm's eps nor, always, where attention stands.

    Returns:
      A bundle with the raw generator as `g`, the averaged one as `ema` and the discriminator as
      `d`, the last two where the checkpoint has them.

    Raises:
      ConfigError: naming the file and what in it is not as it must be.
    """
    prefix = tf_files.find_checkpoint(path)
    if prefix is None:
        raise ConfigError(f"{path!r} is neither a checkpoint of TensorFlow nor a folder of such.")
    scope = tf_files.Checkpoint(prefix).scope_of(_FIRST)
    if scope is None:
        raise ConfigError(f"{prefix}: is no BigGAN of compare_gan, for it has no {_FIRST}.")
    checkpoint = tf_files.Checkpoint(prefix, scope)
    notes = ["The checkpoint does not say its batch norm's eps; compare_gan trains with 1e-5."]
    model = bundle_lib.resolve_model(_model(checkpoint, notes), overrides)
    g_shapes, d_shapes = layout.abstract(model)
    result = Bundle(
        f"compare-gan-{model['arch'].replace('_', '-')}-{model['resolution']}", model, {}
    )
    statistics = _MOVING if "generator/final_norm/moving_mean" in checkpoint else _SUMS

    def add(network, theirs, shapes, suffix=""):
        entries = [
            Entry(
                place,
                _name(model, theirs, place, statistics, suffix),
                "exact" if place.endswith(("/kernel", "/embedding")) else "same",
            )
            for place in shapes
        ]
        result.add(network, _read(checkpoint, theirs, entries, shapes, suffix, notes))

    add("g", "generator", g_shapes)
    if any(name.endswith(_AVERAGED) for name in checkpoint):
        add("ema", "generator", g_shapes, _AVERAGED)
        if statistics is _SUMS:
            notes.append("The batch norm statistics of both generators are the averaged one's.")
    if _has_discriminator(checkpoint):
        add("d", "discriminator", d_shapes)
    result.source = {
        "format": NAME,
        "files": {
            os.path.basename(file): bundle_lib.sha256(file)
            for file in tf_files.checkpoint_files(prefix)
        },
        "notes": list(dict.fromkeys(notes)),
    }
    return result


def _has_discriminator(checkpoint):
    return any(name.startswith("discriminator/") for name in checkpoint)


def _model(checkpoint, notes):
    """What the shapes of the variables say of `config.model`; `notes` gets what they do not say."""
    where = checkpoint.prefix
    deep = "generator/B1/conv1/1x1_conv/kernel" in checkpoint
    family = biggan_deep if deep else biggan
    blocks = len({m[0] for name in checkpoint if (m := re.match(r"generator/B\d+/", name))})
    stages, odd = divmod(blocks, 2) if deep else (blocks, 0)
    resolution = 4 << stages
    if odd or resolution not in family.G_CHANNELS:
        raise ConfigError(
            f"{where}: a {'BigGAN-deep' if deep else 'BigGAN'} of {blocks} blocks is not supported"
            f"{'; that of 32 px, with 7, is none of the paper' if deep else ''}."
        )
    if "generator/embed_y/kernel" not in checkpoint:
        raise ConfigError(f"{where}: only models with embed_y are supported, and this has none.")
    rows, columns = checkpoint.shape_of(_FIRST, 2)
    num_classes, shared_dim = checkpoint.shape_of("generator/embed_y/kernel", 2)
    if not deep:
        condition = checkpoint.shape_of("generator/B1/bn1/condition/gamma/kernel", 2)[0]
        if condition != rows + shared_dim:
            raise ConfigError(
                f"{where}: only models with hierarchical_z are supported; then B1/bn1's condition"
                f" is of {rows} + {shared_dim} numbers and not of {condition}."
            )
    first, *g_multiples = family.G_CHANNELS[resolution]
    d_table, halvings = family.COMPARE_GAN_D_CHANNELS[resolution]
    d_multiples = d_table[1:] if deep else d_table
    g_ch = d_ch = columns // (16 * first)
    g_size = 64 if deep else _G_ATTENTION.get(resolution, resolution)
    d_size = 64 if deep else _D_ATTENTION.get(resolution, resolution)
    d_attention = (d_size,) if d_size < resolution else ()
    if _has_discriminator(checkpoint):
        stem = "discriminator/" + ("initial_conv" if deep else "B1/same_conv1") + "/kernel"
        d_ch = checkpoint.shape_of(stem, 4)[3] // d_table[0]
        widths = {resolution >> (i + 1): m * d_ch for i, m in enumerate(d_multiples[:halvings])}
        d_attention = _attention(checkpoint, "discriminator", widths, d_size, notes)
    widths = {8 << i: m * g_ch for i, m in enumerate(g_multiples)}
    return {
        "arch": "biggan_deep" if deep else "biggan",
        "resolution": resolution,
        "num_classes": num_classes,
        "g_ch": g_ch,
        "d_ch": d_ch,
        "z_dim": rows - shared_dim if deep else rows * (stages + 1),
        "shared_dim": shared_dim,
        "g_attention": _attention(checkpoint, "generator", widths, g_size, notes),
        "d_attention": d_attention,
        "rgb_channels": checkpoint.shape_of("generator/final_conv/kernel", 4)[3],
        "bn_eps": 1e-5,
        "out_bn_eps": 1e-5,
        "sn_eps": 1e-6,  # Theirs, 1e-12, is for the square of the norm.
        "condition_order": "z_first",
        "sigma_rule": "shorter_side",
        "compare_gan": True,
    }


def _attention(checkpoint, network, widths, preferred, notes):
    """The sizes after which a network has attention."""
    theta = f"{network}/non_local_block/conv2d_theta/kernel"
    if theta not in checkpoint:
        return ()
    channels = checkpoint.shape_of(theta, 4)[2]
    size, *others = tf_files.attention_sizes(checkpoint.prefix, channels, widths, preferred)
    if others:
        notes.append(
            f"Attention of the {network} was taken to stand at {size} px; of its width it could be"
            f" at {' or '.join(map(str, others))} px too: model.{network[0]}_attention changes it."
        )
    return (size,)


def _name(model, network, place, statistics, suffix):
    """Their name of a place."""
    deep = model["arch"] == "biggan_deep"
    collection, module, *parts, leaf = place.split("/")
    table = _PARTS | (_DEEP_PARTS if deep else {})
    if module.startswith("block"):
        number = int(module.removeprefix("block"))
        path = [network, f"B{number + 1}"]
        if not deep:
            halvings = biggan.COMPARE_GAN_D_CHANNELS[model["resolution"]][1]
            down = "down" if number < halvings else "same"
            table = _PARTS | _CONVS["up" if network == "generator" else down]
    elif module.startswith("attention"):
        path = [network, "non_local_block"]
    else:
        path = [network, _MODULES[network][module]]
    path += [table[part] for part in parts]
    if collection == "batch_stats":
        return "/".join([*path, statistics[leaf]])
    leaf = (_HEAD_LEAVES if module == "out_bn" else _LEAVES)[leaf]
    return "/".join([*path, leaf]) + (suffix if collection == "params" else "")


def _read(checkpoint, network, entries, shapes, suffix, notes):
    """Reads one network, its statistics averaged and its vectors u on the shorter side."""
    changed = {}
    sums = [e.theirs for e in entries if e.theirs.endswith(tuple(_SUMS.values()))]
    counts = {name: _count(checkpoint, name) for name in sums if name in checkpoint}
    empty = counts and not any(counts.values())
    if empty:
        notes.append(
            "The checkpoint holds no batch norm statistics: compare_gan's evaluation writes those,"
            " into a file without D. `sample` makes its own; `generate` needs"
            ' statistics="standing".'
        )
    for entry in entries:
        if entry.theirs not in checkpoint:
            continue  # layout.read says so.
        if entry.theirs in counts:
            total, count = checkpoint[entry.theirs], counts[entry.theirs]
            if not count and not empty:
                raise ConfigError(
                    f"{checkpoint.prefix}: {entry.theirs!r} is a sum over no batch, and others are"
                    " not."
                )
            unit = 0.0 if entry.theirs.endswith("mean") else 1.0
            changed[entry.theirs] = np.full_like(total, unit) if empty else total / count
        if entry.theirs.endswith("/u_var"):
            u = _moved_u(checkpoint, entry.theirs, suffix)
            if u is not None:
                changed[entry.theirs] = u
                notes.append(
                    "Spectral norm's vectors that stood on the longer side of their kernels were"
                    " carried to the shorter one, half an iteration ahead."
                )
    plain = {entry.theirs.removesuffix(_AVERAGED) for entry in entries}

    def ignored(name):
        parent, _, leaf = name.rpartition("/")
        # Below a weight stand its average and its optimizer's moments.
        known = name in plain or parent in plain or leaf in ("accu_counter", "update_accus")
        return known or not name.startswith(f"{network}/")

    return layout.read(checkpoint.prefix, checkpoint.replaced(changed), entries, shapes, ignored)


def _count(checkpoint, total):
    """How many batches a sum of statistics is of; 0 where it was never filled."""
    counter = f"{total.rpartition('/')[0]}/accu_counter"
    checkpoint.shape_of(counter, 0)
    count = float(checkpoint[counter])
    return count if count >= 1 else 0.0  # It starts at 1e-12.


def _moved_u(checkpoint, name, suffix):
    """The vector of the shorter side where that of the longer one is stored, else None."""
    kernel = name.removesuffix("/u_var") + suffix
    if kernel not in checkpoint:
        return None
    *_, columns = shape = checkpoint.shapes[kernel]
    rows = math.prod(shape[:-1])
    short, long = ((rows, 1), (1, columns)) if rows <= columns else ((1, columns), (rows, 1))
    if short == long or checkpoint.shapes[name] != long:
        return None
    matrix, u = checkpoint[kernel].reshape(rows, columns), checkpoint[name]
    moved = matrix @ u.T if short == (rows, 1) else u.T @ matrix
    return moved / max(float(np.linalg.norm(moved)), 1e-6)
