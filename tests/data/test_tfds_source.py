import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from biggan_jax.config import ConfigError
from biggan_jax.data import loader, tfds_source
from biggan_jax.data import source as source_lib
from biggan_jax.data.source import Source
from tests.data.made import TinyShapes, open_source


class NoPictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        # Floats hide in the four bytes of an RGBA PNG: not a picture to us.
        features = {
            "depth": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            "kind": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"depth": np.zeros((4, 4, 1), np.float32), "kind": 0}


class FarAway(TinyShapes):
    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        dl_manager.download("https://nowhere.invalid/archive.zip")
        return {"train": self._generate_examples(1)}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def error_of(*args, **kwargs):
    with pytest.raises(ConfigError) as e:
        open_source(*args, **kwargs)
    message = str(e.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


# Digits


def _sorted_rows(images, labels):
    rows = np.concatenate([np.asarray(labels)[:, None], images.reshape(len(images), -1)], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


def _stored(directory, split):
    """Returns the 8x8 pictures as they lie in the files, with their labels, as TFDS reads them."""
    records = tfds.builder("digits", data_dir=str(directory)).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    pictures = [np.asarray(Image.open(io.BytesIO(r["image"]))) for r in records]
    return np.stack(pictures), np.array([r["label"] for r in records])


def test_digits_hold_every_sklearn_digit_once(tfds_dir):
    digits = load_digits()
    source = open_source("digits", tfds_dir, "train+test")
    assert len(source) == 1797
    assert source.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.bincount(source.labels()), np.bincount(digits.target))
    pictures, labels = _stored(tfds_dir, "train+test")
    assert pictures.dtype == np.uint8
    assert pictures.shape == (1797, 8, 8)
    assert pictures.max() == 255
    grey = np.rint(pictures * (16 / 255)).astype(int)
    np.testing.assert_array_equal(
        _sorted_rows(grey, labels), _sorted_rows(digits.images.astype(int), digits.target)
    )


def test_digits_splits(tfds_dir):
    digits = load_digits()
    train, test = (open_source("digits", tfds_dir, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert np.bincount(test.labels()).tolist() == [36] * 10
    from biggan_jax.data import digits_builder

    held_out = digits_builder.test_indices(digits.target)
    pictures, labels = _stored(tfds_dir, "test")
    np.testing.assert_array_equal(labels, digits.target[held_out])
    np.testing.assert_array_equal(np.rint(pictures * (16 / 255)), digits.images[held_out])
    rest = np.delete(np.arange(1797), held_out)
    pictures, labels = _stored(tfds_dir, "train")
    np.testing.assert_array_equal(labels, digits.target[rest])
    np.testing.assert_array_equal(np.rint(pictures * (16 / 255)), digits.images[rest])


@pytest.mark.parametrize("resolution", [16, 32])
def test_digits_are_enlarged_bicubically_to_grey(tfds_dir, resolution):
    source = open_source("digits", tfds_dir, "test", resolution)
    pictures, labels = _stored(tfds_dir, "test")
    for i in (0, 100, 359):
        image, label = source[i]
        assert label == labels[i] == source.label(i)
        size = (resolution, resolution)
        large = Image.fromarray(pictures[i]).resize(size, Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(image, np.asarray(large)[..., None].repeat(3, -1))


def test_digits_through_the_loader(tfds_dir):
    source = open_source("digits", tfds_dir, resolution=16)
    kwargs = {"batch_size": 32, "num_batches": 2, "seed": 3}
    cached = loader.Loader(source, cache_mib=16, **kwargs)
    direct = loader.Loader(source, cache_mib=0, **kwargs)
    for step in (0, 30):
        a, b = cached.batch(step), direct.batch(step)
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
        assert a["image"].shape == (2, 32, 16, 16, 3)
        records = cached.indices(step).ravel()
        np.testing.assert_array_equal(a["label"].ravel(), source.labels()[records])


_OPEN_DIGITS = """
import sys, time, warnings
warnings.simplefilter("error")
from biggan_jax import config
from biggan_jax.data import datasets, tfds_source
assert "tensorflow_datasets" not in sys.modules and "tensorflow" not in sys.modules
c = config.default()
c.data.update(name="digits", dir=sys.argv[1])
c.model.resolution = 16
if len(sys.argv) > 2:
    builder = tfds_source.open_builder("digits", sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
source = datasets.open_source(c)
print(len(source), source[1436][1], "tensorflow" in sys.modules, flush=True)
"""


def _start(*args):
    return subprocess.Popen(
        [sys.executable, "-c", _OPEN_DIGITS, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_processes_prepare_digits_at_once(tmp_path):
    processes = [_start(tmp_path, "wait") for _ in range(2)]
    for p in processes:
        assert p.stdout.readline() == "ready\n"
    for p in processes:
        p.stdin.write("go\n")
        p.stdin.flush()
    results = [p.communicate(timeout=120) for p in processes]
    for p, (out, err) in zip(processes, results, strict=True):
        assert p.returncode == 0, err
        assert out.startswith("1437 8 ")
    assert len(open_source("digits", tmp_path)) == 1437
    assert not list(tmp_path.rglob("*incomplete*"))


@pytest.mark.multiprocess
def test_a_prepared_set_is_read_silently_and_without_tensorflow(tfds_dir):
    open_source("digits", tfds_dir)
    out, err = _start(tfds_dir).communicate(timeout=120)
    assert out == "1437 8 False\n"
    assert err == ""


def test_losing_the_race_to_prepare_is_no_error(tmp_path, monkeypatch):
    prepare = tfds.core.GeneratorBasedBuilder.download_and_prepare
    raced = []

    def beaten(self, **kwargs):
        # Another process finishes first; then TFDS fails at its last act, the rename.
        prepare(tfds.builder("tiny_shapes", data_dir=str(tmp_path)), **kwargs)
        raced.append(self)
        raise FileExistsError("Destination already exists.")

    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "download_and_prepare", beaten)
    assert len(open_source("tiny_shapes", tmp_path)) == 12
    assert len(raced) == 1


# TFDS by name


def test_tfds_by_name(tfds_dir, capfd):
    source = open_source("tiny_shapes", tfds_dir, num_classes=3)
    assert capfd.readouterr().out == ""
    assert (source.name, source.split, source.num_classes) == ("tiny_shapes", "train", 3)
    assert source.class_names == ("disc", "square", "star")
    assert len(source) == 12
    assert source.labels().tolist() == [i % 3 for i in range(12)]
    for i in (11, 0, 5):
        image, label = source[i]
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        assert (image == 10 * i).all()
        assert label == source.label(i) == i % 3


def test_tfds_splits_add_up_and_slice(tfds_dir):
    assert len(open_source("tiny_shapes", tfds_dir, "train+test")) == 17
    assert len(open_source("tiny_shapes", tfds_dir, "test")) == 5
    sliced = open_source("tiny_shapes", tfds_dir, "train[9:]")
    assert [int(sliced[i][0].max()) for i in range(len(sliced))] == [90, 100, 110]


def test_tfds_is_read_from_many_threads(tfds_dir):
    source = open_source("tiny_shapes", tfds_dir)
    wrong = []

    def read(first):
        for i in range(first, first + 200):
            image, label = source[i % 12]
            if (image != 10 * (i % 12)).any() or label != i % 3:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_tfds_labels_of_large_sets_are_sampled(tfds_dir, monkeypatch):
    monkeypatch.setattr(Source, "count_all_up_to", 11)
    monkeypatch.setattr(source_lib, "LABEL_SAMPLE", 4)
    source = open_source("tiny_shapes", tfds_dir)
    assert source.labels() is None
    records, labels = source.label_sample()
    assert records.tolist() == [0, 3, 6, 9]
    assert labels.tolist() == [0, 0, 0, 0]


def test_home_is_expanded(tfds_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(tfds_dir))
    source = open_source("tiny_shapes", "~")
    assert source.where == str(tfds_dir / "tiny_shapes" / "1.0.0")


def test_unknown_name(tfds_dir):
    message = error_of("cifra10", tfds_dir)
    assert "data.name='cifra10'" in message
    assert "did you mean 'cifar10'?" in message
    assert "'digits'" in error_of("digit", tfds_dir)


def test_unknown_config_of_a_data_set(tfds_dir):
    assert "data.name='tiny_shapes/big'" in error_of("tiny_shapes/big", tfds_dir)


def test_unknown_and_empty_split(tfds_dir):
    message = error_of("tiny_shapes", tfds_dir, "tset")
    assert "data.split='tset'" in message
    assert "train (12 images), test (5 images)" in message
    assert "did you mean 'test'?" in message
    assert "data.split='train[:0]'" in error_of("tiny_shapes", tfds_dir, "train[:0]")


def test_no_image_feature(tfds_dir):
    message = error_of("no_pictures", tfds_dir)
    assert not (tfds_dir / "no_pictures").exists(), "prepared in vain"
    assert "data.name='no_pictures'" in message
    assert "depth (Image), kind (ClassLabel)" in message


def test_a_copy_in_another_format(tmp_path):
    open_source("tiny_shapes", tmp_path)
    path = tmp_path / "tiny_shapes" / "1.0.0"
    info = (path / "dataset_info.json").read_text()
    (path / "dataset_info.json").write_text(info.replace("array_record", "riegeli"))
    message = error_of("tiny_shapes", tmp_path)
    for word in (str(path), "riegeli", "array_record and tfrecord", "data.dir"):
        assert word in message


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_DOWNLOAD_RETRIES", 0)
    message = error_of("far_away", tmp_path)
    assert "data.name='far_away'" in message
    assert "is there a network?" in message
    assert "nowhere.invalid" in message


def test_folder_in_the_way(tmp_path):
    (tmp_path / "tiny_shapes" / "1.0.0").mkdir(parents=True)
    message = error_of("tiny_shapes", tmp_path)
    assert str(tmp_path / "tiny_shapes" / "1.0.0") in message
    assert "remove it" in message
