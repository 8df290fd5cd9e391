"""Metrics beyond those of other packages: by hand, by optimal matching, and on digits."""

import json

import numpy as np
import pytest
from PIL import Image

from biggan_jax import cli
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import (
    classifier,
    copies,
    evaluator,
    extractors,
    frechet,
    images,
    neighbours,
    scores,
)
from tests.evaluate.test_evaluator import extractor


def test_intra_class_is_the_mean_over_classes():
    draws = np.random.default_rng(0)
    real = draws.normal(size=(900, 4))
    fake = draws.normal(size=(600, 4)) + 0.3
    of_real, of_fake = np.arange(900) % 4, np.arange(600) % 3
    of_real[of_real == 3] = 7  # A class that no fake has.
    expected = []
    for label in range(3):
        pair = fake[of_fake == label], real[of_real == label]
        expected.append(
            frechet.distance(
                *(frechet.Gaussian(x.mean(0), np.cov(x, rowvar=False), len(x)) for x in pair)
            )
        )
    found, classes = frechet.intra_class((fake, of_fake), (real, of_real))
    assert classes == 3 and found == pytest.approx(np.mean(expected), rel=1e-10)
    # Classes that are mixed up are seen here, and by no distance of the whole sets.
    shifted = real + 5.0 * of_real[:, None]
    assert frechet.intra_class((shifted, of_real), (shifted, of_real))[0] < 1e-9
    assert frechet.intra_class((shifted, np.roll(of_real, 1)), (shifted, of_real))[0] > 10
    with pytest.raises(ConfigError, match="no class has two images in both sets"):
        frechet.intra_class((fake, of_fake), (real, of_real + 100))


def test_mind_is_the_cost_of_the_best_matching_on_each_line():
    from scipy.optimize import linear_sum_assignment

    draws = np.random.default_rng(0)
    fake, real = draws.normal(size=(12, 5)), draws.normal(size=(12, 5)) * 2 + 1
    directions = np.random.RandomState(3).standard_normal((7, 5))
    total = 0.0
    for line in directions:
        line = line / np.sqrt((line**2).sum())
        cost = ((fake @ line)[:, None] - (real @ line)[None]) ** 2
        total += cost[linear_sum_assignment(cost)].mean()
    found = scores.mind(fake, real, projections=7, seed=3)
    assert found == pytest.approx(3 * 5 * total / 7, rel=1e-12)
    assert scores.mind(real, real) == 0


def test_mind_of_a_shift_is_three_times_its_square():
    """The mean of (u . d)^2 over the sphere is |d|^2 / D; 1,000 directions give it to 5 %."""
    real = np.random.default_rng(0).normal(size=(500, 64))
    shift = np.linspace(-1, 1, 64)
    assert scores.mind(real + shift, real) == pytest.approx(3 * (shift**2).sum(), rel=0.1)
    # Of a set twice as large every second image is taken.
    twice = np.repeat(real, 2, axis=0)
    assert scores.mind(twice, real) == 0


def test_copies_by_hand():
    real = np.array([[0.0], [1.0], [3.0], [6.0]])  # Nearest others: 1, 1, 2, 3.
    fake = np.array([[0.5], [6.0], [7.0], [9.0], [-0.9]])
    found = copies.find(real, fake)
    assert found.threshold == pytest.approx(1.0)
    np.testing.assert_allclose(found.distance, [0.5, 0, 1, 3, 0.9])
    assert found.share == 3 / 5


def test_new_images_are_no_copies_and_copies_are():
    draws = np.random.default_rng(0)
    real, new = draws.normal(size=(1000, 8)), draws.normal(size=(500, 8))
    assert copies.find(real, new).share < 0.03
    seen = real[:500] + draws.normal(scale=1e-3, size=(500, 8))
    assert copies.find(real, seen).share == 1


