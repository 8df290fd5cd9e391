"""Our bundle: a model without its optimizers, as other people get it.

A folder with `config.json` (what the model is and where it comes from), `model.safetensors` (the
tensors), `README.md` (the card) and, where it was exported, `samples.png`. Tensors are named by
network, collection and place:

  g/params/..., g/batch_stats/..., g/spectral/...    the raw generator
  ema/...                                            the averaged generator, the one that is sampled
  d/params/..., d/spectral/...                       the discriminator
  table/...                                          BN statistics a truncation, [rows, C]
  extra/FILE/NAME                                    what a source held and we have no use for

One generator is enough; `table` and `d` may be missing.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.interop import layout
from biggan_jax.sample import latents

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
SHEET = "samples.png"
FORMAT = "biggan-jax bundle"
VERSION = 1


@dataclasses.dataclass
class Bundle:
    """A model in memory.

    name: of the model.
    model: a resolved `config.model`.
    tensors: `{name: float32 array}`, named as in the file.
    truncation: the convention it was made for, a mode of `sample.latents`.
    grid: the truncations of the rows of `table`; empty without one.
    standing_images: how many images make standing statistics, where there is no table.
    class_names: K names, or empty where they are not known.
    source: provenance: "format", "files" ({name: SHA-256}), "notes" (sentences), and what the
      format needs to write itself back.
    """

    name: str
    model: dict[str, Any]
    tensors: dict[str, np.ndarray]
    truncation: str = "threshold"
    grid: tuple[float, ...] = ()
    standing_images: int = 1024
    class_names: tuple[str, ...] = ()
    source: dict[str, Any] = dataclasses.field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """Returns the tensors of one network, without its name: `part("d")["params/..."]`."""
        start = prefix + "/"
        return {k[len(start) :]: v for k, v in self.tensors.items() if k.startswith(start)}

    def add(self, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Adds the tensors of one network."""
        self.tensors |= {f"{prefix}/{place}": array for place, array in arrays.items()}

    def generator(self) -> dict[str, np.ndarray]:
        """Returns the generator that is sampled: the averaged one, else the raw one."""
        return self.part("ema") or self.part("g")


def resolve_model(changes: Mapping[str, Any], overrides: Any = ()) -> dict[str, Any]:
    """Returns a whole, checked `config.model` from what a source says of itself.

    Args:
      changes: keys of `config.model`.
      overrides: (dotted key, text) pairs a user gave; they come last.

    Raises:
      ConfigError: if the result is no model.
    """
    config = config_lib.default()
    config.model.update(changes)
    for key, text in overrides:
        if not key.startswith("model."):
            raise ConfigError(f"--config.{key}: only keys of the model may be given here.")
        config_lib.override(config, key, text)
    resolved = config_lib.resolve(config, 1)
    return {key: _plain(value) for key, value in resolved.model.items()}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def sha256(path: str) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write(
    bundle: Bundle, folder: str, finish: Callable[[str], dict[str, Any]] | None = None
) -> None:
    """Writes a bundle whole: beside its place, then renamed there.

    Args:
      bundle: the model.
      folder: to be made.
      finish: called with the bundle's temporary place, to compare what lies there with the source
        and to put a sheet beside it; returns what the comparison found, for config and card.

    Raises:
      ConfigError: if the folder is there already, or may not be made, or `finish` raises it.
    """
    import safetensors.numpy

    _check_tensors(bundle, bundle.name)
    with files.new_folder(folder) as temporary:
        weights = os.path.join(temporary, WEIGHTS)
        safetensors.numpy.save_file(
            {k: np.asarray(v, order="C") for k, v in sorted(bundle.tensors.items())}, weights
        )
        digest = sha256(weights)
        _write_texts(bundle, temporary, digest)
        if finish is not None:
            _write_texts(bundle, temporary, digest, finish(temporary))


