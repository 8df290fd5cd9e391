"""The metrics by name: what each needs, how it is computed, under which names it is reported."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import classifier, copies, frechet, neighbours, reference, scores
from biggan_jax.evaluate.engine import Kept
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.evaluate.images import Images
from biggan_jax.evaluate.reference import Reference

# Fréchet distance, the same of spatial features, its mean over classes, Inception Score, kernel
# distance, sliced Wasserstein distance; precision, recall, density and coverage; the share that
# repeats real images; the share that shows the class asked for.
KINDS = ("fd", "sfd", "ifd", "is", "kd", "mind", "prdc", "copies", "label_accuracy")
_FID = {"fid": "fd", "sfid": "sfd", "ifid": "ifd", "kid": "kd"}
OF_SINGLE_IMAGES = ("ifd", "kd", "mind", "prdc", "copies")  # Moments do not do for these.
_OF_PIXELS = "label_accuracy"


def parse(text: str | None, extractor: Extractor) -> tuple[tuple[str, ...], int | None]:
    """Reads names of metrics.

    Args:
      text: names with commas between: fid, sfid, ifid and kid where the extractor is FID's
        Inception, else fd, sfd, ifd and kd, and is, mind, prdc, copies and label_accuracy; with
        `_` and the extractor's name, or a number of images, as in fid50k, behind. None for what
        the extractor can do with few images.
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
        found = re.fullmatch(r"([a-z_]+?)(?:(\d+)k)?", bare)
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
        if kind == "is" and not extractor.has_logits:
            raise ConfigError(f"--metrics={word}: {extractor.name} has no classes to score.")
        kinds.add(kind)
        if found[2]:
            nums.add(1000 * int(found[2]))
    if len(nums) > 1:
        raise ConfigError(f"--metrics={text}: names more than one number of images.")
    return tuple(k for k in KINDS if k in kinds), nums.pop() if nums else None


def name_of(kind: str, extractor: Extractor) -> str:
    """Returns the name under which one of `KINDS`, or a part of one, is reported."""
    if kind.startswith(_OF_PIXELS):
        return f"{_OF_PIXELS}_{classifier.NAME}{kind.removeprefix(_OF_PIXELS)}"
    if not extractor.is_fid:
        return f"{kind}_{extractor.name}"
    fid = {name: word for word, name in _FID.items()} | {"kd_std": "kid_std"}
    return fid.get(kind, kind) + extractor.name.removeprefix("inception")


def compute(
    kinds: tuple[str, ...], kept: Kept, real: Reference, extractor: Extractor, labels: Any = None
) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Computes metrics.

    Args:
      kinds: some of `KINDS`.
      kept: of the images that are scored.
      real: what they are compared with.
      extractor: whose features they are.
      labels: [N], the classes asked for, or None.

    Returns:
      Values by kind and reported name, and what they were computed with, for JSON.

    Raises:
      ConfigError: if a set is too small for a metric.
    """
    found: dict[str, dict[str, float]] = {}
    used: dict[str, Any] = {}

    def put(kind, **values):
        found[kind] = {name_of(name, extractor): value for name, value in values.items()}

    if "fd" in kinds:
        put("fd", fd=frechet.distance(kept.moments, real.moments))
    if "sfd" in kinds:
        put("sfd", sfd=frechet.distance(kept.spatial, real.spatial))
    if "ifd" in kinds:
        pairs = (kept.features, labels), (real.all_features, real.source.labels)
        mean, classes = frechet.intra_class(*pairs)
        put("ifd", ifd=mean)
        used["ifd"] = {"classes": classes}
    if "is" in kinds:
        mean, deviation = scores.inception_score(kept.logits)
        put("is", **{"is": mean, "is_std": deviation})
        used["is"] = {"splits": scores.SPLITS, "seed": scores.SEED}
    if "kd" in kinds:
        mean, deviation = scores.kernel_distance(kept.features, real.features)
        put("kd", kd=mean, kd_std=deviation)
        used["kd"] = {
            "subsets": scores.SUBSETS,
            "subset_size": scores.SUBSET_SIZE,
            "seed": scores.SEED,
        }
    if "mind" in kinds:
        put("mind", mind=scores.mind(kept.features, real.features))
        used["mind"] = {
            "projections": scores.PROJECTIONS,
            "seed": scores.SEED,
            "images": min(len(kept.features), len(real.features)),
        }
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
    if "copies" in kinds:
        near = copies.find(real.features, kept.features)
        put("copies", copies=near.share)
        used["copies"] = {"percentile": copies.PERCENTILE, "threshold": near.threshold}
    if set(OF_SINGLE_IMAGES) & set(kinds):
        used["reference_features"] = len(real.features)
    if "label_accuracy" in kinds:
        pixels, truth = _pixels(real)
        put(
            "label_accuracy",
            label_accuracy=float(np.mean(kept.classes == labels)),
            label_accuracy_real_cv5=classifier.accuracy_real(pixels, truth),
        )
        used["label_accuracy"] = classifier.about(len(np.unique(truth)), len(truth))
    return found, used


def train_classifier(
    kinds: tuple[str, ...], real: Reference
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns what tells classes of images [N, H, W, 3] uint8, if a metric needs it."""
    if "label_accuracy" not in kinds:
        return None
    trained = classifier.fit(*_pixels(real))
    return lambda pictures: trained.predict(classifier.grey(pictures))


