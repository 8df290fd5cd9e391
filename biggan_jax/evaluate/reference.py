"""Reference statistics: what generated images are compared with, made once and kept as `.npz`.

Names of arrays are those of the ADM evaluator: `mu` and `sigma` of the features, `mu_s` and
`sigma_s` of the spatial ones. pytorch-fid's and clean-fid's files have the first two. Ours add
`features` (of at most 10,000 images, for KID and neighbours) and `about`, JSON; where it was asked
for also these images, small, see `index`.
"""

import dataclasses
import io
import json
from typing import Any

import numpy as np

from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import frechet, images
from biggan_jax.evaluate.engine import Engine
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.interop import bundle

FEATURES = 10_000  # As many images as ADM's files hold for precision and recall.
MOST_FEATURES = 100_000  # Where those of all images are wanted: 800 MB.


@dataclasses.dataclass
class Reference:
    """Statistics of real images.

    moments: of their features.
    spatial: of their spatial features, or None.
    features: [N, D] of some of them, or None.
    about: what they are, for JSON.
    source: the images themselves, or None where a file holds statistics alone.
    all_features: [N, D] of all of them, where they were asked for and are not too many.
    pictures: ([M, h, w, 3] uint8, [M] classes or None) of those with `features`, see `index`.
    """

    moments: frechet.Gaussian
    spatial: Any
    features: Any
    about: dict[str, Any]
    source: Any = None
    all_features: Any = None
    pictures: Any = None


def make(source: images.Images, engine: Engine, whole: bool = False) -> Reference:
    """Measures images, all of them.

    Args:
      source: the images.
      engine: that measures.
      whole: whether features of all of them are kept, if they are not more than `MOST_FEATURES`.

    Raises:
      ConfigError: if they cannot be read.
    """
    spatial = engine.extractor.has_spatial
    count = len(source)
    whole = whole and count <= MOST_FEATURES
    features = count if whole else FEATURES
    kept = engine.run(source, "reference", spatial=spatial, features=features)
    some = kept.features
    if whole and count > FEATURES:  # The same ones as if only these had been kept.
        some = some[np.arange(FEATURES) * count // FEATURES]
    about = {**source.about(), "extractor": engine.extractor.about()}
    every = kept.features if whole else None
    return Reference(kept.moments, kept.spatial, some, about, source, every)


def save(reference: Reference, path: str) -> None:
    """Writes a reference, whole or not at all."""
    arrays = {"mu": reference.moments.mean, "sigma": reference.moments.covariance}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.covariance}
    if reference.features is not None:
        arrays["features"] = reference.features
    if reference.pictures is not None:
        pictures, labels = reference.pictures
        arrays["arr_0"] = pictures
        if labels is not None:
            arrays["arr_1"] = labels
    data = io.BytesIO()
    # Text as bytes: a reader that allows no pickles can read it.
    about = np.frombuffer(json.dumps(reference.about).encode(), np.uint8)
    np.savez(data, allow_pickle=False, about=about, **arrays)
    files.write_whole(path, data.getvalue())


def load(path: str, engine: Engine, whole: bool = False) -> Reference:
    """Reads statistics, or images to measure, from a `.npz`.

    Args:
      path: a file of `save`, of the ADM evaluator, pytorch-fid or clean-fid, or one of images.
      engine: of the features to be compared with; it measures images of files that hold some.
      whole: see `make`.

    Raises:
      ConfigError: if the file cannot be read, or its features come from another network or resize.
    """
    arrays = images.read_npz(path)
    if "mu" not in arrays:
        return make(images.FromArray(path), engine, whole)
    ours = load_arrays(path, arrays)
    if ours is not None:
        check_extractor(path, ours.about.get("extractor"), engine.extractor)
        return ours
    moments, spatial, about = _moments(path, arrays)
    if not engine.extractor.is_fid:
        raise ConfigError(
            f"{path!r} does not say which network it was made with; such files are of FID's"
            f" Inception, not of {engine.extractor.name}."
        )
    about["extractor"] = "not stated by the file"
    if "arr_0" not in arrays:
        return Reference(moments, spatial, None, about)
    source = images.FromArray(path)
    kept = engine.run(source, "reference", features=FEATURES)
    return Reference(moments, spatial, kept.features, about, source)


def load_arrays(path: str, arrays: dict[str, np.ndarray]) -> Reference | None:
    """Returns what a file of `save` holds, without its images; None for other files.

    Args:
      path: where the arrays are from.
      arrays: of `images.read_npz`.

    Raises:
      ConfigError: if the arrays are damaged.
    """
    if "about" not in arrays or "mu" not in arrays:
        return None
    moments, spatial, about = _moments(path, arrays)
    about |= _about(path, arrays["about"])
    moments = dataclasses.replace(moments, count=about.get("num", 0))
    return Reference(moments, spatial, arrays.get("features"), about)


def _moments(path, arrays):
    moments = _gaussian(path, arrays, "mu", "sigma")
    spatial = _gaussian(path, arrays, "mu_s", "sigma_s") if "mu_s" in arrays else None
    about: dict[str, Any] = {"file_sha256": bundle.sha256(path)}
    return moments, spatial, about


def _gaussian(path, arrays, mean, covariance):
    found = [arrays.get(name) for name in (mean, covariance)]
    if any(a is None or a.dtype.kind != "f" or not np.isfinite(a).all() for a in found):
        raise ConfigError(f"{path!r}: {mean} and {covariance} must be arrays of finite floats.")
    m, s = (np.asarray(a, np.float64) for a in found)
    if m.ndim != 1 or s.shape != (len(m), len(m)):
        raise ConfigError(f"{path!r}: {mean} is {list(m.shape)} and {covariance} {list(s.shape)}.")
    return frechet.Gaussian(m, s, 0)


def _about(path, raw):
    try:
        about = json.loads(raw.tobytes())
    except ValueError as e:
        raise ConfigError(f"{path!r}: what it says about itself is damaged: {e}.") from e
    if not isinstance(about, dict):
        raise ConfigError(f"{path!r}: what it says about itself is damaged.")
    return about


def check_extractor(path: str, theirs: Any, extractor: Extractor) -> None:
    """Raises ConfigError unless a file's features, as it says of them, are of an extractor."""
    ours = extractor.about()
    if theirs == ours:
        return
    theirs = theirs if isinstance(theirs, dict) else {}
    keys = [key for key in ours if theirs.get(key) != ours[key]]
    different = [f"{key} is {theirs.get(key)!r}, not {ours[key]!r}" for key in keys]
    raise ConfigError(f"{path!r} was made with other features: {'; '.join(different)}.")
