"""DeepMind's TF-Hub modules: BigGAN (biggan-SIZE/2) and BigGAN-deep (biggan-deep-SIZE/1).

Only their generators were published. Spec section 18.5 has BigGAN's names, the Hub column of 18.4
those of BigGAN-deep. The layouts are ours; what differs is names, and where the batch norm
statistics are: BigGAN's are variables, BigGAN-deep's are constants of the graph, one row a
truncation.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout, tf_files
from biggan_jax.interop.bundle import Bundle
from biggan_jax.interop.layout import Entry
from biggan_jax.models import biggan, biggan_deep

NAME = "tfhub"
_GRAPH = "saved_model.pb"
_BLOCK = "Generator/GBlock"
_EPS = 1e-4  # Of batch norms and of spectral norms (spec sections 7.2 and 8.1).
_ATTENTION = {128: 64, 256: 128, 512: 64}  # Size of BigGAN's; BigGAN-deep's is always 64.
_AVERAGED = {"biggan": "/ema_b999900", "biggan_deep": "/ema_0.9999"}  # Ends of names.
_MODULES = {
    "biggan": {
        "shared": "linear",
        "linear": "Generator/G_Z/G_linear",
        "out_bn": "Generator/ScaledCrossReplicaBN",
        "out_conv": "Generator/conv_2d",
    },
    "biggan_deep": {
        "shared": "linear",
        "linear": "Generator/GenZ/G_linear",
        "out_bn": "Generator/BatchNorm",
        "out_conv": "Generator/conv_to_rgb",
    },
}
_PARTS = {
    "biggan": {
        "bn1": "HyperBN",
        "bn2": "HyperBN_1",
        "gain": "gamma",
        "bias": "beta",
        "conv1": "conv0",
        "conv2": "conv1",
        "o": "o_conv",
    },
    "biggan_deep": {
        "bn1": "BatchNorm",
        "bn2": "BatchNorm_1",
        "bn3": "BatchNorm_2",
        "bn4": "BatchNorm_3",
        "gain": "scale",
        "bias": "offset",
        "conv1": "conv0",
        "conv2": "conv1",
        "conv3": "conv2",
        "conv4": "conv3",
        "o": "o_conv",
    },
}
_LEAVES = {"kernel": "w", "embedding": "w", "bias": "b", "u": "u0", "gamma": "gamma"}
_STATISTICS = {"mean": "accumulated_mean", "var": "accumulated_var"}
# Numbers of the graph's nodes stack_N that are statistics, in the order of the batch norms, for
# each its mean and its variance (spec section 7.4).
_STACKS = [10 * i + k for i in range(50) for k in (1, 3, 6, 8)]
# The other vectors of spectral norm, and what statistics were accumulated with.
_INFORMATIVE = re.compile(r"(.*/)?(u1|(accumulat|update_accu)[^/]*)")


def recognise(path: str) -> bool:
    """Whether a path is a module's folder, its `variables` folder or the checkpoint in there."""
    try:
        prefix = tf_files.find_checkpoint(path)
        return prefix is not None and tf_files.Checkpoint(prefix).scope_of(_BLOCK) is not None
    except ConfigError:
        return False


