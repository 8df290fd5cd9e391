"""Folders of pytorch_pretrained_biggan: `config.json` and `pytorch_model.bin` (spec section 18.4).

They hold BigGAN-deep generators, among them the released ones of 128, 256 and 512 px: averaged
weights alone, spectral norm with stored u and v, and a row of BN statistics for each of 51
truncations. Reading keeps every number, so that writing gives the same tensors back.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout, pth
from biggan_jax.interop.bundle import Bundle
from biggan_jax.interop.layout import Arrays, Entry
from biggan_jax.models import biggan_deep, ops

NAME = "huggingface"
CONFIG = "config.json"
WEIGHTS = "pytorch_model.bin"
# The program's last layers have channel_width channels, which our generator has there from 128 px
# on; at 64 px it has twice as many.
RESOLUTIONS = (128, 256, 512)


def _layers(resolution):
    """The blocks, as config.json lists them: whether up, channels in, channels out."""
    stages = itertools.pairwise(biggan_deep.G_CHANNELS[resolution])
    return [block for a, b in stages for block in ([False, a, a], [True, a, b])]


# What the program takes for a key that config.json lacks.
DEFAULTS: dict[str, Any] = {
    "output_dim": 128,
    "z_dim": 128,
    "channel_width": 128,
    "num_classes": 1000,
    "layers": _layers(128),
    "attention_layer_position": 8,
    "eps": 1e-4,
    "n_stats": 51,
}


def recognise(path: str) -> bool:
    """Whether `path` is a folder with a `pytorch_model.bin`."""
    return os.path.isfile(os.path.join(path, WEIGHTS))


def read(path: str, overrides: Any = ()) -> Bundle:
    """Reads a folder of the program.

    Args:
      path: the folder.
      overrides: (dotted key, text) pairs for what the folder leaves open, the discriminator say.

    Returns:
      A bundle of the averaged generator, with statistics at truncation 1, and of the table.

    Raises:
      ConfigError: naming the key or tensor that is missing, damaged or of another model.
    """
    about, weights = os.path.join(path, CONFIG), os.path.join(path, WEIGHTS)
    text, config = _read_config(about)
    theirs = pth.read(weights)
    if not isinstance(theirs, dict) or not all(isinstance(name, str) for name in theirs):
        raise ConfigError(f"{weights!r} holds no tensors by name.")
    _compare(about, config, weights, theirs)
    settled = _settled(config)
    for key, _ in overrides:
        if key.removeprefix("model.") in settled:
            raise ConfigError(f"--config.{key}: {about!r} settles it, so it cannot be given.")
    open_keys = {"d_ch": config["channel_width"], "d_attention": (64,)}
    model = bundle_lib.resolve_model(settled | open_keys, overrides)
    entries, shapes = _entries(model), _abstract(model, config["n_stats"])
    for name, shape in _shapes_there(entries, shapes).items():
        if name not in theirs:
            break  # What stands there instead may be of another model: say that it is missing.
        found = getattr(theirs[name], "shape", shape)
        if found != shape:
            raise ConfigError(
                f"{weights!r}: {name!r} is of shape {list(found)} and must be {list(shape)}."
            )
    ours = layout.read(repr(weights), theirs, entries, shapes)
    table = {place: array for place, array in ours.items() if place.startswith("batch_stats/")}
    dtypes = {k: v.dtype.name for k, v in theirs.items() if v.dtype != np.float32}
    notes = [
        "The format holds averaged weights and no discriminator.",
        "Statistics in mode `hf-compat` are those of pytorch_pretrained_biggan, which reads wrong"
        " rows of the table at some truncations; mode `correct` reads the right ones.",
    ]
    if dtypes:
        notes.append(f"Tensors that are not float32 in the file and became so: {len(dtypes)}.")
    rows = config["n_stats"]
    bundle = Bundle(
        name=os.path.basename(os.path.abspath(path)),
        model=model,
        tensors={},
        truncation="hub",
        grid=tuple(row / (rows - 1) for row in range(rows)),
        source={
            "format": NAME,
            "files": {n: bundle_lib.sha256(os.path.join(path, n)) for n in (CONFIG, WEIGHTS)},
            "notes": notes,
            "config": text,
            "dtypes": dtypes,
        },
    )
    bundle.add("ema", ours | {place: array[-1].copy() for place, array in table.items()})
    bundle.add("table", table)
    return bundle


def check(bundle: Bundle) -> None:
    """Checks that the format can hold a model; of its table of statistics nothing is said.

    Raises:
      ConfigError: naming the first thing that it cannot hold.
    """
    model, name = bundle.model, bundle.name
    attention = model["g_attention"]
    reasons = {
        "only BigGAN-deep can be written, and this is BigGAN": model["arch"] != "biggan_deep",
        "compare_gan's networks cannot be written": model["compare_gan"],
        f"spectral norm by the rule {model['sigma_rule']!r} cannot be written, only fresh, hub and"
        " stored": model["sigma_rule"] == "shorter_side",
        f"a model of {model['resolution']} px cannot be written, only of"
        f" {', '.join(map(str, RESOLUTIONS))} px": model["resolution"] not in RESOLUTIONS,
        f"shared_dim={model['shared_dim']} and z_dim={model['z_dim']} must be equal": (
            model["shared_dim"] != model["z_dim"]
        ),
        f"bn_eps={model['bn_eps']:g} and out_bn_eps={model['out_bn_eps']:g} must be equal": (
            model["bn_eps"] != model["out_bn_eps"]
        ),
        f"rgb_channels={model['rgb_channels']} must be at most g_ch={model['g_ch']}": (
            model["rgb_channels"] > model["g_ch"]
        ),
        f"attention at {' and '.join(map(str, attention))} px cannot be written, only at one size,"
        " and below the image's": len(attention) > 1 or model["resolution"] in attention,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(f"{name}: as {NAME}, {reason}.")


def write(bundle: Bundle, folder: str) -> list[str]:
    """Writes the generator, the averaged one if there is one, as a folder that the program loads.

    What `read` read is written with the same tensors. Other BigGAN-deep generators are brought to
    the program's form, which changes no image: rows of the condition's kernels to [z, embedding],
    zeros for outputs of the last convolution that nobody sees, and the u and v of the power
    iteration that our evaluation does (spec section 8.4).

    Args:
      bundle: with a `table` at equal steps of truncation from 0 to 1; the program has 51 rows.
      folder: to make.

    Returns:
      Sentences on what was changed or left out.

    Raises:
      ConfigError: if the format cannot hold the model, the table is missing, or the folder is
        there already.
    """
    check(bundle)
    table, rows = bundle.part("table"), len(bundle.grid)
    if not table:
        raise ConfigError(
            f"{bundle.name}: as {NAME}, it needs BN statistics for 51 truncations, and has none."
        )
    if rows < 2 or not np.allclose(bundle.grid, np.linspace(0, 1, rows), rtol=0, atol=1e-6):
        raise ConfigError(
            f"{bundle.name}: as {NAME}, its BN statistics must be at equal steps of truncation"
            " from 0 to 1, and are not."
        )
    arrays, notes = _in_their_form(bundle.model, bundle.generator() | table, bundle.name)
    entries = _entries(bundle.model)
    theirs = layout.write(arrays, entries, _shapes_there(entries, arrays))
    text, dtypes = _config_text(bundle.model, rows), {}
    source = bundle.source
    if source.get("format") == NAME:
        dtypes = source["dtypes"]
        said = DEFAULTS | json.loads(source["config"])
        same = {key: bundle.model[key] for key in _settled(said)} == _settled(said)
        if same and said["n_stats"] == rows:
            text = source["config"]
    theirs = {name: array.astype(dtypes.get(name, "float32")) for name, array in theirs.items()}
    with files.new_folder(folder) as temporary:
        pth.write(os.path.join(temporary, WEIGHTS), theirs)
        files.write_whole(os.path.join(temporary, CONFIG), text)
    if bundle.part("d"):
        notes.append("The discriminator is left out: the format has none.")
    if bundle.part("ema") and bundle.part("g"):
        notes.append("The raw generator is left out: the averaged one is written.")
    if bundle.class_names:
        notes.append("The names of the classes are left out: the format has no place for them.")
    return notes


def _read_config(path) -> tuple[str, dict[str, Any]]:
    """The text of a config.json and its values, with the program's own where a key is missing."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        given = json.loads(text)
    except OSError as e:
        raise ConfigError(f"{path!r} cannot be read: {e.strerror}.") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path!r} is damaged: it is not JSON.") from e
    if not isinstance(given, dict):
        raise ConfigError(f"{path!r} is damaged: it holds no keys and values.")
    config = DEFAULTS | given
    least = {"output_dim": 1, "z_dim": 1, "channel_width": 1, "num_classes": 1, "n_stats": 2}
    for key, value in least.items():
        if type(config[key]) is not int or config[key] < value:
            raise ConfigError(
                f"{path!r}: {key}={config[key]!r}: must be a whole number of at least {value}."
            )
    eps, position = config["eps"], config["attention_layer_position"]
    if type(eps) not in (int, float) or not 0 < eps < float("inf"):
        raise ConfigError(f"{path!r}: eps={eps!r}: must be a number above 0.")
    if config["output_dim"] not in RESOLUTIONS:
        raise ConfigError(
            f"{path!r}: output_dim={config['output_dim']}: must be one of"
            f" {', '.join(map(str, RESOLUTIONS))}."
        )
    layers = _layers(config["output_dim"])
    if config["layers"] != layers:
        raise ConfigError(
            f"{path!r}: layers: must be those of BigGAN-deep at {config['output_dim']} px,"
            f" {json.dumps(layers)}."
        )
    # The program has no attention where no block has that index.
    if position is not None and type(position) is not int:
        raise ConfigError(
            f"{path!r}: attention_layer_position={position!r}: must be a whole number."
        )
    if position in range(len(layers)) and position not in range(2, len(layers), 2):
        raise ConfigError(
            f"{path!r}: attention_layer_position={position}: must be the index of the first block"
            f" of a stage, which is even and from 2 to {len(layers) - 2}, or of no block at all."
        )
    return text, config


