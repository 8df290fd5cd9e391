"""Real images to look samples up in, against a loop over all pairs."""

import json

import numpy as np
import pytest
from PIL import Image

from biggan_jax import cli
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import evaluator, extractors, images
from biggan_jax.evaluate.index import NEAREST, Index
from tests.evaluate.test_evaluator import extractor

COUNT, SIDE = 40, 80


@pytest.fixture(autouse=True)
def small_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "no-cache"))
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(name))
    monkeypatch.setattr(extractors, "NAMES", ("means", "other"))


@pytest.fixture(scope="module")
def reals(tmp_path_factory):
    """Pictures with classes, larger than the copies will be."""
    path = str(tmp_path_factory.mktemp("reals") / "reals.npz")
    draws = np.random.default_rng(0)
    coarse = draws.integers(0, 256, (COUNT, 4, 5, 3), np.uint8)
    pictures = coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    np.savez(path, arr_0=pictures, arr_1=np.arange(COUNT) % 7)
    return path


@pytest.fixture
def index(reals, tmp_path):
    out = str(tmp_path / "index.npz")
    argv = ["evaluate", f"--make-reference={out}", f"--reference={reals}", "--features=means"]
    assert cli.main([*argv, "--with-images", "--devices=1"]) == 0
    return out


def test_the_nearest_are_those_of_a_loop(index, reals):
    found = Index(index)
    source = images.FromArray(reals)
    assert found.pictures.shape == (COUNT, 51, 64, 3)  # Of 80 x 100 pixels.
    small = Image.fromarray(source.read(np.array([3]))[0]).resize((64, 51), Image.Resampling.BOX)
    np.testing.assert_array_equal(found.pictures[3], np.asarray(small))
    np.testing.assert_array_equal(found.labels, np.arange(COUNT) % 7)
    samples = np.random.default_rng(1).integers(0, 256, (19, 16, 16, 3), np.uint8)
    near = found.find(samples)
    network = extractor("means")
    features = [
        np.asarray(network({}, x)["features"], np.float64)
        for x in (samples, source.read(np.arange(COUNT)))
    ]
    others = [
        min(np.linalg.norm(a - b) for j, b in enumerate(features[1]) if j != i)
        for i, a in enumerate(features[1])
    ]
    threshold = np.percentile(others, 1)
    for sample, places, ratios in zip(features[0], near.places, near.ratios, strict=True):
        apart = np.array([np.linalg.norm(sample - real) for real in features[1]])
        np.testing.assert_array_equal(places, np.argsort(apart)[:NEAREST])
        np.testing.assert_allclose(ratios, np.sort(apart)[:NEAREST] / threshold, rtol=1e-5)


def test_an_image_is_nearest_to_itself(index, reals):
    near = Index(index).find(images.FromArray(reals).read(np.arange(COUNT)))
    np.testing.assert_array_equal(near.places[:, 0], np.arange(COUNT))
    assert near.ratios[:, 0].max() < 1e-3 < near.ratios[:, 1].min()


def test_it_is_a_reference_all_the_same(index, reals):
    ask = {"metrics": "fd,prdc", "features": "means", "devices": 1}
    (by_index,) = evaluator.evaluate(evaluator.Request(reals, index, **ask))
    (by_images,) = evaluator.evaluate(evaluator.Request(reals, reals, **ask))
    assert by_index["metrics"] == by_images["metrics"]


@pytest.mark.parametrize("size", [24, 70])
def test_without_classes_and_of_any_size(size, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draws = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(draws.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{i}.png")
    out = str(tmp_path / "index.npz")
    about = evaluator.make_reference(
        out, str(folder), features="means", devices=1, with_images=True
    )
    found = Index(out)
    assert found.labels is None and found.pictures.shape[1] == min(size, 64)
    assert about["near_threshold"] > 0


def test_other_files_are_refused(index, reals, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="holds no pictures; make it by biggan evaluate"):
        Index(reals)
    plain = str(tmp_path / "plain.npz")
    evaluator.make_reference(plain, reals, features="means", devices=1)
    with pytest.raises(ConfigError, match="holds no pictures; make it by biggan evaluate"):
        Index(plain)
    with pytest.raises(ConfigError, match="there is no file"):
        Index(str(tmp_path / "none.npz"))
    argv = ["evaluate", f"--make-reference={plain}", f"--reference={plain}", "--features=means"]
    assert cli.main([*argv, "--with-images"]) == 2
    assert "--reference holds statistics alone" in capsys.readouterr().err
    assert cli.main(["evaluate", reals, f"--reference={reals}", "--with-images"]) == 2
    assert "--with-images: goes with --make-reference" in capsys.readouterr().err
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(name, "1" * 64))
    with pytest.raises(ConfigError, match="was made with other features: sha256"):
        Index(index)
    monkeypatch.setattr(extractors, "NAMES", ("other",))
    with pytest.raises(ConfigError, match="was made with means, which is not known"):
        Index(index)


def test_what_it_says_of_itself_is_json(index):
    with np.load(index) as file:
        about = json.loads(file["about"].tobytes())
    assert about["extractor"]["name"] == "means" and about["near_threshold"] > 0
