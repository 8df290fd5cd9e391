"""Scores a model, or a set of images, and says by which protocol."""

import dataclasses
import json
import os
import re
from typing import Any

import jax
import numpy as np

from biggan_jax import __version__, api, files, host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import extractors, frechet, images, neighbours, reference, scores
from biggan_jax.evaluate.engine import Engine, Kept
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.evaluate.reference import Reference
from biggan_jax.interop import bundle
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import runs

NUM = 50_000  # Images of a model, as nearly all published scores have it.
# Fréchet distance, the same of spatial features, Inception Score, kernel distance; and precision,
# recall, density and coverage.
KINDS = ("fd", "sfd", "is", "kd", "prdc")
_FID = {"fid": "fd", "sfid": "sfd", "kid": "kd"}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    path: a run folder, a bundle, a folder of pictures or a `.npz` of images.
    reference: a `.npz`, a folder of pictures, or a data set as of `images.data_set`.
    metrics: with commas; see `parse_metrics`.
    num: how many images; None for `NUM` of a model and for all of a set of images.
    features: one of `extractors.NAMES`.
    weights: of the extractor; None to look for them.
    truncations: see `api.Model.sample`; each is evaluated.
    mode: what a truncation means; None for the model's own.
    seed: of latents and labels.
    step: which checkpoint of a run; None for the latest.
    data_dir: of the reference's data set.
    devices: how many are used; None for all.
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


def parse_metrics(text: str | None, extractor: Extractor) -> tuple[tuple[str, ...], int | None]:
    """Reads names of metrics.

    Args:
      text: names with commas between: fid, sfid, is, kid and prdc where the extractor is FID's
        Inception, else fd, sfd, is, kd and prdc; with `_` and the extractor's name, or a number of
        images, as in fid50k, behind. None for what the extractor can do with few images.
      extractor: whose features they are of.

    Returns:
      Some of `KINDS`, in their order, and the number of images or None.

    Raises:
      ConfigError: if a name is unknown, does not fit the extractor, or two numbers differ.
    """
    if text is None:
        text = "fd,prdc"
    kinds, nums = set(), set()
    for word in text.split(","):
        bare = word.strip().removesuffix(f"_{extractor.name}")
        found = re.fullmatch(r"([a-z]+?)(?:(\d+)k)?", bare)
        kind = _FID.get(found[1], found[1]) if found else ""
        if not found or kind not in KINDS:
            known = ", ".join((*_FID, *KINDS))
            raise ConfigError(f"--metrics={word}: must be some of {known}.")
        if found[1] in _FID and not extractor.is_fid:
            raise ConfigError(
                f"--metrics={word}: that name is for Inception with the weights of 2015-12-05; of"
                f" {extractor.name} ask for {kind}."
            )
        if kind == "sfd" and not extractor.has_spatial:
            raise ConfigError(f"--metrics={word}: {extractor.name} has no spatial features.")
        kinds.add(kind)
        if found[2]:
            nums.add(1000 * int(found[2]))
    if len(nums) > 1:
        raise ConfigError(f"--metrics={text}: names more than one number of images.")
    return tuple(k for k in KINDS if k in kinds), nums.pop() if nums else None


def name_of(kind: str, extractor: Extractor) -> str:
    """Returns the name under which a metric of `KINDS`, or a part of prdc, is reported."""
    if not extractor.is_fid:
        return f"{kind}_{extractor.name}"
    fid = {"fd": "fid", "sfd": "sfid", "kd": "kid", "kd_std": "kid_std"}
    return fid.get(kind, kind) + extractor.name.removeprefix("inception")


