"""The configuration: every key with its default, command-line overrides, validation, resolution.

A config file is a Python file with `get_config(variant: str = "")` that returns `default()` with
values changed. `load` reads one and applies `key=value` overrides, `resolve` checks it and turns
what is left open (`None`) into numbers, once: what comes out is frozen and is what a run records.
"""

import ast
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

RESOLUTIONS = (16, 32, 64, 128, 256, 512)
_DTYPES = ("float32", "bfloat16")
_INITS = ("orthogonal", "n02", "xavier")
RESIZES = ("area", "bilinear", "pil_bilinear", "lanczos")
DECODES = ("exact", "scaled")
POLICIES = ("rollback", "stop", "ignore")
PARALLEL = ("data", "zero1", "fsdp")
CROPS = ("center", "random_zoom")
ARCHITECTURES = ("biggan", "biggan_deep")
ORDERS = ("embedding_first", "z_first")
SIGMA_RULES = ("fresh", "stored", "hub", "shorter_side")
_AT_LEAST_ONE = (
    "num_steps",
    "batch_size",
    "d_steps",
    "accumulation",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "sample_every",
    "heartbeat_seconds",
    "watch_every",
    "watch.window",
    "watch.sigma_looks",
    "model.num_classes",
    "model.g_ch",
    "model.d_ch",
    "model.z_dim",
    "model.shared_dim",
    "model.rgb_channels",
    "sample.rows",
    "sample.classes",
    "sample.standing_passes",
)
_POSITIVE = (
    "grace_seconds",
    "hang_dump_seconds",
    "hang_exit_seconds",
    "watch.g_lr_factor",
    "watch.loss_limit",
    "watch.sigma_growth",
    "model.bn_eps",
    "model.out_bn_eps",
    "model.sn_eps",
    "optim.g_lr",
    "optim.d_lr",
    "optim.eps",
)
_NOT_NEGATIVE = (
    "seed",
    "profile_steps",
    "keep_every",
    "keep_best",
    "watch.max_rollbacks",
    "watch.margin",
    "watch.flat_gap",
    "watch.won_loss",
    "watch.diversity_after",
    "data.cache_mib",
    "data.fraction_seed",
    "optim.g_ortho",
    "optim.freeze_d_blocks",
    "optim.warmup",
    "ema.start",
)
# What config.json files of before these keys lack; the defaults do what was done then.
_ADDED = (
    *("keep_every", "keep_best", "best_metric", "best_is", "compilation_cache"),
    *("grace_seconds", "heartbeat_seconds", "hang_dump_seconds", "hang_exit_seconds"),
    *("watch_every", "parallel"),
    "watch.",
    "optim.one_g_pass",
    *("preset", "profile_steps"),
)
_BELOW_ONE = (
    *("model.bn_momentum", "optim.beta1", "optim.beta2", "ema.decay"),
    "watch.diversity_drop",
)


class ConfigError(ValueError):
    """What a user gave cannot be used; the message is one sentence meant for that user."""


