"""BigGAN-PyTorch's arguments and our `config.model`, each from the other and from tensors.

The tensors say what a network is; the arguments that a run kept must not contradict them and may
not ask for what our networks have not (spec sections 3, 4, 6 and 18.3).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.models import biggan, biggan_deep

RESOLUTIONS = (32, 64, 128, 256, 512)
OUT_BN_EPS = 1e-5  # Of G's last BN, whatever BN_eps says (spec section 3.5).
EPSILONS = {"BN_eps": 1e-5, "SN_eps": 1e-6}  # With the values of the author's scripts.
_MODELS = {"biggan": "BigGAN", "biggan_deep": "BigGANdeep"}
_FAMILIES = {"biggan": biggan, "biggan_deep": biggan_deep}
_RELU = ("relu", "inplace_relu", "ir")
# Arguments that change what the networks compute, and the values that ours stand for.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "G_param": ("SN",),
    "norm_style": ("bn",),
    "G_nl": _RELU,
    "num_G_SVs": (1,),
    "D_param": ("SN",),
    "D_wide": (True,),
    "D_nl": _RELU,
    "num_D_SVs": (1,),
}

Tensors = Mapping[str, np.ndarray]


def stage_of(size: int, resolution: int, discriminator: bool) -> int:
    """Returns after which doubling (halving, in D) maps are of a size; `size_of` is the inverse."""
    return (resolution // size if discriminator else size // 4).bit_length() - 2


def size_of(stage: int, resolution: int, discriminator: bool) -> int:
    """Returns the pixels along an edge after a doubling (halving, in D)."""
    return resolution >> (stage + 1) if discriminator else 8 << stage


def from_generator(where: str, tensors: Tensors) -> dict[str, Any]:
    """Returns keys of `config.model` from the tensors of a generator.

    Args:
      where: the file, for messages.
      tensors: by their names there.

    Raises:
      ConfigError: if they are those of no generator that is known.
    """
    _refuse_more_vectors(where, tensors, "num_G_SVs")
    arch = "biggan_deep" if "blocks.0.0.conv4.weight" in tensors else "biggan"
    per_stage = 2 if arch == "biggan_deep" else 1
    blocks = 1 + max(_numbers(tensors, r"blocks\.(\d{1,2})\."), default=-1)
    stages = blocks // per_stage
    resolution = 4 << stages
    if resolution not in RESOLUTIONS or blocks % per_stage:
        raise ConfigError(
            f"{where}: a generator of {_MODELS[arch]} with {blocks} blocks is not known, only with"
            f" {', '.join(str(per_stage * n) for n in range(3, 8))}."
        )
    attention = _numbers(tensors, r"blocks\.(\d{1,2})\.1\.gamma$")
    if per_stage == 2:
        attention = [i // 2 for i in attention if i % 2]
    last = _FAMILIES[arch].G_CHANNELS[resolution][-1]
    found = {
        "arch": arch,
        "resolution": resolution,
        "g_ch": _multiplier(where, tensors, "output_layer.0.gain", last),
        "rgb_channels": _length(where, tensors, "output_layer.2.weight", 0),
        "g_attention": tuple(size_of(i, resolution, discriminator=False) for i in attention),
        "z_dim": _length(where, tensors, "linear.weight", 1),
        "shared_embedding": "shared.weight" in tensors or arch == "biggan_deep",
        "hierarchical_z": True,
    }
    projection = "blocks.0.0.bn1.gain.weight"
    if not found["shared_embedding"]:  # It is a table a class then.
        found["num_classes"] = _length(where, tensors, projection, 0)
        return found | {"hierarchical_z": False}
    found["num_classes"] = _length(where, tensors, "shared.weight", 0)
    found["shared_dim"] = _length(where, tensors, "shared.weight", 1)
    if arch == "biggan_deep":
        found["z_dim"] -= found["shared_dim"]
    elif _length(where, tensors, projection, 1) == found["shared_dim"]:
        found["hierarchical_z"] = False
    else:
        found["z_dim"] *= stages + 1
    return found


def from_discriminator(where: str, tensors: Tensors, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keys of `config.model` from the tensors of D; `found` is of `from_generator`.

    Raises:
      ConfigError: if D is not of the supported kind, or has attention where ours cannot.
    """
    _refuse_more_vectors(where, tensors, "num_D_SVs")
    deep, resolution = found["arch"] == "biggan_deep", found["resolution"]
    table, halvings = _FAMILIES[found["arch"]].D_CHANNELS[resolution]
    first = "input_conv" if deep else "blocks.0.0.conv2"
    ch = _multiplier(where, tensors, f"{first}.weight", table[0])
    if not deep and _length(where, tensors, "blocks.0.0.conv1.weight", 0) != ch * table[0]:
        raise ConfigError(
            f"{where}: D_wide=False is not supported, only True: 'blocks.0.0.conv1.weight' and"
            " 'blocks.0.0.conv2.weight' have different numbers of outputs."
        )
    attention = _numbers(tensors, rf"blocks\.(\d{{1,2}})\.{2 if deep else 1}\.gamma$")
    if attention and attention[-1] >= halvings:
        raise ConfigError(
            f"{where}: attention after {'stage' if deep else 'block'} {attention[-1]} of D is not"
            f" supported, only after the first {halvings}, which halve the size; at 32 px D_attn=16"
            " puts it after all."
        )
    sizes = tuple(size_of(i, resolution, discriminator=True) for i in attention)
    return {"d_ch": ch, "d_attention": sizes}


