import itertools

import numpy as np
import pytest
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.data import datasets, subsets
from biggan_jax.data import source as source_lib
from biggan_jax.data.source import Source
from tests.data.made import Made, make_config, open_source, same


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


# Some of the classes


def test_some_classes_of_a_tfds_set(tfds_dir, monkeypatch):
    # Of large sets too every label is read.
    monkeypatch.setattr(Source, "count_all_up_to", 11)
    source = open_source("tiny_shapes", tfds_dir, classes=(2, 0))
    assert (source.name, source.split, source.resolution) == ("tiny_shapes", "train", 32)
    assert source.class_names == ("star", "disc") and source.num_classes == 2
    assert len(source) == 8
    assert source.labels().tolist() == [1, 0] * 4 and source.labels().dtype == np.int32
    for i, record in enumerate([0, 2, 3, 5, 6, 8, 9, 11]):
        image, label = source[i]
        assert (image == 10 * record).all()
        assert label == source.label(i) == [1, 0][i % 2]
    images, labels = source_lib.read(source, np.array([7, 0]))
    assert images[:, 0, 0, 0].tolist() == [110, 0] and labels.tolist() == [0, 1]


def test_some_classes_of_a_folder(tmp_path):
    for i, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.new("L", (32, 32), 10 * i + k).save(tmp_path / name / f"{k}.png")
    source = open_source("folder", tmp_path, classes=(1,))
    assert (source.class_names, len(source)) == (("dogs",), 3)
    assert source.where == str(tmp_path)
    image, label = source[2]
    assert (image == 12).all() and label == 0


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 3), "data.classes=(0, 3): 3 is no class of data.name='tiny_shapes', which has 0 to 2"),
        ((-1,), "-1 is no class"),
        (("disc",), "'disc' is no class"),
        ((True,), "True is no class"),
        ((1, 2, 1), "data.classes=(1, 2, 1): 1 is named twice"),
    ],
)
def test_classes_that_are_none(tfds_dir, classes, message):
    assert message in error_of("tiny_shapes", tfds_dir, classes=classes)


def test_classes_without_an_image(tfds_dir):
    message = error_of("tiny_shapes", tfds_dir, "train[:1]", classes=(1, 2))
    assert "split 'train[:1]'" in message and "no images of these classes" in message


def test_classes_are_decoded_with_the_crop_asked_for(tfds_dir):
    config = make_config("tiny_shapes", tfds_dir, num_classes=2, classes=(0, 2), crop="random_zoom")
    batches = datasets.make_loader(datasets.open_source(config), config)
    assert batches.images is None
    batch = batches.batch(5)
    chosen = batches.indices(5)
    np.testing.assert_array_equal(
        batch["image"].min((2, 3, 4)), np.array([0, 2, 3, 5, 6, 8, 9, 11])[chosen] * 10
    )
    np.testing.assert_array_equal(batch["label"], chosen % 2)


# A share of the records


def _chosen(share, seed=0, length=1000):
    source = subsets.fraction(Made(length), share, seed)
    source_lib.read(source, np.arange(len(source)))
    return sorted(source.whole.decoded)


@pytest.mark.parametrize("length", [1000, 5000])
def test_a_smaller_share_lies_in_a_larger_one(length):
    shares = [set(_chosen(share, length=length)) for share in (0.001, 0.1, 0.2, 0.5, 1.0)]
    assert [len(s) for s in shares] == [length * p // 1000 for p in (1, 100, 200, 500, 1000)]
    for small, large in itertools.pairwise(shares):
        assert small < large


def test_a_share_is_drawn_by_its_own_seed():
    assert _chosen(0.1) == _chosen(0.1)
    others = [_chosen(0.1, seed) for seed in range(1, 6)]
    assert len({tuple(o) for o in others}) == 5
    # Of 100 of 1,000, each again with probability 0.1: 10, give or take five deviations of 3.
    assert all(len(set(o) & set(_chosen(0.1))) < 25 for o in others)
    # 100 in each tenth of the records on the whole, give or take five deviations of 9.5.
    tenths = np.concatenate([_chosen(0.1, seed) for seed in range(10)]) // 100
    assert np.abs(np.bincount(tenths, minlength=10) - 100).max() < 48


@pytest.mark.parametrize(("share", "length"), [(1e-9, 1), (0.14, 1), (0.25, 2), (0.3, 3)])
def test_a_share_is_rounded_and_at_least_one(share, length):
    assert len(subsets.fraction(Made(10), share, 0)) == length


def test_a_share_keeps_images_and_labels_together():
    whole = Made(100)
    source = subsets.fraction(whole, 0.3, 1)
    images, labels = source_lib.read(source, np.arange(30))
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)
    np.testing.assert_array_equal(source.labels(), labels)
    assert [source.label(i) for i in range(30)] == labels.tolist()
    assert source.class_names == whole.class_names
    # Every label of the share, and none beside it.
    assert sorted(set(whole.asked)) == sorted(images[:, 0, 0, 0].tolist())


def test_labels_of_a_large_share_are_sampled(monkeypatch):
    monkeypatch.setattr(source_lib, "LABEL_SAMPLE", 10)
    monkeypatch.setattr(Source, "count_all_up_to", 29)
    source = subsets.fraction(Made(100, cheap=False), 0.3, 1)
    assert source.labels() is None
    records, labels = source.label_sample()
    assert len(records) == len(labels) == 10


def test_the_order_of_training_is_another(tfds_dir):
    def batches(**data):
        config = make_config("digits", tfds_dir, resolution=16, **data)
        return datasets.make_loader(datasets.open_source(config), config)

    whole, share = batches(), batches(fraction=0.1)
    assert (len(whole.source), len(share.source)) == (1437, 144)
    assert sorted(share.indices(0).ravel()) != list(range(16))
    assert not same(whole.batch(0), share.batch(0))
    assert not same(share.batch(0), batches(fraction=0.1, fraction_seed=1).batch(0))


def test_classes_first_then_a_share(tfds_dir):
    source = open_source("tiny_shapes", tfds_dir, classes=(2, 0), fraction=0.5)
    assert (len(source), source.class_names) == (4, ("star", "disc"))
    values = [int(source[i][0].max()) // 10 for i in range(4)]
    assert set(values) < {0, 2, 3, 5, 6, 8, 9, 11}
    assert [source[i][1] for i in range(4)] == [1 - v % 3 // 2 for v in values]
    np.testing.assert_array_equal(source.labels(), [1 - v % 3 // 2 for v in values])
