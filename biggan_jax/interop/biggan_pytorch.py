"""Checkpoint folders of BigGAN-PyTorch, the author's port (spec sections 7, 8 and 18.1 to 18.3).

A folder holds `G.pth`, `G_ema.pth`, `D.pth` and `state_dict.pth`: counters and the arguments of the
run. It may hold more such sets, told apart by a suffix, as `G_copy0.pth` and `G_best1.pth`.

Writing gives folders that the author's classes load with `strict=True`. What came from such a
folder goes back tensor for tensor. Of other models are refused: 16 px, for which the author has no
table, the variants of compare_gan, and `u` on the shorter side. D alone is left out, and the rest
written, where the author has no such D: at 512 px, and at 32 px with attention.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.interop import biggan_pytorch_config as config_there
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout, pth
from biggan_jax.interop.bundle import Bundle
from biggan_jax.interop.layout import Arrays, Entry

NAME = "biggan-pytorch"
STEMS = {"g": "G", "ema": "G_ema", "d": "D"}  # Network -> file, without suffix and ".pth".
_FILE = re.compile(r"(G_ema|G_optim|D_optim|state_dict|G|D)(?:_(.+))?\.pth")
# How names of BN statistics begin, by the arguments --mybn and --cross_replica.
_STATISTICS = {"plain": "stored_", "mybn": "bn.stored_", "cross_replica": "bn.running_"}
_COUNTER = "accumulation_counter"
# Tensors that say something and do nothing: kept to be written back.
_INFORMATIVE = re.compile(rf".*\.(sv0|bn\.{_COUNTER}|bn\.num_batches_tracked)")


def recognise(path: str) -> bool:
    """Whether `path` is such a folder, or one of the files in it, by name; never raises."""
    try:
        names = [os.path.basename(path)] if os.path.isfile(path) else os.listdir(path)
    except (OSError, ValueError):
        return False
    return any(_kind(name) for name in names)


def read(path: str, overrides: Iterable[tuple[str, str]] = ()) -> Bundle:
    """Reads a set of files.

    What the model is follows from the tensors. The arguments add the epsilons. BN variances are
    taken as they are: torch's running ones are unbiased, which ours are not (spec section 7.2).

    Args:
      path: the folder, or one file of the set to read, as in "FOLDER/G_ema_best3.pth". Of a folder
        the set without suffix is read, else the one of most iterations, else the newest "best".
      overrides: (dotted key, text) pairs for `bundle.resolve_model`.

    Returns:
      A bundle of the networks that are there.

    Raises:
      ConfigError: naming what is missing, damaged, contradictory or not supported.
    """
    overrides = tuple(overrides)
    places, notes = _choose(path)
    arguments = places.get("state_dict", "")
    try:
        state = _plain(_state(arguments)) if arguments else None
    except RecursionError:  # pth reads a list that holds itself as one.
        raise ConfigError(f"{arguments!r} is damaged: it is nested without an end.") from None
    tensors = {stem: _tensors(places[stem]) for stem in STEMS.values() if stem in places}
    model = _model(places, tensors, state, overrides, notes)

    source: dict[str, Any] = {"format": NAME, "files": {}, "notes": notes, "state_dict": state}
    source |= {"batch_norm": {}, "unusual": {}}
    folder = os.path.dirname(path) if os.path.isfile(path) else path
    name = os.path.basename(os.path.abspath(folder))
    bundle = Bundle(name, model, {}, source=source)
    shapes = layout.abstract(model)
    for network, stem in STEMS.items():
        if stem not in tensors:
            continue
        where, wanted = places[stem], shapes[network == "d"]
        style = _style(tensors[stem])
        theirs, kept = _averages(where, tensors.pop(stem))
        if network != "d":
            source["batch_norm"][stem] = style
            notes += _about_statistics(stem, style, theirs, bool(kept))
        table = entries(network, model, wanted, style)
        bundle.add(network, layout.read(where, theirs, table, wanted, _is_informative))
        source["unusual"][stem] = _unusual(theirs, table, wanted)
        kept |= {k: v for k, v in theirs.items() if _is_informative(k)}
        bundle.add(f"extra/{stem}", kept)
    source["files"] = {os.path.basename(p): bundle_lib.sha256(p) for p in places.values()}
    return bundle


def write(bundle: Bundle, folder: str) -> list[str]:
    """Writes `G.pth`, `G_ema.pth`, `D.pth`, as far as the bundle has them, and `state_dict.pth`.

    A bundle that was read from such a folder gives the same tensors. Otherwise the condition is
    [embedding, z], as the author's classes have it. One head is an exception: with 128 channels it
    fits only the version of BigGANdeep.py of pull request 72, which has [z, embedding]; so that is
    written, and `condition_order` among the arguments tells `read`.

    Args:
      bundle: the model.
      folder: a new one.

    Returns:
      Sentences on what images of the author's classes will differ by, and on what is left out.

    Raises:
      ConfigError: if the author's classes have no such model, or the folder is there.
    """
    model, source = bundle.model, bundle.source
    native = source.get("format") == NAME
    _refuse(model)
    notes = _differences(bundle)
    left_out = "" if native or not bundle.part("d") else _why_no_d(model)
    order = model["condition_order"]
    if not native:
        wide = model["arch"] == "biggan_deep" and model["rgb_channels"] != 3
        order = "z_first" if wide else "embedding_first"
        notes += [left_out] if left_out else []
        notes += _about_head(model)
    shapes = layout.abstract(model)
    with files.new_folder(folder) as temporary:
        for network, stem in STEMS.items():
            ours, wanted = bundle.part(network), shapes[network == "d"]
            if not ours or (network == "d" and left_out):
                continue
            if order != model["condition_order"]:
                ours = _swap_condition(ours, model)
            style = source["batch_norm"].get(stem, "plain") if native else "plain"
            theirs = _to_theirs(ours, entries(network, model, wanted, style), wanted)
            if native:
                _restore(theirs, bundle.part(f"extra/{stem}"))
                for name, (dtype, shape) in source["unusual"].get(stem, {}).items():
                    theirs[name] = theirs[name].astype(dtype).reshape(shape)
            else:
                theirs |= _sigmas(theirs, model["sn_eps"])
            pth.write(os.path.join(temporary, f"{stem}.pth"), theirs)
        state = source["state_dict"] if native else None
        if state is None:
            arguments = config_there.to_arguments(model)
            if order != "embedding_first":
                arguments["condition_order"] = order
            state = {"itr": source.get("itr", 0), "epoch": 0, "save_num": 0, "save_best_num": 0}
            state |= {"best_IS": 0, "best_FID": 999999, "config": arguments}
        pth.write(os.path.join(temporary, "state_dict.pth"), state)
    return notes


def entries(
    network: str, model: Mapping[str, Any], shapes: Mapping[str, Any], style: str = "plain"
) -> list[Entry]:
    """Returns the table of one network.

    Args:
      network: "g", "ema" or "d".
      model: resolved.
      shapes: of `layout.abstract`; every place becomes an entry.
      style: how BN statistics are named, a key of `_STATISTICS`.
    """
    discriminator, deep = network == "d", model["arch"] == "biggan_deep"
    leaves = {"kernel": "weight", "embedding": "weight", "u": "u0"}
    leaves |= {name: _STATISTICS[style] + name for name in ("mean", "var")}
    renamed = {"out_bn": "output_layer.0", "out_conv": "output_layer.2", "in_conv": "input_conv"}

    def module(name: str) -> str:
        if match := re.fullmatch(r"block(\d+)", name):
            i = int(match[1])
            return f"blocks.{i // 2}.{i % 2}" if discriminator and deep else f"blocks.{i}.0"
        if match := re.fullmatch(r"attention(\d+)", name):
            stage = config_there.stage_of(int(match[1]), model["resolution"], discriminator)
            if not deep:
                return f"blocks.{stage}.1"
            return f"blocks.{stage}.2" if discriminator else f"blocks.{2 * stage + 1}.1"
        return renamed.get(name, name)

    table = []
    for place, shape in shapes.items():
        _, *path, leaf = place.split("/")
        theirs = ".".join([module(path[0]), *path[1:], leaves.get(leaf, leaf)])
        if path == ["linear"] and not discriminator:
            kind = "first_kernel" if leaf == "kernel" else "first_vector"
        elif leaf == "kernel":
            kind = "conv" if len(shape.shape) == 4 else "dense"
        else:
            kind = "exact" if leaf == "embedding" else "same"
        table.append(Entry(place, theirs, kind))
    return table


# Files.


def _kind(name):
    """(stem, suffix) of a file that is read, or None."""
    match = _FILE.fullmatch(name)
    return (match[1], match[2] or "") if match and not match[1].endswith("_optim") else None


def _choose(path):
    """The files of the set to read, `{stem: path}`, and notes on which and on what is left."""
    folder, picked = path, None
    if os.path.isfile(path):
        folder, kind = os.path.dirname(path) or ".", _kind(os.path.basename(path))
        if kind is None:
            raise ConfigError(f"{path!r}: no file of {NAME} has such a name.")
        picked = kind[1]
    elif not os.path.isdir(path):
        raise ConfigError(f"{path!r} does not exist.")
    names = sorted(os.listdir(folder))
    sets: dict[str, dict[str, str]] = {}
    for name in names:
        if kind := _kind(name):
            sets.setdefault(kind[1], {})[kind[0]] = os.path.join(folder, name)
    whole = {suffix: s for suffix, s in sets.items() if "G" in s or "G_ema" in s}
    if picked is None:
        newest = max(whole, key=lambda suffix: _rank(suffix, whole[suffix]), default="")
        picked = "" if "" in whole else newest
    if picked not in whole:
        end = f"_{picked}.pth" if picked else ".pth"
        raise ConfigError(f"{folder!r} holds neither G{end} nor G_ema{end}: no generator.")
    notes = []
    if picked or len(sets) > 1:
        others = ", ".join(repr(suffix) for suffix in sets if suffix != picked) or "none"
        notes.append(f"The set with suffix {picked!r} was read; other suffixes: {others}.")
    if any(_FILE.fullmatch(name) and "_optim" in name for name in names):
        notes.append("The optimisers' states (G_optim.pth, D_optim.pth) are not read.")
    return whole[picked], notes


def _rank(suffix, places):
    """What decides between sets with suffixes."""
    itr = None
    if "state_dict" in places:
        # If it is damaged and of the set that is read, that is said then.
        with contextlib.suppress(ConfigError):
            itr = _state(places["state_dict"]).get("itr")
    newest = os.path.getmtime(places.get("G_ema") or places["G"])
    return itr if isinstance(itr, int) else -1, suffix.startswith("best"), newest, suffix


def _state(path):
    state = pth.read(path)
    if not isinstance(state, dict):
        raise ConfigError(f"{path!r} holds no dict of counters and arguments.")
    return state


def _tensors(path):
    """The tensors of a file by name, without the prefix that DataParallel puts before them."""
    value = pth.read(path)
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{path!r} holds no tensors by name.")
    for name, array in value.items():
        if not isinstance(array, np.ndarray):
            raise ConfigError(f"{path!r}: {name!r} is not a tensor.")
    return {str(name).removeprefix("module."): array for name, array in value.items()}


def _plain(value):
    """What JSON can hold of a value: no modules of torch, no tensors; tuples become lists."""
    kinds = (type(None), bool, int, float, str, list, tuple, dict)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if type(k) is str and type(v) in kinds}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value if type(v) in kinds]
    return value


def _model(places, tensors, state, overrides, notes):
    """The resolved `config.model`."""
    where = places.get("state_dict", "")
    config = (state or {}).get("config")
    config = config if isinstance(config, dict) else {}
    stem = "G" if "G" in tensors else "G_ema"
    found = config_there.from_generator(places[stem], tensors[stem])
    if "D" in tensors:
        found |= config_there.from_discriminator(places["D"], tensors["D"], found)
    else:
        found |= config_there.without_discriminator(found)
    config_there.check(where, config, found, has_d="D" in tensors)
    epsilons, assumed = config_there.epsilons(where, config)
    notes += [text for key, text in assumed.items() if f"model.{key}" not in dict(overrides)]
    found |= {"out_bn_eps": config_there.OUT_BN_EPS} | epsilons
    if "condition_order" in config:  # Not the author's: `write` says why.
        found["condition_order"] = config["condition_order"]
    model = bundle_lib.resolve_model(found, overrides)
    if model["sigma_rule"] not in ("fresh", "hub"):
        raise ConfigError(
            f"--config.model.sigma_rule={model['sigma_rule']}: {NAME} keeps the vectors of the"
            " rules fresh and hub alone."
        )
    if model["arch"] == "biggan_deep":
        order = {"embedding_first": "[embedding, z]", "z_first": "[z, embedding]"}
        notes.append(
            f"The condition is taken as {order[model['condition_order']]}; versions of the author's"
            " BigGANdeep.py differ in that, and --config.model.condition_order picks the other."
        )
    return model


# Tensors.


def _is_informative(name):
    return _INFORMATIVE.fullmatch(name) is not None


def _style(tensors):
    for style in ("mybn", "cross_replica"):
        if f"output_layer.0.{_STATISTICS[style]}mean" in tensors:
            return style
    return "plain"


def _about_statistics(stem, style, tensors, divided):
    """Sentences for the card."""
    if divided:
        batches = max(v.item() for k, v in tensors.items() if k.endswith(_COUNTER))
        return [f"{stem}: BN statistics are sums over {batches:g} batches, and were divided."]
    if style == "cross_replica":
        return [
            f"{stem}: it was trained with --cross_replica; in evaluation the author's code adds the"
            " gain of such BNs where it should multiply, and here it multiplies."
        ]
    return []


def _averages(where, tensors):
    """Divides accumulated statistics by their counters; and the sums, to be written back."""
    tensors, sums = dict(tensors), {}
    for counter in [name for name in tensors if name.endswith(_COUNTER)]:
        if tensors[counter].size != 1:
            raise ConfigError(f"{where}: {counter!r} must be one number.")
        for name in _sums_of(counter):
            if tensors[counter].item() > 0 and name in tensors:
                sums[name] = tensors[name]
                tensors[name] = _divided(sums[name], tensors[counter])
    return tensors, sums


def _sums_of(counter):
    start = counter.removesuffix(_COUNTER)
    return start + "stored_mean", start + "stored_var"


def _divided(total, counter):
    return (total / counter.item()).astype(np.float32)


def _unusual(theirs, table, shapes):
    """{name: [dtype, shape]} of tensors that are not as `_to_theirs` would make them."""
    pairs = [(theirs[e.theirs], e.theirs, _shape_there(e, shapes)) for e in table]
    return {
        name: [array.dtype.name, list(array.shape)]
        for array, name, shape in pairs
        if array.shape != shape or array.dtype != np.float32
    }


def _shape_there(entry, shapes):
    ours = shapes[entry.ours].shape
    return layout.shape_there(ours, entry.kind) or ours


def _to_theirs(ours: Arrays, table: list[Entry], shapes: Mapping[str, Any]) -> Arrays:
    # Right vectors, of the rule "stored", have no place there.
    table = [entry for entry in table if not entry.ours.endswith("/v")]
    return layout.write(ours, table, {e.theirs: _shape_there(e, shapes) for e in table})


def _restore(theirs: Arrays, kept: Arrays) -> None:
    """Puts back what the source held beside our tensors."""
    theirs |= {name: array for name, array in kept.items() if name not in theirs}
    for counter in [name for name in kept if name.endswith(_COUNTER)]:
        sums = {name: kept[name] for name in _sums_of(counter) if name in kept}
        if all(np.array_equal(_divided(v, kept[counter]), theirs[k]) for k, v in sums.items()):
            theirs |= sums
        else:  # Other statistics than were read, and no sums.
            theirs[counter] = np.zeros_like(kept[counter])


def _sigmas(theirs: Arrays, eps: float) -> Arrays:
    """`sv0` for each `u0`: sigma after one iteration."""
    unit = lambda x: x / max(np.linalg.norm(x), eps)  # noqa: E731
    sigmas = {}
    for name in [n for n in theirs if n.endswith(".u0")]:
        weight = theirs[name.removesuffix("u0") + "weight"]
        matrix = weight.reshape(len(weight), -1)
        right = unit(theirs[name] @ matrix) @ matrix.T
        sigma = np.sum(right * unit(right), dtype=np.float32)
        sigmas[name.removesuffix("u0") + "sv0"] = sigma.reshape(1)
    return sigmas


def _swap_condition(ours: Arrays, model: Mapping[str, Any]) -> Arrays:
    """Puts the rows of kernels that take a condition of both into the other order."""
    if not model["hierarchical_z"]:
        return ours
    deep = model["arch"] == "biggan_deep"
    swapped = dict(ours)
    for place, kernel in ours.items():
        conditional = re.fullmatch(r"params/block\d+/bn\d/(gain|bias)/kernel", place)
        if conditional or (deep and place == "params/linear/kernel"):
            first = model["shared_dim"]
            if model["condition_order"] == "z_first":
                first = len(kernel) - first
            swapped[place] = np.concatenate([kernel[first:], kernel[:first]])
    return swapped


# What the author's classes have not, or have otherwise.


def _refuse(model):
    if model["compare_gan"]:
        raise ConfigError(
            "model.compare_gan=True: the author's PyTorch classes have no such networks."
        )
    if model["resolution"] not in config_there.RESOLUTIONS:
        raise ConfigError(
            f"model.resolution={model['resolution']}: the author's PyTorch classes are for"
            f" {', '.join(map(str, config_there.RESOLUTIONS))} px alone."
        )
    if model["sigma_rule"] == "shorter_side":
        raise ConfigError(
            "model.sigma_rule=shorter_side: the author's PyTorch classes have u on the side of the"
            " outputs."
        )


def _why_no_d(model):
    if model["resolution"] == 512:
        return "D is left out: the author has none for 512 px."
    if model["resolution"] == 32 and model["d_attention"]:
        return "D is left out: at 32 px the author's has attention after every block or after none."
    return ""


def _about_head(model):
    if model["rgb_channels"] == 3:
        return []
    return [
        f"The head has {model['rgb_channels']} channels and that of the author's classes 3: it"
        " loads where the class was changed, as in pull request 72."
    ]


def _differences(bundle):
    """Sentences on what the author's classes compute otherwise than our networks."""
    model, notes = bundle.model, []
    if model["out_bn_eps"] != config_there.OUT_BN_EPS:
        notes.append(
            f"The author's classes have an eps of {config_there.OUT_BN_EPS:g} in G's last BN,"
            f" whatever BN_eps is, and this model has one of {model['out_bn_eps']:g}: their images"
            " differ a little."
        )
    if model["sigma_rule"] == "stored":
        notes.append(
            "The author's classes take sigma after one more iteration from the stored u, and this"
            " model takes it from the stored u and v: their images differ a little."
        )
    if model["sigma_rule"] == "hub":
        notes.append(
            "The author's classes take the larger of a norm and eps where this model adds them:"
            " their images differ a little."
        )
    if bundle.grid:
        notes.append(
            f"BN statistics for {len(bundle.grid)} truncations have no place there; the one set"
            " that is written is that of the networks."
        )
    return notes