def without_discriminator(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of D where there is none: what one would train beside this G."""
    usual = {32: (), 64: (32,)}.get(found["resolution"], (64,))  # Spec section 3.3.
    return {"d_ch": found["g_ch"], "d_attention": usual}


def check(where: str, config: Mapping[str, Any], found: Mapping[str, Any], has_d: bool) -> None:
    """Holds the arguments of a run against what its tensors say.

    Args:
      where: the file of the arguments.
      config: the arguments, as many as there are.
      found: keys of `config.model`.
      has_d: whether there is a D; what is said of one does not matter otherwise.

    Raises:
      ConfigError: naming the argument and its value.
    """
    depths = {"G_depth": (2,), "D_depth": (2,)} if found["arch"] == "biggan_deep" else {}
    for key, values in (_SUPPORTED | depths).items():
        if (has_d or "D_" not in key) and config.get(key, values[0]) not in values:
            raise ConfigError(
                f"{where}: {key}={config[key]!r} is not supported, only"
                f" {' or '.join(map(repr, values))}."
            )
    shown = to_arguments(found)
    for key, value in _canonical(where, config, found).items():
        if (has_d or "D_" not in key) and value != shown[key]:
            raise ConfigError(
                f"{where}: {key}={config[key]!r} contradicts the tensors, which are of"
                f" {key}={shown[key]!r}."
            )


def epsilons(where: str, config: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Returns our keys `bn_eps` and `sn_eps`, and a sentence for each that had to be assumed."""
    found, assumed = {}, {}
    for key, usual in EPSILONS.items():
        value = config.get(key, usual)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: {key}={value!r} must be a number above 0.")
        found[key.lower()] = float(value)
        if key not in config:
            assumed[key.lower()] = (
                f"{key} is not in the folder; {usual:g} is assumed, as in the author's scripts."
            )
    return found, assumed


def to_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the author's arguments for a model, those that make the networks."""
    depth = 2 if model["arch"] == "biggan_deep" else 1
    attention = lambda sizes: "_".join(map(str, sorted(sizes))) or "0"  # noqa: E731
    arguments = {
        "model": _MODELS[model["arch"]],
        "resolution": model["resolution"],
        "n_classes": model["num_classes"],
        "dim_z": model["z_dim"],
        "shared_dim": model.get("shared_dim", 0),
        "G_shared": model["shared_embedding"],
        "hier": model["hierarchical_z"],
        "G_ch": model["g_ch"],
        "D_ch": model["d_ch"],
        "G_depth": depth,
        "D_depth": depth,
        "G_attn": attention(model["g_attention"]),
        "D_attn": attention(model["d_attention"]),
        "cross_replica": False,
        "mybn": False,
    }
    arguments |= {key: model[key.lower()] for key in EPSILONS if key.lower() in model}
    return arguments | {key: values[0] for key, values in _SUPPORTED.items()}


def _canonical(where, config, found):
    """The arguments that show in the tensors, as far as they are there, as `to_arguments` has them.

    Several texts and numbers mean the same model to the author's classes.
    """

    def whole(key):
        if type(config[key]) is not int:
            raise ConfigError(f"{where}: {key}={config[key]!r} must be a whole number.")
        return config[key]

    keys = ("model", "resolution", "n_classes", "G_shared", "hier", "G_ch", "D_ch")
    said = {key: config[key] for key in keys if key in config}
    if "dim_z" in config:
        # z is cut into equal slots and the rest forgotten (spec section 3.1).
        slots = config_lib.slots({"model": found})
        said["dim_z"] = whole("dim_z") // slots * slots
        if "shared_dim" in config and found["shared_embedding"]:
            said["shared_dim"] = whole("shared_dim") or config["dim_z"]
    resolution = found["resolution"]
    # The sizes that are looked up; D's at 32 px are wrong in the author's list (spec section 4.1).
    sizes = {
        "G_attn": [8 << i for i in range(7) if 8 << i <= resolution],
        "D_attn": [16] if resolution == 32 else [resolution >> i for i in range(1, 7)],
    }
    for key in sizes.keys() & config.keys():
        named = str(config[key]).split("_")
        there = [str(size) for size in sorted(sizes[key]) if size >= 8 and str(size) in named]
        said[key] = "_".join(there) or "0"
    return said


def _numbers(tensors, pattern):
    return sorted({int(m[1]) for name in tensors if (m := re.match(pattern, name))})


def _length(where, tensors, name, axis):
    if name not in tensors:
        raise ConfigError(f"{where}: the tensor {name!r} is missing.")
    shape = tensors[name].shape
    if axis >= len(shape):
        raise ConfigError(f"{where}: {name!r} is of shape {list(shape)}, which has too few axes.")
    return shape[axis]


def _multiplier(where, tensors, name, multiple):
    """ch, from a tensor for `multiple` times ch channels."""
    channels = _length(where, tensors, name, 0)
    if channels % multiple:
        raise ConfigError(
            f"{where}: {name!r} is for {channels} channels, which must be a multiple of {multiple}."
        )
    return channels // multiple


def _refuse_more_vectors(where, tensors, key):
    vectors = 1 + max(_numbers(tensors, r".*\.u(\d{1,2})$"), default=0)
    if vectors > 1:
        raise ConfigError(f"{where}: {key}={vectors} is not supported, only 1.")