def digits(count, classes=10):
    """Digits of 8 px as uint8 [count, 8, 8, 3], and their classes."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    keep = y < classes
    pictures = np.uint8(x[keep][:count].reshape(-1, 8, 8, 1) * 255 / 16)
    return pictures.repeat(3, axis=-1), y[keep][:count]


def test_the_classifier_knows_digits():
    x, y = digits(1000)
    real = classifier.accuracy_real(classifier.grey(x), y)
    assert 0.9 < real < 1
    fold = np.arange(1000) % 5
    by_hand = 0
    for i in range(5):
        seen = classifier.fit(classifier.grey(x[fold != i]), y[fold != i])
        by_hand += (seen.predict(classifier.grey(x[fold == i])) == y[fold == i]).sum()
    assert real == by_hand / 1000
    for labels, message in (
        (np.zeros(100), "of 1 classes"),
        (np.arange(200), "of 200 classes"),
        (np.arange(8), "has 8 images"),
    ):
        with pytest.raises(ConfigError, match=message):
            classifier.check(labels)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Real digits, and as samples other real ones, of which a fifth are asked for as others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(name))
    x, y = digits(700)
    asked = np.where(np.arange(300) % 5 == 0, (y[400:] + 1) % 10, y[400:])
    paths = [str(tmp_path / name) for name in ("real.npz", "fake.npz", "unlabelled.npz")]
    np.savez(paths[0], arr_0=x[:400], arr_1=y[:400])
    shown = x[400:].copy()
    shown[:30] = x[:30]  # Copies.
    np.savez(paths[1], arr_0=shown, arr_1=asked)
    np.savez(paths[2], arr_0=shown)
    return paths


def test_all_of_it_on_digits(sets, tmp_path, capsys):
    real, fake, _ = sets
    argv = ["evaluate", fake, "--reference", real, "--features=means", "--devices=1", "--json"]
    argv += ["--metrics=fd,ifd,mind,copies,label_accuracy"]
    assert cli.main(argv) == 2
    assert "say where the sheet of nearest neighbours is to be written" in capsys.readouterr().err
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    found, settings = result["metrics"], result["protocol"]["settings"]
    assert set(found) == {
        *("fd_means", "ifd_means", "mind_means", "copies_means"),
        *("label_accuracy_svm", "label_accuracy_svm_real_cv5"),
    }
    pictures, labels = images.read_npz(fake)["arr_0"], images.read_npz(fake)["arr_1"]
    reals, classes = images.read_npz(real)["arr_0"], images.read_npz(real)["arr_1"]
    seen = classifier.fit(classifier.grey(reals), classes).predict(classifier.grey(pictures))
    assert found["label_accuracy_svm"] == (seen == labels).mean()
    assert 0.5 < found["label_accuracy_svm"] < 0.8 < found["label_accuracy_svm_real_cv5"]
    assert 30 / 300 <= found["copies_means"] < 40 / 300
    assert settings["copies"]["threshold"] > 0 and settings["ifd"] == {"classes": 10}
    assert settings["label_accuracy"]["trained_on"] == "the reference, 400 images of 10 classes"
    with Image.open(tmp_path / "neighbours_means.png") as page:
        assert page.size[0] > 6 * 64 and page.size[1] > 16 * 64


def test_a_sheet_shows_the_nearest(sets):
    """The first samples are copies, so their nearest real image is the same picture."""
    pairs = [images.FromArray(path) for path in sets[:2]]
    real, fake = (x.read(np.arange(len(x))) for x in pairs)
    flat = [x.reshape(len(x), -1) / 255.0 for x in (real, fake)]
    found = copies.find(*flat)
    page = np.asarray(copies.sheet(pairs[1], pairs[0], flat[1], flat[0], found, "title"))
    nearest = neighbours.nearest(flat[1], flat[0])[1]
    np.testing.assert_array_equal(nearest[:30], np.arange(30))

    def places(picture):
        """Where on the page a picture is, enlarged 8 times: left edges in its first rows."""
        big = picture.repeat(8, axis=0).repeat(8, axis=1)
        row = big[32]
        windows = np.lib.stride_tricks.sliding_window_view(page, 64, axis=1)
        rows, columns = np.nonzero((windows == row.T[None, None]).all(axis=(2, 3)))
        return [
            (r, c) for r, c in zip(rows, columns, strict=True)
            if (page[r - 32 : r + 32, c : c + 64] == big).all()
        ]  # fmt: skip

    at = places(real[0])
    assert len({r for r, _ in at}) >= 1
    first = min(r for r, _ in at)
    columns = sorted(c for r, c in at if r == first)
    assert len(columns) == 2 and columns[1] - columns[0] == 66  # The sample and its nearest.


def test_what_cannot_be_is_said(sets, tmp_path):
    real, fake, unlabelled = sets

    def score(path, reference, metrics):
        request = evaluator.Request(
            path, reference, metrics, features="means", devices=1, out=str(tmp_path)
        )
        return evaluator.evaluate(request)

    for kind in ("ifd", "label_accuracy"):
        with pytest.raises(ConfigError, match=f"{kind} needs the classes of the images"):
            score(unlabelled, real, kind)
        with pytest.raises(ConfigError, match=f"{kind} needs real images with their classes"):
            score(fake, unlabelled, kind)
    few = str(tmp_path / "few.npz")
    x, y = digits(100, classes=5)
    np.savez(few, arr_0=x, arr_1=y)
    with pytest.raises(ConfigError, match="up to 9 and those of the reference up to 4"):
        score(fake, few, "label_accuracy")
    statistics = str(tmp_path / "statistics.npz")
    evaluator.make_reference(statistics, real, features="means", devices=1)
    with pytest.raises(ConfigError, match="the reference holds statistics alone"):
        score(fake, statistics, "copies")
