"""Scores a model, or a set of images, and says by which protocol."""

import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np

from biggan_jax import __version__, api, exported, files, host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data import prefetch
from biggan_jax.evaluate import copies, extractors, images, metrics, reference
from biggan_jax.evaluate import index as index_lib
from biggan_jax.evaluate.engine import Engine, Kept
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.evaluate.reference import Reference
from biggan_jax.interop import bundle
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import sheets
from biggan_jax.train import runs

_CPU_DEVICES = 4  # Each holds the network and a batch, and more win less.
NUM = 50_000  # Images of a model, as nearly all published scores have it.


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    path: a run folder, a bundle, a folder of pictures or a `.npz` of images.
    reference: a `.npz`, a folder of pictures, or a data set as of `images.data_set`.
    metrics: with commas; see `metrics.parse`.
    num: how many images; None for `NUM` of a model and for all of a set of images.
    features: one of `extractors.NAMES`.
    weights: of the extractor; None to look for them.
    truncations: see `api.Model.sample`; each is evaluated.
    mode: what a truncation means; None for the model's own.
    seed: of latents and labels.
    step: which checkpoint of a run; None for the latest.
    data_dir: of the reference's data set.
    devices: how many are used; None for all.
    out: the folder for sheets of nearest neighbours; None for no sheets.
    """

    path: str
    reference: str
    metrics: str | None = None
    num: int | None = None
    features: str = "inception"
    weights: str | None = None
    truncations: tuple[float | None, ...] = (None,)
    mode: str | None = None
    seed: int = 0
    step: int | None = None
    data_dir: str | None = None
    devices: int | None = None
    out: str | None = None


def evaluate(request: Request) -> list[dict[str, Any]]:
    """Scores a path.

    Returns:
      One result a truncation: `{"metrics": {name: value}, "protocol": ...}`, all of it plain; the
      same request gives the same bits on the same devices. Results of a run are appended to
      `metric-NAME.jsonl` in its folder, too.

    Raises:
      ConfigError: if something asked for cannot be; nothing has been written then.
    """
    want(request.devices)
    extractor = extractors.load(request.features, request.weights)
    kinds, named = metrics.parse(request.metrics, extractor)
    if request.num is not None and named not in (None, request.num):
        raise ConfigError(f"--num={request.num}: --metrics says {named}.")
    engine = open_engine(extractor, request.devices)
    sets, size = _open(request, engine, request.num or named)
    for shown in sets:  # Before the reference, which is work.
        metrics.check_images(kinds, shown)
    config = runs.read_config(request.path) if images.is_run(request.path) else None
    real = open_reference(
        request.reference, request.data_dir, size, engine, config, whole="ifd" in kinds
    )
    metrics.check_reference(kinds, real, sets[0].labels)
    if request.out is not None and "copies" in kinds and real.source is None:
        raise ConfigError(
            "--metrics: copies shows real images, and the reference holds statistics alone; name"
            " a data set, a folder of pictures or a .npz of images."
        )
    results = []
    for shown in sets:
        found, result, kept = score(kinds, shown, real, engine)
        results.append(result)
        if request.out is not None and "copies" in kinds:
            _write_sheet(request.out, shown, kept, real, extractor)
        if config is not None:
            _append(request.path, found, extractor, result["protocol"])
    return results


def score(
    kinds: tuple[str, ...], shown: images.Images, real: Reference, engine: Engine
) -> tuple[dict[str, dict[str, float]], dict[str, Any], Kept]:
    """Scores one set of images.

    Args:
      kinds: some of `metrics.KINDS`.
      shown: the images.
      real: what they are compared with.
      engine: of the extractor.

    Returns:
      Values by kind and name; `{"metrics": ..., "protocol": ...}`; and what was kept of the images.

    Raises:
      ConfigError: if they cannot be made or read, or a set is too small for a metric.
    """
    truncation = shown.about().get("truncation")
    classify = metrics.train_classifier(kinds, real)
    kept = engine.run(
        shown,
        "images" if truncation is None else f"truncation {truncation:g}",
        spatial="sfd" in kinds,
        logits="is" in kinds,
        features=len(shown) if set(metrics.OF_SINGLE_IMAGES) & set(kinds) else 0,
        classify=classify,
        classifier=real.about if classify else None,
    )
    found, used = metrics.compute(kinds, kept, real, engine.extractor, shown.labels)
    result = {
        "metrics": {name: v for values in found.values() for name, v in values.items()},
        "protocol": {
            "images": shown.about(),
            "reference": real.about,
            "extractor": engine.extractor.about(),
            "settings": used,
            "versions": {"biggan_jax": __version__, "jax": jax.__version__},
            "platform": jax.default_backend(),
        },
    }
    return found, result, kept


def make_reference(
    out: str,
    source: str,
    data_dir: str | None = None,
    resolution: int | None = None,
    like: str | None = None,
    features: str = "inception",
    weights: str | None = None,
    devices: int | None = None,
    with_images: bool = False,
) -> dict[str, Any]:
    """Measures a data set or a folder of pictures and writes the result.

    Args:
      out: the `.npz` to write.
      source: see `Request.reference`.
      data_dir: of a data set.
      resolution: of a data set; None for that of `like`.
      like: a run folder whose data set "data" is, or None.
      features: see `Request`.
      weights: see `Request`.
      devices: see `Request`.
      with_images: whether small copies of the images are kept, see `index`.

    Returns:
      What the file says of itself.

    Raises:
      ConfigError: if an argument cannot be used; nothing has been written then.
    """
    if not out.endswith(".npz"):
        raise ConfigError(f"--make-reference={out}: must end in .npz.")
    files.check_folder(os.path.dirname(out) or ".", "--make-reference")
    config = runs.read_config(like) if like else None
    if resolution is None and config is not None:
        resolution = config.model.resolution
    still = source.endswith(".npz") or os.path.isdir(source)
    if still and resolution is not None:
        raise ConfigError("--resolution: is for data sets; pictures are taken as they are.")
    if not still and resolution is None:
        raise ConfigError("--resolution: say at how many pixels the data set is measured.")
    want(devices)
    engine = open_engine(extractors.load(features, weights), devices)
    made = open_reference(source, data_dir, resolution or 0, engine, config)
    if with_images:
        index_lib.add_pictures(made)
    reference.save(made, out)
    return made.about


def open_engine(extractor: Extractor, devices: int | None) -> Engine:
    """Returns an engine on all devices, or on so many.

    Raises:
      ConfigError: if there are not so many.
    """
    return Engine(extractor, mesh_lib.make_mesh(devices or len(jax.devices())))


def open_reference(
    text: str,
    data_dir: str | None,
    resolution: int,
    engine: Engine,
    config: Any = None,
    whole: bool = False,
) -> Reference:
    """Loads a reference, or makes it.

    Args:
      text: see `Request`.
      data_dir: of a data set.
      resolution: at which a data set is read.
      engine: whose features are wanted.
      config: of a run that "data" means, or None.
      whole: see `reference.make`.

    Raises:
      ConfigError: if there is none or it does not fit.
    """
    if text.endswith(".npz"):
        return reference.load(text, engine, whole)
    if os.path.isdir(text):
        return reference.make(images.FromFolder(text), engine, whole)
    host_tensorflow.silence()
    source = images.data_set(text, data_dir, resolution, config)
    return reference.make(source, engine, whole)


def want(devices: int | None) -> None:
    """Asks for so many devices, or all; before anything of JAX, as on CPUs they are simulated.

    Of a CPU all are its cores, up to four: what one program leaves idle another uses.

    Raises:
      ConfigError: if the number cannot be.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices={devices}: must be at least 1.")
    if devices is None and not os.environ.get("JAX_NUM_CPU_DEVICES"):
        devices = min(_CPU_DEVICES, prefetch.threads())
    if devices is not None:
        mesh_lib.request_cpu_devices(devices)