def _settled(config) -> dict[str, Any]:
    """The keys of `config.model` that a config.json and the program's code fix."""
    position = config["attention_layer_position"]
    attention = [4 << position // 2] if position in range(len(config["layers"])) else []
    return {
        "arch": "biggan_deep",
        "resolution": config["output_dim"],
        "num_classes": config["num_classes"],
        "g_ch": config["channel_width"],
        "z_dim": config["z_dim"],
        "shared_dim": config["z_dim"],  # Whatever class_embed_dim says: the program reads it not.
        "shared_embedding": True,
        "hierarchical_z": True,
        "g_attention": attention,
        "rgb_channels": config["channel_width"],
        "bn_eps": float(config["eps"]),
        "out_bn_eps": float(config["eps"]),
        "sn_eps": float(config["eps"]),
        "condition_order": "z_first",
        "sigma_rule": "stored",
        "compare_gan": False,
    }


def _compare(about, config, weights, theirs):
    """Holds the sizes in config.json against the tensors that show them best."""
    names = [entry.theirs for entry in _entries(_settled(config))]
    absent = [name for name in names if name not in theirs]
    if len(absent) > len(names) / 2:
        raise ConfigError(
            f"{weights!r}: {len(absent)} of the {len(names)} tensors that"
            f" pytorch_pretrained_biggan 0.1.1 has are missing, {absent[0]!r} the first; files from"
            " before that version have other names and are not read."
        )
    for name, keys in {
        "embeddings.weight": ("z_dim", "num_classes"),
        "generator.bn.running_means": ("n_stats", "channel_width"),
    }.items():
        shape = getattr(theirs.get(name), "shape", None)
        if shape is None:
            raise ConfigError(f"{weights!r}: the tensor {name!r} is missing.")
        want = {key: config[key] for key in keys}
        if shape != tuple(want.values()):
            said = " and ".join(f"{key}={value}" for key, value in want.items())
            raise ConfigError(f"{about!r}: {said}, but {name!r} is of shape {list(shape)}.")


def _entries(model: Mapping[str, Any]) -> list[Entry]:
    """The format's table, in the order of the program's own files."""
    entries = [Entry("params/shared/embedding", "embeddings.weight", "dense")]

    def add(ours, theirs, kind="same"):
        entries.append(Entry(ours, f"generator.{theirs}", kind))

    def spectral(ours, theirs, kernel, bias=False, v="same"):
        if bias:
            add(f"params/{ours}/bias", f"{theirs}.bias")
        add(f"params/{ours}/kernel", f"{theirs}.weight_orig", kernel)
        add(f"spectral/{ours}/u", f"{theirs}.weight_u")
        add(f"spectral/{ours}/v", f"{theirs}.weight_v", v)

    def statistics(ours, theirs):
        add(f"batch_stats/{ours}/mean", f"{theirs}.running_means")
        add(f"batch_stats/{ours}/var", f"{theirs}.running_vars")

    spectral("linear", "gen_z", "dense", bias=True)
    # Attention stands in the list of layers, so that the blocks behind it are numbered one higher.
    before = {_position(size): size for size in model["g_attention"]}
    layer = 0
    for block in range(len(_layers(model["resolution"]))):
        if block in before:
            ours, theirs = f"attention{before[block]}", f"layers.{layer}"
            add(f"params/{ours}/gamma", f"{theirs}.gamma")
            for name, their_name in {"theta": "", "phi": "", "g": "", "o": "_conv"}.items():
                spectral(f"{ours}/{name}", f"{theirs}.snconv1x1_{name}{their_name}", "conv")
            layer += 1
        for i in range(4):
            ours, theirs = f"block{block}/bn{i + 1}", f"layers.{layer}.bn_{i}"
            statistics(ours, theirs)
            spectral(f"{ours}/gain", f"{theirs}.scale", "dense")
            spectral(f"{ours}/bias", f"{theirs}.offset", "dense")
            ours, theirs = f"block{block}/conv{i + 1}", f"layers.{layer}.conv_{i}"
            v = "conv_v" if i in (1, 2) else "same"
            spectral(ours, theirs, "conv", bias=True, v=v)
        layer += 1
    add("params/out_bn/gain", "bn.weight")
    add("params/out_bn/bias", "bn.bias")
    statistics("out_bn", "bn")
    spectral("out_conv", "conv_to_rgb", "conv", bias=True, v="conv_v")
    return entries


def _position(size):
    """Index of the block behind attention at a size: two blocks double the 4 px of the start."""
    return 2 * (size // layout.SEED).bit_length() - 2


def _abstract(model, rows):
    """The generator's shapes, with `rows` rows of statistics."""
    shapes, _ = layout.abstract(model)
    return {
        place: jax.ShapeDtypeStruct((rows, *s.shape), s.dtype)
        if place.startswith("batch_stats/")
        else s
        for place, s in shapes.items()
    }


def _shapes_there(entries: Sequence[Entry], ours: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of their tensors, from arrays or shapes of ours: u, v and gamma have one axis."""
    shapes = {}
    for entry in entries:
        shape = ours[entry.ours].shape
        flat = entry.ours.startswith("spectral/") or not shape
        there = layout.shape_there(shape, entry.kind) or ((int(np.prod(shape)),) if flat else shape)
        shapes[entry.theirs] = there
    return shapes


def _in_their_form(model, arrays: Arrays, name: str) -> tuple[Arrays, list[str]]:
    """The same generator as the program would have it, and what was changed."""
    arrays, notes = dict(arrays), []
    if model["condition_order"] == "embedding_first":
        swap = model["z_dim"]  # Of as many embedding rows and as many z rows, one after the other.
        for place, array in arrays.items():
            if place.startswith("params/") and place.endswith("/kernel") and array.ndim == 2:
                arrays[place] = np.roll(array, swap, axis=0)
                v = place.replace("params/", "spectral/").replace("/kernel", "/v")
                if v in arrays:
                    arrays[v] = np.roll(arrays[v], swap, axis=1)
        notes.append("The rows of the condition's kernels are reordered to [z, embedding].")
    if model["sigma_rule"] != "stored":
        for place in [place for place in arrays if place.startswith("spectral/")]:
            layer = place.removeprefix("spectral/").removesuffix("/u")
            arrays |= _stored(layer, arrays, model["sn_eps"], model["sigma_rule"], name)
        notes.append("The u and v written are those of one power iteration from the u there was.")
    missing = model["g_ch"] - model["rgb_channels"]
    if missing:
        for place in ("params/out_conv/kernel", "params/out_conv/bias", "spectral/out_conv/u"):
            pad = [(0, 0)] * (arrays[place].ndim - 1) + [(0, missing)]
            arrays[place] = np.pad(arrays[place], pad)
        notes.append(
            f"The last convolution got {missing} outputs of zeros: the program has"
            f" {model['g_ch']} and shows the first 3."
        )
    if model["sn_eps"] != model["bn_eps"]:
        notes.append(
            f"Spectral norm's eps of {model['sn_eps']:g} is not kept: the program has one eps,"
            f" {model['bn_eps']:g}, and uses it there in training alone."
        )
    return arrays, notes


def _stored(layer, arrays, eps, rule, name):
    """A layer's u and v with which the program's sigma is the one that our evaluation finds."""
    kernel = arrays[f"params/{layer}/kernel"]
    matrix, u = jnp.asarray(kernel.reshape(-1, kernel.shape[-1])), arrays[f"spectral/{layer}/u"]
    sigma, new_u, v = ops.spectral_sigma(matrix, u, eps, additive=rule == "hub")
    if abs(sigma) < 1e-12:  # Our networks divide by 1e-12 there.
        raise ConfigError(f"{name}: as {NAME}, the program would divide {layer!r} by zero.")
    return {f"spectral/{layer}/u": np.asarray(new_u), f"spectral/{layer}/v": np.asarray(v)}


def _config_text(model, rows):
    """A config.json, written as the program writes it."""
    attention = model["g_attention"]
    config = {
        "output_dim": model["resolution"],
        "z_dim": model["z_dim"],
        "class_embed_dim": model["z_dim"],
        "channel_width": model["g_ch"],
        "num_classes": model["num_classes"],
        "layers": _layers(model["resolution"]),
        "attention_layer_position": _position(attention[0]) if attention else -1,
        "eps": model["bn_eps"],
        "n_stats": rows,
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