def default() -> ml_collections.ConfigDict:
    """Returns the paper's BigGAN-128 recipe (Brock et al. 2018, appendix C) on ImageNet.

    Keys whose value is `None` are numbers that depend on others or on the machine; `resolve`
    fills them in.
    """
    c = ml_collections.ConfigDict()
    c.name = "biggan128"
    c.seed = 0
    c.num_steps = 150_000  # One step is d_steps D updates and one G update.
    c.batch_size = 2048  # Images a D update and a G update, over all devices and micro-batches.
    c.d_steps = 2
    c.accumulation = 1  # Micro-batches an update. BN and spectral norm see micro-batches.
    c.device_count = config_dict.placeholder(int)  # None: all there are. On CPU: simulated.
    # Or "zero1": each device keeps and works on its part of the optimizers' moments and the EMA.
    # Or "fsdp": of the weights too, which are gathered for each pass in the dtype of convolutions.
    c.parallel = "data"
    c.log_every = 100
    c.checkpoint_every = 1000  # A kill costs fewer steps, from 2 on: there is a save half-way too.
    c.keep_checkpoints = 5  # The latest ones. Besides, and together:
    c.keep_every = 0  # Those whose step is a multiple of this; 0: none.
    c.keep_best = 0  # How many with the best value of best_metric; 0: none.
    # A name in metrics.jsonl, as reported at the checkpoint's step, or of biggan evaluate --watch.
    c.best_metric = ""
    c.best_is = "lowest"  # Or "highest".
    c.sample_every = 1000
    c.init_from = ""  # A bundle or run folder to start from; "" for random weights.
    c.preset = ""  # "gpu" or "gpu:h100x8": dtype, accumulation, remat by memory (plan/preset.py).
    c.profile_steps = 0  # Steps of each start that are profiled, after its first ones; 0: none.
    c.compilation_cache = "auto"  # A folder; "auto": beside the run folder; "off": none.

    # What a run does when its machine is taken away or stands still.
    c.grace_seconds = 25.0  # From SIGTERM or SIGINT to the end.
    c.heartbeat_seconds = 60  # After which a process that is not heard of counts as dead.
    c.hang_dump_seconds = 300.0  # Without a finished step; then all stacks are printed.
    c.hang_exit_seconds = 900.0  # Without a finished step; then the process ends.

    # What a run does when it diverges or collapses; docs/watchdog.md.
    c.watch_every = 100  # Steps between two looks at singular values and diversity.
    c.watch = ml_collections.ConfigDict()
    c.watch.policy = "rollback"  # Or "stop", or "ignore".
    c.watch.max_rollbacks = 3  # Then the run stops.
    c.watch.margin = 1000  # Steps that lie between a healthy checkpoint and an alarm of collapse.
    c.watch.g_lr_factor = 1.0  # G's learning rate is multiplied by this at each rollback.
    # When it does so: the rules of train/watchdog.py. 0, or a very large limit, takes one out.
    c.watch.window = 200  # Steps that the rules on losses and logits look back.
    c.watch.flat_gap = 0.03  # Mean |D(real) - D(fake)| below: D tells nothing apart.
    c.watch.won_loss = 0.02  # D's mean loss below: D has won.
    c.watch.loss_limit = 50.0  # Half the losses above: they run away.
    c.watch.diversity_drop = 0.4  # Share of the usual diversity of fakes, or that of reals: below.
    c.watch.diversity_after = 5000  # The step from which on it is compared with that of reals.
    c.watch.sigma_growth = 3.0  # Times the singular value of sigma_looks looks ago.
    c.watch.sigma_looks = 5

    c.data = ml_collections.ConfigDict()
    c.data.name = "imagenet2012"  # A TFDS name, "digits" (embedded), "folder" or "fake".
    c.data.dir = config_dict.placeholder(str)  # TFDS data dir, or the image folder.
    c.data.split = "train"
    c.data.classes = ()  # Numbers of the classes kept, relabelled 0, 1, ... so; () for all.
    c.data.fraction = 1.0  # Of the records, drawn by fraction_seed; smaller parts lie in larger.
    c.data.fraction_seed = 0
    c.data.crop = "center"  # Or "random_zoom": a square of half to all of the centred one's area.
    c.data.resize = "area"  # Where images are not prepared at model.resolution.
    c.data.decode = "exact"  # Or "scaled": large JPEGs decoded smaller, faster.
    c.data.flip = False
    c.data.cache_mib = 1024  # Decoded data sets up to this size stay in memory.

    c.model = ml_collections.ConfigDict()
    c.model.arch = "biggan"
    c.model.resolution = 128
    c.model.num_classes = 1000
    c.model.g_ch = 96
    c.model.d_ch = 96
    c.model.z_dim = 120
    c.model.shared_dim = 128
    c.model.shared_embedding = True
    c.model.hierarchical_z = True
    c.model.g_attention = (64,)  # Resolutions after whose block attention stands; () for none.
    c.model.d_attention = (64,)
    c.model.rgb_channels = 3  # Of G's last convolution; released BigGAN-deep has 128, 3 are used.
    c.model.init = "orthogonal"
    c.model.bn_eps = 1e-4
    c.model.out_bn_eps = config_dict.placeholder(float)  # Of G's last BN; None: bn_eps.
    c.model.bn_momentum = 0.9  # Weight of the old running value.
    c.model.bn_group_size = config_dict.placeholder(int)  # None: the whole micro-batch.
    c.model.sn_eps = 1e-4
    # What foreign weights were made with. New models have no reason to change these.
    c.model.condition_order = "embedding_first"  # Of class embedding and z in the condition.
    c.model.sigma_rule = "fresh"  # How spectral norm finds sigma; see models/ops.py.
    c.model.compare_gan = False  # compare_gan's BN gain, unpooling, D tables and image range.
    c.model.dtype = "float32"  # Of convolutions; everything else is float32.
    c.model.remat = False  # Recompute block activations in the backward pass.

    c.optim = ml_collections.ConfigDict()
    c.optim.g_lr = 5e-5
    c.optim.d_lr = 2e-4
    c.optim.beta1 = 0.0
    c.optim.beta2 = 0.999
    c.optim.eps = 1e-8
    c.optim.warmup = 0  # Updates over which the learning rates rise; the paper has none.
    c.optim.g_ortho = 1e-4  # beta of the paper's equation 3, on G.
    # The fakes of all D steps of one pass of G; its u then moves once for them, not once each.
    c.optim.one_g_pass = False
    c.optim.freeze_d_blocks = 0  # Blocks of D, from the image on, that stay as they are (FreezeD).

    c.ema = ml_collections.ConfigDict()
    c.ema.decay = 0.9999
    c.ema.start = 20_000  # Before this step the EMA is a copy of G.

    c.sample = ml_collections.ConfigDict()
    c.sample.rows = 8  # Images a class on a sheet.
    c.sample.classes = config_dict.placeholder(int)  # On a training sheet; None: the first ten.
    c.sample.standing_passes = 16  # Forward passes averaged into standing statistics.
    c.sample.standing_batch = config_dict.placeholder(int)  # None: the micro-batch size.
    c.lock()  # An unknown key is an error, in config files too.
    return c