def evaluate(request: Request) -> list[dict[str, Any]]:
    """Scores a path.

    Returns:
      One result a truncation: `{"metrics": {name: value}, "protocol": ...}`, all of it plain; the
      same request gives the same bits on the same devices. Results of a run are appended to
      `metric-NAME.jsonl` in its folder, too.

    Raises:
      ConfigError: if something asked for cannot be; nothing has been written then.
    """
    _want(request.devices)
    extractor = extractors.load(request.features, request.weights)
    kinds, named = parse_metrics(request.metrics, extractor)
    if request.num is not None and named not in (None, request.num):
        raise ConfigError(f"--num={request.num}: --metrics says {named}.")
    num = request.num or named
    engine = open_engine(extractor, request.devices)
    model, still = _open(request, engine)
    count = len(still) if still is not None else NUM
    num = count if num is None else num
    if still is not None and num > count:
        raise ConfigError(f"--num={num}: {request.path!r} holds {count} images.")
    _check_num(num, kinds)
    if still is not None and request.truncations != (None,):
        raise ConfigError("--truncation: is for models; these are images.")
    for truncation in request.truncations if model else ():
        model.check(truncation, request.mode, request.seed)  # Before the reference, which is work.
    config = runs.read_config(request.path) if images.is_run(request.path) else None
    size = model.config.model.resolution if model else still.read(np.arange(1)).shape[1]
    real = open_reference(request.reference, request.data_dir, size, engine, config)
    _check_reference(kinds, real, engine.extractor)
    results = []
    for truncation in request.truncations:
        if model is not None:
            shown: images.Images = images.Generated(
                model, num, truncation, request.mode, request.seed
            )
        else:
            shown = First(still, num)
        kept = engine.run(
            shown,
            "images" if truncation is None else f"truncation {truncation:g}",
            spatial="sfd" in kinds,
            logits="is" in kinds,
            features=num if {"kd", "prdc"} & set(kinds) else 0,
        )
        found = compute(kinds, kept, real, extractor)
        results.append(
            {
                "metrics": {name: v for values in found.values() for name, v in values.items()},
                "protocol": {
                    "images": shown.about(),
                    "reference": real.about,
                    "extractor": extractor.about(),
                    "settings": settings(kinds, real),
                    "versions": {"biggan_jax": __version__, "jax": jax.__version__},
                    "platform": jax.default_backend(),
                },
            }
        )
        if config is not None:
            _append(request.path, found, extractor, results[-1]["protocol"])
    return results