def read(path: str, overrides: Any = ()) -> Bundle:
    """Reads a TF-Hub module.

    Args:
      path: the module's folder, its `variables` folder or the prefix of the checkpoint in there.
      overrides: (dotted key, text) pairs for `config.model`.

    Returns:
      A bundle with the averaged generator as `ema`, the raw one as `g` where the module has that
      too, and BigGAN-deep's statistics for each truncation.

    Raises:
      ConfigError: naming the file and what in it is not as it must be.
    """
    checkpoint = _open(path)
    model = bundle_lib.resolve_model(_model(checkpoint), overrides)
    shapes, _ = layout.abstract(model)
    name = f"biggan-{'deep-' if _is_deep(checkpoint) else ''}{model['resolution']}"
    result = Bundle(name, model, {}, truncation="hub")
    files, notes = tf_files.checkpoint_files(checkpoint.prefix), []
    theirs: Mapping[str, np.ndarray] = checkpoint
    if _is_deep(checkpoint):
        files.append(_graph_beside(checkpoint.prefix))
        stacks = _read_stacks(files[-1], shapes)
        result.add("table", {place: stacks[n] for place, n in _stack_names(shapes).items()})
        rows = len(next(iter(stacks.values())))
        result.grid = tuple(k / (rows - 1) for k in range(rows))
        theirs = checkpoint.replaced({n: stack[-1] for n, stack in stacks.items()})
    else:
        notes.append("The batch norm statistics are those of truncation 1.")

    averaged = _entries(model["arch"], shapes, _AVERAGED[model["arch"]])
    raw = _entries(model["arch"], shapes, "")
    known = {entry.theirs for entry in (*averaged, *raw)}
    informative = [k for k in checkpoint if k not in known and _INFORMATIVE.fullmatch(k)]
    ignored = known.union(informative).__contains__
    is_averaged = any(entry.theirs in checkpoint for entry in set(averaged) - set(raw))
    is_raw = all(entry.theirs in theirs for entry in raw)
    if is_averaged:
        result.add("ema", layout.read(checkpoint.prefix, theirs, averaged, shapes, ignored))
    else:
        notes.append("The module has no averaged weights; its plain ones were taken.")
    if is_raw or not is_averaged:
        result.add("g", layout.read(checkpoint.prefix, theirs, raw, shapes, ignored))
    result.add("extra/variables", {k: np.asarray(checkpoint[k], np.float32) for k in informative})
    result.source = {
        "format": NAME,
        "files": {os.path.basename(file): bundle_lib.sha256(file) for file in files},
        "notes": notes,
    }
    return result


def _open(path):
    prefix = tf_files.find_checkpoint(path)
    if prefix is None:
        raise ConfigError(f"{path!r} holds no TF-Hub module: it has no variables/variables.index.")
    scope = tf_files.Checkpoint(prefix).scope_of(_BLOCK)
    if scope is None:
        raise ConfigError(f"{prefix}: is no BigGAN of TF-Hub, for it has no variables {_BLOCK}.")
    if "GenEncWrapper" in scope:
        raise ConfigError(
            f"{prefix}: is a BigBiGAN, which is not supported; BigGAN and BigGAN-deep are."
        )
    return tf_files.Checkpoint(prefix, scope)


def _is_deep(checkpoint):
    return any(name.startswith("Generator/GenZ/") for name in checkpoint)