def _write_texts(bundle, folder, digest, difference=None):
    about = {
        "format": FORMAT,
        "version": VERSION,
        "name": bundle.name,
        "model": bundle.model,
        "truncation": bundle.truncation,
        "grid": list(bundle.grid),
        "standing_images": bundle.standing_images,
        "class_names": list(bundle.class_names),
        "source": bundle.source,
        "sha256": digest,
    }
    if difference is not None:
        about["difference"] = difference
    files.write_whole(os.path.join(folder, CONFIG), json.dumps(about, indent=2) + "\n")
    files.write_whole(os.path.join(folder, CARD), card(bundle, digest, difference))


def is_bundle(folder: str) -> bool:
    """Whether a folder holds a bundle, by its config."""
    try:
        with open(os.path.join(folder, CONFIG)) as f:
            return json.load(f).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def read(folder: str) -> Bundle:
    """Reads a bundle and checks every tensor against the model it says it is.

    Raises:
      ConfigError: if it is none, is damaged, or lacks a tensor.
    """
    import safetensors
    import safetensors.numpy

    if not is_bundle(folder):
        raise ConfigError(f"{folder!r} is not a bundle: it holds no {CONFIG} of one.")
    with open(os.path.join(folder, CONFIG)) as f:
        about = json.load(f)
    if about.get("version") != VERSION:
        raise ConfigError(
            f"{folder!r}: version {about.get('version')!r} of the bundle format is not known here,"
            f" only {VERSION}."
        )
    weights = os.path.join(folder, WEIGHTS)
    try:
        if sha256(weights) != about["sha256"]:
            raise ConfigError(f"{WEIGHTS} is damaged: its SHA-256 is not the one in {CONFIG}.")
        bundle = Bundle(
            name=about["name"],
            model=_checked_model(about["model"]),
            tensors=safetensors.numpy.load_file(weights),
            truncation=about["truncation"],
            grid=tuple(about["grid"]),
            standing_images=about["standing_images"],
            class_names=tuple(about["class_names"]),
            source=about["source"],
        )
        _check_about(bundle)
    except ConfigError as e:
        raise ConfigError(f"{folder!r}: {e}") from e
    except (OSError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise ConfigError(f"{folder!r}: the bundle cannot be read: {reason}") from e
    _check_tensors(bundle, folder)
    return bundle


def _checked_model(model):
    """The model in a config.json, every key held to its type and the whole to sense."""
    config = config_lib.default()
    for key in config.model:
        value = model[key]
        config_lib.override(
            config, f"model.{key}", value if isinstance(value, str) else repr(value)
        )
    # A group of BN divides the batch, of which a bundle knows nothing else.
    config.batch_size = config.model.bn_group_size
    return {key: _plain(value) for key, value in config_lib.resolve(config, 1).model.items()}


def _check_about(bundle):
    classes = bundle.model["num_classes"]
    if bundle.truncation not in latents.MODES:
        raise ConfigError(
            f"truncation={bundle.truncation!r}: must be one of {', '.join(latents.MODES)}."
        )
    if len(bundle.class_names) not in (0, classes):
        raise ConfigError(f"{len(bundle.class_names)} class names for {classes} classes.")
    numbers = all(type(t) in (int, float) for t in bundle.grid)
    if not numbers or list(bundle.grid) != sorted(set(bundle.grid)):
        raise ConfigError("grid: must hold truncations in ascending order.")
    if type(bundle.standing_images) is not int or bundle.standing_images < 1:
        raise ConfigError(f"standing_images={bundle.standing_images!r}: must be at least 1.")
    if not isinstance(bundle.source, dict):
        raise ConfigError("source: must hold keys and values.")


def _check_tensors(bundle, where):
    """Every network that is there is whole and of the model's shapes."""
    g_shapes, d_shapes = layout.abstract(bundle.model)
    present = {name.split("/", 1)[0] for name in bundle.tensors}
    if not present & {"g", "ema"}:
        raise ConfigError(f"{where}: there is no generator.")
    for network, shapes in (("g", g_shapes), ("ema", g_shapes), ("d", d_shapes)):
        if network not in present:
            continue
        have = bundle.part(network)
        for place in sorted(shapes.keys() | have.keys()):
            got = list(have[place].shape) if place in have else "missing"
            want = list(shapes[place].shape) if place in shapes else "not part of this model"
            if got != want:
                raise ConfigError(f"{where}: {network}/{place} is {got} and must be {want}.")
    table = bundle.part("table")
    statistics = {k: s for k, s in g_shapes.items() if k.startswith("batch_stats/")}
    if table and {k: list(v.shape) for k, v in table.items()} != {
        k: [len(bundle.grid), *s.shape] for k, s in statistics.items()
    }:
        raise ConfigError(f"{where}: the statistics a truncation do not fit the model.")


def heading(bundle: Bundle) -> list[str]:
    """Returns a card's first lines: the name and what the model is."""
    model = bundle.model
    arch = {"biggan": "BigGAN", "biggan_deep": "BigGAN-deep"}[model["arch"]]
    return [
        f"# {bundle.name}",
        "",
        f"{arch}, {model['resolution']} px, {model['num_classes']:,} classes, z of"
        f" {model['z_dim']}, width {model['g_ch']}.",
    ]


def difference_line(difference: Mapping[str, Any]) -> str:
    """Returns in words what a comparison after writing found."""
    return (
        f"Loaded again and run on {difference['images']} latents: no pixel differs from the"
        f" source's by more than {difference['largest']:.1e}, where a pixel is in [-1, 1]."
    )


def provenance(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    """Returns a card's last lines: scores, licence, and where the weights come from.

    Args:
      bundle: the model.
      digests: SHA-256 of the files that lie beside the card, by name.
    """
    source = bundle.source
    scores = source.get("scores", {})
    table = [f"| {name} | {value:g} |" for name, value in scores.items()]
    return [
        *(["## Scores", "", "| score | value |", "| --- | --- |", *table, ""] if scores else []),
        "## Licence of the weights",
        "",
        source.get("licence") or "Not stated. That of the program that wrote this is Apache-2.0.",
        "",
        "## Where it comes from",
        "",
        f"Format of the source: {source.get('format', 'not known')}.",
        *[f"* {note}" for note in source.get("notes", [])],
        "",
        "| file | SHA-256 |",
        "| --- | --- |",
        *[f"| `{name}` | `{value}` |" for name, value in source.get("files", {}).items()],
        *[f"| `{name}` (this folder) | `{value}` |" for name, value in digests.items()],
        "",
    ]


def card(bundle: Bundle, digest: str, difference: Mapping[str, Any] | None = None) -> str:
    """Returns the model card, Markdown.

    Args:
      bundle: the model.
      digest: SHA-256 of its weights' file.
      difference: what a comparison after writing found, if there was one; then there is a sheet
        beside the card too.
    """
    model = bundle.model
    networks = {"g": "raw generator", "ema": "averaged generator", "d": "discriminator"}
    counts = {
        text: sum(v.size for k, v in bundle.part(name).items() if k.startswith("params/"))
        for name, text in networks.items()
    }
    rows = [f"| {text} | {count:,} |" for text, count in counts.items() if count]
    grid = ", ".join(f"{t:g}" for t in bundle.grid)
    checked = [f"![samples]({SHEET})", "", difference_line(difference), ""] if difference else []
    lines = [
        *heading(bundle),
        "",
        *checked,
        "| network | parameters |",
        "| --- | --- |",
        *rows,
        "",
        f"Truncation convention: `{bundle.truncation}`."
        + (f" BN statistics for {len(bundle.grid)} truncations: {grid}." if bundle.grid else ""),
        f"Spectral norm: rule `{model['sigma_rule']}`, eps {model['sn_eps']:g}. Batch norm: eps"
        f" {model['bn_eps']:g}, last one {model['out_bn_eps']:g}. Condition:"
        f" `{model['condition_order']}`. RGB head: {model['rgb_channels']} channels."
        + (" Gain, upsampling and D as in compare_gan." if model["compare_gan"] else ""),
        "Kernels are as they were trained, with the u that gives their sigma.",
        "",
        "## Use",
        "",
        "```python",
        "import biggan_jax",
        'model = biggan_jax.load("THIS_FOLDER")',
        "images = model.sample([0, 1, 2], truncation=0.5, seed=0)  # uint8 [3, H, W, 3]",
        "```",
        "",
        *provenance(bundle, {WEIGHTS: digest}),
    ]
    return "\n".join(lines)