def _open(request, engine, num):
    """The sets of images to score, one a truncation, and pixels of a side."""
    path = request.path
    if path.endswith(".npz"):
        still: images.Images = images.FromArray(path)
    elif (program := exported.is_export(path)) or _is_model(path):
        # What an export makes is made on one device; features are extracted on all.
        model = api.open_any(path, request.step, 1 if program else engine.mesh.size)
        count = NUM if num is None else num
        return [
            images.Generated(model, count, truncation, request.mode, request.seed)
            for truncation in request.truncations
        ], model.config.model.resolution
    elif os.path.isdir(path):
        still = images.FromFolder(path)
    else:
        raise ConfigError(f"{path!r} is no run folder, bundle, export, folder of pictures or .npz.")
    if num is not None and num > len(still):
        raise ConfigError(f"--num={num}: {path!r} holds {len(still)} images.")
    if request.truncations != (None,):
        raise ConfigError("--truncation: is for models; these are images.")
    shown = images.First(still, len(still) if num is None else num)
    return [shown], still.read(np.arange(1)).shape[1]


def _is_model(path):
    return bundle.is_bundle(path) or os.path.isfile(os.path.join(path, runs.CONFIG))


def _write_sheet(folder, shown, kept, real, extractor):
    """Writes the samples beside their nearest real images."""
    about, near = shown.about(), copies.find(real.features, kept.features)
    truncation = about.get("truncation")
    ending = "" if truncation is None else f"_truncation_{truncation:g}"
    title = (
        f"{about.get('model', 'samples')}: nearest real images by {extractor.name};"
        f" {near.share:.1%} of {len(shown):,} are nearer than the threshold"
    )
    page = copies.sheet(shown, real.source, kept.features, real.features, near, title)
    sheets.save_png(page, os.path.join(folder, f"neighbours_{extractor.name}{ending}.png"))


def _append(run, found, extractor, protocol):
    for kind, values in found.items():
        line = {"step": protocol["images"]["step"], **values, "protocol": protocol}
        path = os.path.join(run, f"metric-{metrics.name_of(kind, extractor)}.jsonl")
        before = ""
        if os.path.exists(path):
            with open(path) as f:
                before = f.read()
        files.write_whole(path, before + json.dumps(line) + "\n")
