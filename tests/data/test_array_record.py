"""Sets of bare bytes, as `biggan prepare` makes them, and what happens where records are bad."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.data import array_record, crops, datasets, preprocess
from biggan_jax.data import source as source_lib
from biggan_jax.data.crops import CENTRED
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.shards import Shards
from tests.data.made import (
    bare_images,
    make_config,
    open_source,
    prepare_shapes,
    same,
    write_bare,
)

COUNT, SIDE = 50, 16


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bare")
    write_bare(directory, COUNT, SIDE)
    return directory


def opened(directory, resolution=SIDE, **kwargs):
    return open_source("bare_bytes/16", directory, resolution=resolution, num_classes=3, **kwargs)


def error_of(function):
    with pytest.raises(ConfigError) as e:
        function()
    message = str(e.value)
    assert message.endswith(".") and "\n" not in message
    return message


# Bare bytes


def test_bare_bytes_are_read_as_they_are(bare):
    source = opened(bare)
    assert isinstance(source, array_record.ArrayRecordSource)
    assert (len(source), source.class_names) == (COUNT, ("a", "b", "c"))
    images, labels = source_lib.read(source, np.arange(COUNT)[::-1])
    np.testing.assert_array_equal(images, bare_images(COUNT, SIDE)[::-1])
    np.testing.assert_array_equal(labels, np.arange(COUNT)[::-1] % 3)
    np.testing.assert_array_equal(source.labels(), np.arange(COUNT) % 3)
    image, label = source[17]
    np.testing.assert_array_equal(image, bare_images(COUNT, SIDE)[17])
    assert (label, source.label(17)) == (2, 2)


def test_bare_bytes_are_what_tfds_reads(bare):
    records = tfds.builder("bare_bytes/16", data_dir=str(bare)).as_data_source("train")
    source = opened(bare)
    for i in (0, 20, 49):
        np.testing.assert_array_equal(source[i][0], records[i]["image"])
        assert source[i][1] == records[i]["label"]


def test_parts_of_the_split(bare):
    source = opened(bare, split="train[10:45]")
    assert len(source) == 35
    np.testing.assert_array_equal(source[34][0], bare_images(COUNT, SIDE)[44])
    with pytest.raises(IndexError):
        source[35]


@pytest.mark.parametrize("crop", ["center", "random_zoom"])
@pytest.mark.parametrize("resolution", [32, 16])
def test_another_resolution_and_crops(tmp_path, resolution, crop):
    """Sets of 32 and of 8 px for a model of 32 or 16 px: scaled as any picture is."""
    for side in (32, 8):
        write_bare(tmp_path, 20, side)
        config = make_config(
            f"bare_bytes/{side}", tmp_path, resolution=resolution, num_classes=3, crop=crop
        )
        source = datasets.open_source(config)
        batches = datasets.make_loader(source, config)
        if crop == "random_zoom":
            assert batches.images is None
        batch = batches.batch(3)
        chosen = batches.indices(3).ravel()
        zooms = crops.random_zoom(config.seed, 3 * 16, 16) if crop != "center" else [CENTRED] * 16
        pictures = bare_images(20, side)
        for image, i, zoom in zip(
            batch["image"].reshape(16, resolution, resolution, 3), chosen, zooms, strict=True
        ):
            picture = Image.fromarray(pictures[i])
            expected = preprocess.to_square(picture, Recipe(resolution), tuple(zoom))
            np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(batch["label"].ravel(), chosen % 3)


def test_cached_and_read_are_the_same(bare):
    configs = [
        make_config("bare_bytes/16", bare, resolution=16, num_classes=3, cache_mib=c)
        for c in (0, 16)
    ]
    direct, cached = (datasets.make_loader(datasets.open_source(c), c) for c in configs)
    assert direct.images is None and cached.images is not None
    assert all(same(direct.batch(step), cached.batch(step)) for step in (0, 6, 10**6))


def test_encoded_images_are_read_by_the_same_path(tmp_path):
    prepare_shapes(tmp_path, "array_record")
    source = open_source("tiny_shapes", tmp_path, num_classes=3)
    assert isinstance(source, array_record.ArrayRecordSource)
    assert [int(source[i][0].mean()) for i in range(12)] == list(range(0, 120, 10))
    zoom = tuple(crops.random_zoom(0, 5, 1)[0])
    assert source.get(11, zoom)[0].shape == (32, 32, 3)


_READ = """
import sys
from biggan_jax.data import tfds_source
from biggan_jax.data.preprocess import Recipe
source = tfds_source.open_split("bare_bytes/16", sys.argv[1], "train", Recipe(16))
print(source[5][1], "tensorflow" in sys.modules, sum(r is not None for r in source._readers))
"""


@pytest.mark.multiprocess
def test_neither_the_builder_nor_tensorflow_is_needed(bare):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _READ, str(bare)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("2 False 1\n", "")


# Shards


def test_shards():
    shards = Shards([("a", 0, 4), ("b", 3, 2), ("c", 0, 0), ("d", 1, 5)])
    assert (len(shards), shards.files) == (11, ["a", "b", "d"])
    found = [shards.locate(i) for i in (0, 3, 4, 5, 6, 10)]
    assert found == [(0, 0), (0, 3), (1, 3), (1, 4), (2, 1), (2, 5)]
    part = shards.cut(3, 7)
    assert (part.files, part.skip.tolist(), len(part)) == (["a", "b", "d"], [3, 3, 1], 4)
    assert len(shards.cut(4, 4)) == 0
    for wrong in (-1, 11):
        with pytest.raises(IndexError, match="0 to 10"):
            shards.locate(wrong)


def test_more_files_than_a_process_may_open(monkeypatch):
    import resource

    allowed = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: allowed.append(limits))
    array_record._allow_open_files(900)
    assert allowed == []
    array_record._allow_open_files(2048)
    assert allowed == [(2048, 4096)]
    assert "4096" in error_of(lambda: array_record._allow_open_files(5000))


# Bad records


def bad(tmp_path, change):
    """A set of 50 records in three files, of which `change` spoils number 20: the 4th of file 1."""
    paths, _ = write_bare(
        tmp_path, COUNT, SIDE, change=lambda i, data: change(data) if i == 20 else data
    )
    return opened(tmp_path), os.path.basename(paths[1])


def example(**features):
    from tensorflow_datasets.proto import tf_example_pb2

    made = tf_example_pb2.Example()
    for key, value in features.items():
        kind = made.features.feature[key]
        if isinstance(value, int):
            kind.int64_list.value.append(value)
        else:
            kind.bytes_list.value.append(value)
    return made.SerializeToString()


GOOD = bytes(SIDE * SIDE * 3)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"\xff\xff\xff", ["no tf.train.Example"]),
        (b"", ["no tf.train.Example", "'image'", "'label'"]),
        (example(image=GOOD), ["no tf.train.Example", "'label'"]),
        (example(label=1), ["no tf.train.Example", "'image'"]),
        (example(image=GOOD[1:], label=1), ["767 bytes", "16 x 16 x 3 = 768"]),
        (example(image=GOOD, label=3), ["the label 3", "0 to 2"]),
        (example(image=GOOD, label=-1), ["the label -1", "data.split"]),
    ],
)
def test_a_bad_record_names_shard_and_index(tmp_path, record, words):
    source, file = bad(tmp_path, lambda _: record)
    for function in (
        lambda: source[20],
        lambda: source_lib.read(source, np.arange(COUNT)),
        lambda: datasets.make_loader(source, make_config("bare_bytes/16", resolution=16)),
    ):
        message = error_of(function)
        for word in (f"record 3 of {file}", "record 20", "'bare_bytes/16'", *words):
            assert word in message
    assert source[19][1] == 1, "its neighbour is whole"


def test_labels_that_are_no_class_can_be_counted(tmp_path):
    source, file = bad(tmp_path, lambda _: example(image=GOOD, label=-1))
    assert source.label(20) == source.labels()[20] == -1
    (tmp_path / "other").mkdir()
    source, file = bad(tmp_path / "other", lambda _: b"")
    assert f"record 3 of {file}" in error_of(lambda: source.label(20))
    assert f"record 3 of {file}" in error_of(source.labels)


def test_a_picture_that_cannot_be_decoded_names_shard_and_index(tmp_path):
    class BrokenShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                path = tmp_path / f"{i}.png"
                Image.new("RGB", (8, 8), (i, i, i)).save(path)
                if i == 2:
                    path.write_bytes(path.read_bytes()[:40])
                yield i, {"image": str(path), "label": 0}

    tfds.builder("broken_shapes", data_dir=str(tmp_path)).download_and_prepare(
        file_format="array_record"
    )
    source = open_source("broken_shapes", tmp_path, num_classes=2)
    assert source[1][0].max() == 1
    message = error_of(lambda: source[2])
    for word in ("record 2 of broken_shapes-train.array_record-00000-of-00001", "as a picture"):
        assert word in message


def test_a_missing_or_damaged_file_is_named(tmp_path):
    paths, _ = write_bare(tmp_path, COUNT, SIDE)
    with open(paths[1], "rb") as f:
        whole = f.read()
    name = os.path.basename(paths[1])
    os.remove(paths[1])
    assert opened(tmp_path)[0][1] == 0
    message = error_of(lambda: opened(tmp_path)[20])
    assert f"record 3 of {name}" in message and "no such file" in message
    for content in (b"", b"nonsense" * 1000, whole[: len(whole) // 2]):
        with open(paths[1], "wb") as f:
            f.write(content)
        message = error_of(lambda: opened(tmp_path)[20])
        assert f"record 3 of {name}" in message
        assert "cannot be read" in message or "is damaged" in message
    with open(paths[1], "wb") as f:  # A flipped bit in the middle of the data.
        f.write(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]))
        f.write(whole[len(whole) // 2 + 1 :])
    source = opened(tmp_path)
    message = error_of(lambda: source_lib.read(source, np.arange(COUNT)))
    assert name in message
