import json
import re

import numpy as np
import pytest

from benchmarks import digits_quality
from benchmarks.digits_quality import copies, coverage, grey, quality
from biggan_jax import api
from biggan_jax import config as config_lib
from biggan_jax.data import datasets
from biggan_jax.train import runs


@pytest.fixture(scope="module")
def digits():
    """Train, test and further images, apart; grey 0..1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x / 16
    order = np.random.default_rng(0).permutation(len(x))
    train, test, new = np.split(order, [1000, 1400])
    return {"train": (x[train], y[train]), "test": (x[test], y[test]), "new": (x[new], y[new])}


def measured(digits, x, y):
    return quality(*digits["train"], *digits["test"], x, y)


def test_new_real_images_are_good(digits):
    found = measured(digits, *digits["new"])
    assert found["label_accuracy"] > 0.97
    assert found["label_accuracy_real"] > 0.97
    assert found["coverage"] > 0.9
    assert found["copies"] <= 0.04


def test_copies_of_train_images_are_found_out(digits):
    x, y = digits["train"]
    found = measured(digits, x, y)
    assert found["copies"] == 1
    assert found["coverage"] > 0.9
    # A grain of noise does not hide them.
    noise = np.random.default_rng(0).normal(scale=0.01, size=x.shape)
    assert measured(digits, x + noise, y)["copies"] > 0.95


def test_noise_covers_next_to_nothing(digits):
    x = np.random.default_rng(0).uniform(size=(500, 64))
    found = measured(digits, x, np.arange(500) % 10)
    # Not quite 0: the ball of an outlier is wide, and PCA ignores most of the noise.
    assert found["coverage"] < 0.1
    assert found["copies"] == 0
    assert found["label_accuracy"] < 0.3


def test_wrong_labels_are_seen(digits):
    x, y = digits["new"]
    assert measured(digits, x, (y + 1) % 10)["label_accuracy"] < 0.03


def test_a_missing_class_lowers_coverage(digits):
    x, y = digits["new"]
    whole = measured(digits, x, y)["coverage"]
    half = measured(digits, x[y < 5], y[y < 5])["coverage"]
    assert half < 0.7 * whole


def test_coverage_by_hand():
    real = np.arange(8.0)[:, None]
    # Distances to the 5th nearest other: 5 4 3 3 3 3 4 5.
    assert coverage(real, np.array([[-5.0]])) == 1 / 8
    assert coverage(real, np.array([[-5.1]])) == 0
    assert coverage(real, np.array([[-3.0]])) == 2 / 8
    assert coverage(real, np.array([[-3.0], [10.0]])) == 4 / 8


def test_copies_by_hand():
    train = np.zeros((1, 1))
    test = np.arange(1.0, 102.0)[:, None]  # 1st percentile: 2.
    assert copies(train, test, np.array([[0.0], [1.9], [2.0], [-1.9], [50.0]])) == 3 / 5


def test_grey():
    images = np.array([[[[0, 0, 0], [255, 255, 255]], [[0, 255, 0], [3, 6, 9]]]], np.uint8)
    np.testing.assert_allclose(grey(images), [[0, 1, 1 / 3, 6 / 255]])


class Generator:
    """Gives real digits back, and remembers what it was asked."""

    def __init__(self, name="digits"):
        config = config_lib.default()
        config.data.name = name
        config.model.num_classes = 10
        self.config = config_lib.ml_collections.FrozenConfigDict(config)

    def sample(self, labels, seed, truncation):
        self.asked = (np.bincount(labels).tolist(), seed, truncation)
        x, y = real_digits("new")
        chosen = [np.flatnonzero(y == label)[i // 10 % 20] for i, label in enumerate(labels)]
        return x[chosen]


def real_digits(split):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    part = {"train": slice(0, 1000), "test": slice(1000, 1400), "new": slice(1400, None)}[split]
    images = np.uint8(x[part].reshape(-1, 8, 8, 1).repeat(3, axis=-1) * 255 / 16)
    return images, y[part]


@pytest.fixture
def stand_ins(monkeypatch):
    """A run folder "good" and the splits of the digits, without training and resizing."""

    def read_config(run):
        if run == "good":
            return generator.config
        if run == "cifar10":
            return Generator("cifar10").config
        raise config_lib.ConfigError(f"{run}: there is no run.")

    def open_source(config):
        return list(zip(*real_digits(config.data.split), strict=True))

    generator = Generator()
    monkeypatch.setattr(runs, "read_config", read_config)
    monkeypatch.setattr(api, "load", lambda run, step: generator)
    monkeypatch.setattr(datasets, "open_source", open_source)
    return generator


def test_command(stand_ins, capsys):
    assert digits_quality.main(["good", "--json", "--seed", "3"]) == 0
    assert stand_ins.asked == ([100] * 10, 3, None)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found) == ["label_accuracy", "label_accuracy_real", "coverage", "copies"]
    assert found["label_accuracy"] > 0.9
    assert digits_quality.main(["good", "--num", "50", "--truncation", "0.5"]) == 0
    assert stand_ins.asked == ([5] * 10, 0, 0.5)
    assert re.match(
        r"label_accuracy +[01]\.\d{4}\nlabel_accuracy_real +0\.9\d{3}\ncoverage",
        capsys.readouterr().out,
    )


def test_command_refuses_in_a_sentence(stand_ins, capsys):
    assert digits_quality.main(["nowhere"]) == 2
    assert digits_quality.main(["cifar10"]) == 2
    assert capsys.readouterr().err == (
        "nowhere: there is no run.\ndata.name='cifar10': only a model of 'digits' is measured.\n"
    )
    with pytest.raises(SystemExit) as e:
        digits_quality.main(["good", "--num", "0"])
    assert e.value.code == 2