def _pixels(real):
    return classifier.grey(real.source.read(np.arange(len(real.source)))), real.source.labels


def check_images(kinds: tuple[str, ...], shown: Images) -> None:
    """Checks that a set of images can be scored.

    Raises:
      ConfigError: if they are too few, or a metric needs to know their classes.
    """
    num = len(shown)
    if num < 2:
        raise ConfigError(f"--num={num}: must be at least 2.")
    needs = {"is": scores.SPLITS, "kd": scores.SUBSET_SIZE, "prdc": neighbours.PRDC.k + 1}
    for kind in kinds:
        if num < needs.get(kind, 2):
            raise ConfigError(f"--num={num}: {kind} needs at least {needs[kind]} images.")
    for kind in ("ifd", "label_accuracy"):
        if kind in kinds and shown.labels is None:
            raise ConfigError(
                f"--metrics: {kind} needs the classes of the images: a model or a .npz with arr_1."
            )


def check_reference(kinds: tuple[str, ...], real: Reference, labels: Any = None) -> None:
    """Checks that metrics can be computed with a reference.

    Args:
      kinds: some of `KINDS`.
      real: the reference.
      labels: [N], the classes of the images to be scored, or None.

    Raises:
      ConfigError: naming what it lacks.
    """
    if "sfd" in kinds and real.spatial is None:
        raise ConfigError("--metrics: the reference has no moments of spatial features.")
    if set(OF_SINGLE_IMAGES) & set(kinds):
        if real.features is None:
            raise ConfigError(
                f"--metrics: {', '.join(OF_SINGLE_IMAGES)} need features of real images, and the"
                " reference holds moments alone; make one by --make-reference."
            )
        least = scores.SUBSET_SIZE if "kd" in kinds else neighbours.PRDC.k + 1
        if len(real.features) < least:
            raise ConfigError(
                f"--metrics: {'kid' if 'kd' in kinds else 'prdc'} needs at least {least} real"
                f" images, and the reference has {len(real.features)}."
            )
    for kind in ("ifd", "label_accuracy"):
        if kind not in kinds:
            continue
        if real.source is None or real.source.labels is None:
            raise ConfigError(
                f"--metrics: {kind} needs real images with their classes: name a data set as"
                " --reference."
            )
        most = real.source.labels.max()
        if labels.max() > most:
            raise ConfigError(
                f"--metrics: {kind}: the images are of classes up to {labels.max()} and those of"
                f" the reference up to {most}: these are not the same classes."
            )
        if kind == "ifd" and real.all_features is None:
            raise ConfigError(
                f"--metrics: ifd keeps features of at most {reference.MOST_FEATURES:,} real images,"
                f" and the reference has {len(real.source):,}."
            )
        if kind == "label_accuracy":
            classifier.check(real.source.labels)