def author_pytorch_recipe(c: ml_collections.ConfigDict) -> None:
    """Changes the recipe to that of the author's PyTorch scripts (spec sections 7.2 and 11.3).

    The scripts reach a batch of 2048 by 8 micro-batches of 256 and, on 8 GPUs, normalise groups of
    32 images.
    """
    c.d_steps = 1
    c.accumulation = 8
    c.optim.update(g_lr=1e-4, d_lr=4e-4, eps=1e-6, g_ortho=0.0)
    c.model.update(bn_eps=1e-5, sn_eps=1e-6, bn_group_size=32)


def for_pods(c: ml_collections.ConfigDict) -> None:
    """Changes how a step is computed to what is fastest on a pod (docs/performance.md).

    The recipe stays. On one device `parallel` changes nothing; CPUs are faster in float32.
    """
    c.parallel = "fsdp"
    c.model.dtype = "bfloat16"


def load(path: str, overrides: Iterable[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Reads a config file and applies overrides, without resolving.

    Args:
      path: `FILE.py` or `FILE.py:VARIANT`; the variant is handed to the file's `get_config`.
      overrides: (dotted key, text) pairs, applied in order.

    Raises:
      ConfigError: if there is no such file or variant, or an override names an unknown key or has
        a value of the wrong type.
    """
    file, _, variant = path.partition(":")
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        names = []
        if os.path.isdir(folder):
            names = [os.path.join(folder, n) for n in os.listdir(folder) if n.endswith(".py")]
        raise ConfigError(f"--config: there is no file {file!r}{_nearest(file, names)}")
    spec = importlib.util.spec_from_file_location("biggan_config", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {file!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    with _speaking_of(file):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config: {file!r} has no function get_config().")
    takes_variant = bool(inspect.signature(module.get_config).parameters)
    if variant and not takes_variant:
        raise ConfigError(f"--config: {file!r} has no variants, so {variant!r} is unknown.")
    with _speaking_of(file):
        config = module.get_config(variant) if takes_variant else module.get_config()
    for key, text in overrides:
        override(config, key, text)
    return config


@contextlib.contextmanager
def _speaking_of(file):
    """Turns whatever a config file raises into one sentence."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as e:
        reason = " ".join(str(e).split()) or type(e).__name__
        raise ConfigError(f"--config: {file!r} cannot be used: {reason}") from e


def pick_variant(variant: str, known: Iterable[str]) -> str:
    """Returns `variant` if it is one of `known` or empty; config files call it.

    Raises:
      ConfigError: if it is neither.
    """
    if variant and variant not in known:
        raise ConfigError(
            f"--config: unknown variant {variant!r}; there is {', '.join(known)}"
            f"{_nearest(variant, known)}"
        )
    return variant


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets `config.key` from command-line text, keeping the key's type.

    Raises:
      ConfigError: if the key is unknown (the nearest one is named) or the text is of another type.
    """
    flat = flatten(config)
    if key not in flat:
        raise ConfigError(f"--config.{key}: unknown key{_nearest(key, flat)}")
    *parents, leaf = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    wanted = node.get_type(leaf)
    try:
        value: Any = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if wanted is str:
        value = text
    elif wanted is bool and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    elif wanted is tuple and isinstance(value, int) and not isinstance(value, bool):
        value = (value,)
    elif wanted is tuple and isinstance(value, list):
        value = tuple(value)
    elif wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is not type(None) and type(value) is not wanted:
        raise ConfigError(f"--config.{key}: {text!r} is not {_type_name(wanted)}.")
    node[leaf] = value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns `{dotted key: value}` of all leaves, in the order they were set."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the config as indented JSON with a newline at the end."""

    def nested(node):
        if isinstance(node, ml_collections.ConfigDict | Mapping):
            return {k: nested(v) for k, v in node.items()}
        return node

    return json.dumps(nested(config), indent=2) + "\n"


def fingerprint(config: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a config's JSON, in hexadecimal."""
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def from_json(text: str) -> ml_collections.FrozenConfigDict:
    """Reads what `to_json` wrote: a resolved config.

    Raises:
      ConfigError: if the text is not such a config.
    """
    try:
        saved = json.loads(text)
    except json.JSONDecodeError as e:
        raise ConfigError(f"config.json is not JSON: {e}.") from None
    if not isinstance(saved, dict):
        raise ConfigError("config.json holds no object of keys and values.")
    config, flat = default(), flatten(saved)
    missing = [key for key in flatten(config) if key not in flat and not key.startswith(_ADDED)]
    if missing:
        raise ConfigError(f"config.json has no {missing[0]!r}: another version wrote it.")
    for key, value in flat.items():
        if value is not None:  # Left open: `data.dir` alone.
            override(config, key, value if isinstance(value, str) else repr(value))
    return ml_collections.FrozenConfigDict(config)


def resolve(
    config: ml_collections.ConfigDict, available_devices: int
) -> ml_collections.FrozenConfigDict:
    """Checks a config and fills in what depends on the machine.

    Args:
      config: as `load` gives it; not changed.
      available_devices: taken where `device_count` is None.

    Returns:
      A frozen config without `None` but for `data.dir` (each data set knows its own place).

    Raises:
      ConfigError: naming the key, its value and what is allowed.
    """
    config = ml_collections.ConfigDict(config)
    if config.device_count is None:
        config.device_count = available_devices
    if config.sample.classes is None:
        config.sample.classes = max(1, min(10, config.model.num_classes))
    if config.model.out_bn_eps is None:
        config.model.out_bn_eps = config.model.bn_eps
    if config.device_count < 1:
        raise ConfigError(f"device_count={config.device_count}: must be at least 1.")
    _check_numbers(config)
    _check_choices(config)
    if config.keep_best and not config.best_metric:
        raise ConfigError(f"keep_best={config.keep_best}: needs best_metric, the name of one.")
    _check_model(config)
    _check_batch(config)
    if config.sample.classes > config.model.num_classes:
        raise ConfigError(
            f"sample.classes={config.sample.classes}: must be at most model.num_classes ="
            f" {config.model.num_classes}."
        )
    micro = config.batch_size // config.accumulation
    if config.model.bn_group_size is None:
        config.model.bn_group_size = micro
    group = config.model.bn_group_size
    if group < 1 or micro % group:
        raise ConfigError(
            f"model.bn_group_size={group}: must divide the micro-batch of {micro} images"
            f" (batch_size / accumulation); nearest is {_nearest_divisor(micro, group)}."
        )
    if config.sample.standing_batch is None:
        config.sample.standing_batch = micro
    standing = config.sample.standing_batch
    if standing < 1 or standing % config.device_count:
        raise ConfigError(
            f"sample.standing_batch={standing}: must be a multiple of the {config.device_count}"
            " devices."
        )
    return ml_collections.FrozenConfigDict(config)


def micro_batch_size(config: Mapping[str, Any]) -> int:
    """Returns images in one forward pass over all devices: `batch_size / accumulation`."""
    return config["batch_size"] // config["accumulation"]


def slots(config: Mapping[str, Any]) -> int:
    """Returns into how many pieces z is cut: one for the first linear and one a block, or 1."""
    model = config["model"]
    cut = model["arch"] == "biggan" and model["hierarchical_z"]
    return int(math.log2(model["resolution"])) - 1 if cut else 1


def d_blocks(model: Mapping[str, Any]) -> int:
    """Returns how many blocks D has; BigGAN-deep has two a stage and a convolution for a stage."""
    blocks = int(math.log2(model["resolution"])) - 1
    return 2 * (blocks - 1) if model["arch"] == "biggan_deep" else blocks


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the same model made small (8 channels, batch 8, 4 steps) for tests and smoke runs."""
    config = ml_collections.ConfigDict(config)
    config.update(num_steps=4, batch_size=8, log_every=1, checkpoint_every=2, sample_every=4)
    config.model.update(g_ch=8, d_ch=8, shared_dim=8)
    config.model.z_dim = 4 * slots(config)
    config.sample.update(rows=2, classes=2, standing_passes=2)
    return config


def _check_numbers(config):
    flat = flatten(config)
    for key in _AT_LEAST_ONE:
        if flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]}: must be at least 1.")
    for key in _POSITIVE:
        if not 0 < flat[key] < math.inf:
            raise ConfigError(f"{key}={flat[key]}: must be a number above 0.")
    for key in ("seed", "data.fraction_seed"):
        if flat[key] >= 2**31:
            raise ConfigError(f"{key}={flat[key]}: must be below 2**31.")
    for key in _NOT_NEGATIVE:
        if not 0 <= flat[key] < math.inf:
            raise ConfigError(f"{key}={flat[key]}: must be a number of at least 0.")
    if not 0 < flat["data.fraction"] <= 1:
        raise ConfigError(f"data.fraction={flat['data.fraction']}: must be above 0 and at most 1.")
    for key in _BELOW_ONE:
        if not 0 <= flat[key] < 1:
            raise ConfigError(f"{key}={flat[key]}: must be at least 0 and below 1.")


def _check_choices(config):
    flat = flatten(config)
    for key, allowed in {
        "model.arch": ARCHITECTURES,
        "model.condition_order": ORDERS,
        "model.sigma_rule": SIGMA_RULES,
        "model.dtype": _DTYPES,
        "model.init": _INITS,
        "data.resize": RESIZES,
        "data.decode": DECODES,
        "data.crop": CROPS,
        "best_is": ("lowest", "highest"),
        "parallel": PARALLEL,
        "watch.policy": POLICIES,
    }.items():
        if flat[key] not in allowed:
            raise ConfigError(
                f"{key}={flat[key]!r}: must be one of {', '.join(allowed)}"
                f"{_nearest(flat[key], allowed)}"
            )


def _check_model(config):
    model = config.model
    if model.resolution not in RESOLUTIONS:
        nearest = min(RESOLUTIONS, key=lambda r: abs(r - model.resolution))
        raise ConfigError(
            f"model.resolution={model.resolution}: must be one of"
            f" {', '.join(map(str, RESOLUTIONS))}; nearest is {nearest}."
        )
    if model.hierarchical_z and not model.shared_embedding:
        raise ConfigError(
            "model.hierarchical_z=True: needs model.shared_embedding=True, since a slot of z"
            " conditions a block together with the shared embedding."
        )
    if model.arch == "biggan_deep" and not model.hierarchical_z:
        raise ConfigError(
            "model.hierarchical_z=False: BigGAN-deep conditions every block on z and the shared"
            " embedding; it has no other form."
        )
    if model.rgb_channels < 3:
        raise ConfigError(f"model.rgb_channels={model.rgb_channels}: must be at least 3.")
    n = slots(config)
    if model.z_dim % n:
        nearest = max(n, round(model.z_dim / n) * n)
        raise ConfigError(
            f"model.z_dim={model.z_dim}: must be a multiple of {n} (the slots of hierarchical z"
            f" at {model.resolution} px); nearest is {nearest}."
        )
    g_sizes = [r for r in (4 << i for i in range(1, 10)) if r <= model.resolution]
    d_sizes = [r for r in g_sizes if r < model.resolution]
    for key, sizes in (("g_attention", g_sizes), ("d_attention", d_sizes)):
        for size in model[key]:
            if size not in sizes:
                raise ConfigError(
                    f"model.{key}={tuple(model[key])}: {size} is not the size of a block's output"
                    f" at {model.resolution} px; allowed: {', '.join(map(str, sizes))}."
                )
    if config.optim.freeze_d_blocks > d_blocks(model):
        raise ConfigError(
            f"optim.freeze_d_blocks={config.optim.freeze_d_blocks}: this D has {d_blocks(model)}"
            " blocks."
        )


def _check_batch(config):
    unit = config.accumulation * config.device_count
    if config.batch_size % unit:
        nearest = max(unit, round(config.batch_size / unit) * unit)
        raise ConfigError(
            f"batch_size={config.batch_size}: must be a multiple of accumulation x device_count"
            f" = {config.accumulation} x {config.device_count}; nearest is {nearest}."
        )


def _nearest_divisor(number, wanted):
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: abs(d - wanted))


def _nearest(word, known):
    """The end of a sentence: the nearest known word, if one is near."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {match[0]!r}?" if match else "."


def _type_name(kind):
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, "a list of whole numbers such as (32,64)")