def make_reference(
    out: str,
    source: str,
    data_dir: str | None = None,
    resolution: int | None = None,
    like: str | None = None,
    features: str = "inception",
    weights: str | None = None,
    devices: int | None = None,
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
    _want(devices)
    engine = open_engine(extractors.load(features, weights), devices)
    made = open_reference(source, data_dir, resolution or 0, engine, config)
    reference.save(made, out)
    return made.about


def open_engine(extractor: Extractor, devices: int | None) -> Engine:
    """Returns an engine on all devices, or on so many.

    Raises:
      ConfigError: if there are not so many.
    """
    return Engine(extractor, mesh_lib.make_mesh(devices or len(jax.devices())))


def open_reference(
    text: str, data_dir: str | None, resolution: int, engine: Engine, config: Any = None
) -> Reference:
    """Loads a reference, or makes it.

    Args:
      text: see `Request`.
      data_dir: of a data set.
      resolution: at which a data set is read.
      engine: whose features are wanted.
      config: of a run that "data" means, or None.

    Raises:
      ConfigError: if there is none or it does not fit.
    """
    if text.endswith(".npz"):
        return reference.load(text, engine)
    if os.path.isdir(text):
        return reference.make(images.FromFolder(text), engine)
    host_tensorflow.silence()
    return reference.make(images.data_set(text, data_dir, resolution, config), engine)


class First:
    """The first images of a set."""

    def __init__(self, whole: images.Images, num: int):
        """Takes the set."""
        self._whole, self._num = whole, num

    def __len__(self) -> int:
        return self._num

    def read(self, index: np.ndarray) -> Any:
        """See `images.Images`."""
        return self._whole.read(index)

    def about(self) -> dict[str, Any]:
        """See `images.Images`."""
        return {**self._whole.about(), "num": self._num}


def compute(
    kinds: tuple[str, ...], kept: Kept, real: Reference, extractor: Extractor
) -> dict[str, dict[str, float]]:
    """Returns values by kind and reported name.

    Raises:
      ConfigError: if a set is too small for a metric.
    """
    found: dict[str, dict[str, float]] = {}

    def put(kind, **values):
        found[kind] = {name_of(name, extractor): value for name, value in values.items()}

    if "fd" in kinds:
        put("fd", fd=frechet.distance(kept.moments, real.moments))
    if "sfd" in kinds:
        put("sfd", sfd=frechet.distance(kept.spatial, real.spatial))
    if "is" in kinds:
        mean, deviation = scores.inception_score(kept.logits)
        put("is", **{"is": mean, "is_std": deviation})
    if "kd" in kinds:
        mean, deviation = scores.kernel_distance(kept.features, real.features)
        put("kd", kd=mean, kd_std=deviation)
    if "prdc" in kinds:
        rules = neighbours.IMPROVED, neighbours.PRDC
        improved, prdc = neighbours.compare(real.features, kept.features, rules)
        put(
            "prdc",
            precision_k3=improved.precision,
            recall_k3=improved.recall,
            density_k5=prdc.density,
            coverage_k5=prdc.coverage,
        )
    return found


def settings(kinds: tuple[str, ...], real: Reference) -> dict[str, Any]:
    """Returns what the metrics were computed with, for JSON."""
    found: dict[str, Any] = {}
    if "is" in kinds:
        found["is"] = {"splits": scores.SPLITS, "seed": scores.SEED}
    if "kd" in kinds:
        found["kd"] = {
            "subsets": scores.SUBSETS,
            "subset_size": scores.SUBSET_SIZE,
            "seed": scores.SEED,
        }
    if {"kd", "prdc"} & set(kinds):
        found["reference_features"] = len(real.features)
    return found


def _want(devices):
    """To be called before anything of JAX: on CPUs devices are simulated."""
    if devices is not None:
        if devices < 1:
            raise ConfigError(f"--devices={devices}: must be at least 1.")
        mesh_lib.request_cpu_devices(devices)


def _open(request, engine):
    """A model, or still images."""
    path = request.path
    if path.endswith(".npz"):
        return None, images.FromArray(path)
    if bundle.is_bundle(path) or os.path.isfile(os.path.join(path, runs.CONFIG)):
        return api.load(path, request.step, engine.mesh.size), None
    if os.path.isdir(path):
        return None, images.FromFolder(path)
    raise ConfigError(f"{path!r} is no run folder, bundle, folder of pictures or .npz.")


def _check_num(num, kinds):
    if num < 2:
        raise ConfigError(f"--num={num}: must be at least 2.")
    needs = {"is": scores.SPLITS, "kd": scores.SUBSET_SIZE, "prdc": neighbours.PRDC.k + 1}
    for kind in kinds:
        if num < needs.get(kind, 2):
            raise ConfigError(f"--num={num}: {kind} needs at least {needs[kind]} images.")


def _check_reference(kinds, real, extractor):
    if "sfd" in kinds and real.spatial is None:
        raise ConfigError("--metrics: the reference has no moments of spatial features.")
    if {"kd", "prdc"} & set(kinds):
        if real.features is None:
            raise ConfigError(
                "--metrics: kid and prdc need features of real images, and the reference holds"
                " moments alone; make one by --make-reference."
            )
        least = scores.SUBSET_SIZE if "kd" in kinds else neighbours.PRDC.k + 1
        if len(real.features) < least:
            raise ConfigError(
                f"--metrics: {'kid' if 'kd' in kinds else 'prdc'} needs at least {least} real"
                f" images, and the reference has {len(real.features)}."
            )


def _append(run, found, extractor, protocol):
    for kind, values in found.items():
        line = {"step": protocol["images"]["step"], **values, "protocol": protocol}
        path = os.path.join(run, f"metric-{name_of(kind, extractor)}.jsonl")
        before = ""
        if os.path.exists(path):
            with open(path) as f:
                before = f.read()
        files.write_whole(path, before + json.dumps(line) + "\n")