def _model(checkpoint):
    """What the shapes of the variables say of `config.model`."""
    arch = "biggan_deep" if _is_deep(checkpoint) else "biggan"
    deep = arch == "biggan_deep"
    modules = _MODULES[arch]

    def kernel(module, rank):
        averaged = f"{module}/w{_AVERAGED[arch]}"
        return checkpoint.shape_of(averaged if averaged in checkpoint else f"{module}/w", rank)

    found = {m[0] for name in checkpoint if (m := re.match(rf"{_BLOCK}(_\d+)?/", name))}
    stages, odd = divmod(len(found), 2) if deep else (len(found), 0)
    resolution = 4 << stages
    table = (biggan_deep if deep else biggan).G_CHANNELS
    if odd or resolution not in table:
        raise ConfigError(f"{checkpoint.prefix}: {len(found)} blocks make no {arch} known here.")
    rows, columns = kernel(modules["linear"], 2)
    num_classes, shared_dim = kernel(modules["shared"], 2)
    first, *multiples = table[resolution]
    ch = columns // (16 * first)
    sizes = []
    if any(name.startswith("Generator/attention/") for name in checkpoint):
        sizes = tf_files.attention_sizes(
            checkpoint.prefix,
            kernel("Generator/attention/theta", 4)[2],
            {8 << i: m * ch for i, m in enumerate(multiples)},
            64 if deep else _ATTENTION.get(resolution, 64),
        )
    return {
        "arch": arch,
        "resolution": resolution,
        "num_classes": num_classes,
        "g_ch": ch,
        "d_ch": ch,
        "z_dim": rows - shared_dim if deep else rows * (stages + 1),
        "shared_dim": shared_dim,
        "g_attention": tuple(sizes[:1]),
        "d_attention": (min(64, resolution // 2),),  # Of the paper's D; there is none here.
        "rgb_channels": kernel(modules["out_conv"], 4)[3],
        "condition_order": "z_first",
        "bn_eps": _EPS,
        "out_bn_eps": _EPS,
        "sn_eps": _EPS,
    }


def _entries(arch, shapes, suffix):
    """The table of all tensors; `suffix` ends the names of weights."""
    stacks = _stack_names(shapes) if arch == "biggan_deep" else {}
    return [
        Entry(
            place,
            stacks.get(place) or _name(arch, place, suffix),
            "exact" if place.endswith(("/kernel", "/embedding")) else "same",
        )
        for place in shapes
    ]


def _name(arch, place, suffix):
    """Their name of a place, but for statistics of the graph."""
    collection, module, *parts, leaf = place.split("/")
    if module.startswith("block"):
        number = int(module.removeprefix("block"))
        path = [f"{_BLOCK}_{number}" if number else _BLOCK]
    elif module.startswith("attention"):
        path = ["Generator/attention"]
    else:
        path = [_MODULES[arch][module]]
    path += [_PARTS[arch].get(part, part) for part in parts]
    if collection == "batch_stats":
        scope = "/".join(path).replace("HyperBN", "CrossReplicaBN")
        scope += "bn" if module == "out_bn" else ""
        return f"{scope}/{_STATISTICS[leaf]}"
    name = _PARTS[arch][leaf] if module == "out_bn" else _LEAVES[leaf]
    return "/".join([*path, name]) + (suffix if collection == "params" else "")


def _stack_names(shapes):
    """Names of the graph's nodes, without what they stand under, by place."""
    blocks = len({place.split("/")[1] for place in shapes if place.endswith("bn1/mean")})
    norms = [f"block{i}/bn{k}" for i in range(blocks) for k in (1, 2, 3, 4)] + ["out_bn"]
    places = [f"batch_stats/{norm}/{moment}" for norm in norms for moment in ("mean", "var")]
    return {place: f"stack_{n}" for place, n in zip(places, _STACKS, strict=False)}


def _graph_beside(prefix):
    """The path of the graph that belongs to a checkpoint."""
    folder = os.path.dirname(os.path.abspath(prefix))
    for place in (os.path.dirname(folder), folder):
        if os.path.isfile(os.path.join(place, _GRAPH)):
            return os.path.join(place, _GRAPH)
    raise ConfigError(
        f"{prefix}: BigGAN-deep's batch norm statistics are in {_GRAPH}, which is neither beside"
        " the checkpoint nor beside its folder."
    )


def _read_stacks(graph, shapes):
    """The statistics of all truncations as {stack_N: [rows, C] float32}."""
    names = _stack_names(shapes)
    found: dict[str, np.ndarray] = {}
    for values in tf_files.constants(graph, r"(.*/)?stack_\d+"):
        # An applied module's nodes stand under a scope, and other nodes may be called stack_N too.
        for scope in sorted({name.rpartition("stack_")[0] for name in values}):
            here = {n: values[scope + n] for n in names.values() if scope + n in values}
            found = max(found, here, key=len)
    missing = [name for name in names.values() if name not in found]
    if missing:
        raise ConfigError(
            f"{graph}: the batch norm statistics are missing: of the {len(names)} constants"
            f" stack_1, stack_3, stack_6 and so on there is no {missing[0]}."
        )
    rows = {value.shape[:1] for value in found.values()}
    for place, name in names.items():
        value, channels = found[name], shapes[place].shape[0]
        if value.shape[1:] != (channels,) or len(rows) != 1 or len(value) < 2:
            raise ConfigError(
                f"{graph}: {name} is of shape {list(value.shape)} and must be [rows, {channels}],"
                " with two or more rows, as many in all such constants."
            )
        if value.dtype.kind != "f" or not np.isfinite(value).all():
            raise ConfigError(f"{graph}: {name} holds values that are not finite numbers.")
    return {name: found[name].astype(np.float32) for name in names.values()}
