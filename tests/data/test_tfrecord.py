"""TFDS sets stored as TFRecord files: in memory, and as a stream."""

import os

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.data import crops, datasets, report, tfrecord
from biggan_jax.data import source as source_lib
from biggan_jax.data.loader import Loader
from biggan_jax.data.tfrecord import StreamLoader, TfrecordSource
from tests.data.made import make_config, open_source, prepare_shapes, same

COUNT = 12  # Records, in three files.


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfrecord")
    prepare_shapes(directory)
    return directory


def opened(directory, **kwargs):
    return open_source("tiny_shapes", directory, num_classes=3, **kwargs)


def stream(directory, batch_size=4, num_batches=2, seed=0, **kwargs):
    return StreamLoader(
        opened(directory), batch_size=batch_size, num_batches=num_batches, seed=seed, **kwargs
    )


def seen(batches):
    """The records of `batches`, in order."""
    return np.concatenate([b["image"][..., 0, 0, 0].ravel() for _, b in batches]) // 10


def error_of(function):
    with pytest.raises(ConfigError) as e:
        function()
    message = str(e.value)
    assert message.endswith(".") and "\n" not in message
    return message


# As a source


def test_records_in_any_order(shapes):
    source = opened(shapes)
    assert isinstance(source, TfrecordSource)
    assert (len(source), source.class_names) == (COUNT, ("disc", "square", "star"))
    chosen = np.array([11, 0, 5, 5, 4, 3, 0])
    images, labels = source_lib.read(source, chosen)
    np.testing.assert_array_equal(images[:, 0, 0, 0], chosen * 10)
    np.testing.assert_array_equal(labels, chosen % 3)
    np.testing.assert_array_equal(source.labels(), np.arange(COUNT) % 3)
    image, label = source[7]
    assert (image == 70).all() and label == source.label(7) == 1


def test_parts_of_splits(shapes):
    source = opened(shapes, split="train[3:9]+test[:2]")
    images, _ = source_lib.read(source, np.arange(8))
    assert images[:, 0, 0, 0].tolist() == [30, 40, 50, 60, 70, 80, 0, 10]


def test_crops(shapes):
    source = opened(shapes)
    zoom = crops.random_zoom(0, 0, 2)
    images, labels = np.empty((2, 32, 32, 3), np.uint8), np.empty(2, np.int32)
    source.fill(np.array([9, 2]), images, labels, zoom)
    assert images.min((1, 2, 3)).tolist() == images.max((1, 2, 3)).tolist() == [90, 20]


def test_the_sample_is_the_beginning_of_each_file(shapes, monkeypatch):
    source = opened(shapes)
    assert source.sample(6).tolist() == [0, 1, 4, 5, 8, 9]
    assert source.sample(100).tolist() == list(range(12))
    assert source.sample(2).tolist() == [0, 4]
    monkeypatch.setattr(tfrecord, "_LABELS", 3)
    assert source.sample(6).tolist() == [0, 4, 8]


def test_each_file_is_read_once_and_only_as_far_as_needed(shapes, monkeypatch):
    read = []
    original = TfrecordSource._read

    def counted(self, file, first, last):
        read.append((file, first, last))
        return original(self, file, first, last)

    monkeypatch.setattr(TfrecordSource, "_read", counted)
    source_lib.read(opened(shapes), np.array([10, 1, 2, 9, 1]))
    assert read == [(0, 1, 3), (2, 1, 3)]


# In memory


def test_what_fits_in_memory_loses_nothing(shapes, tmp_path):
    prepare_shapes(tmp_path, "array_record")
    config, other = (make_config("tiny_shapes", d, num_classes=3) for d in (shapes, tmp_path))
    batches, exact = (datasets.make_loader(datasets.open_source(c), c) for c in (config, other))
    assert isinstance(batches, Loader)
    assert batches.missing_guarantees == ()
    for step in (0, 5, 10**6):
        assert same(batches.batch(step), exact.batch(step))


def test_parts_of_a_set_in_memory(shapes):
    config = make_config("tiny_shapes", shapes, num_classes=2, classes=(2, 1), fraction=0.5)
    batches = datasets.make_loader(datasets.open_source(config), config)
    assert isinstance(batches, Loader) and len(batches.source) == 4
    batch = batches.batch(3)
    values = batch["image"][..., 0, 0, 0] // 10
    np.testing.assert_array_equal(batch["label"], 2 - values % 3)


@pytest.mark.parametrize("data", [{"classes": (1,)}, {"fraction": 0.5}])
def test_parts_of_a_set_that_is_not_in_memory(shapes, data):
    config = make_config("tiny_shapes", shapes, num_classes=3, cache_mib=0, **data)
    source = datasets.open_source(config)
    message = error_of(lambda: datasets.make_loader(source, config))
    for word in ("data.classes", "data.fraction", "tfrecord", "data.cache_mib", "array_record"):
        assert word in message


# As a stream


@pytest.mark.parametrize("buffer", [1, 5, 100])
def test_every_epoch_holds_every_record_once(shapes, monkeypatch, buffer):
    # 8 images a step and 12 records: epochs end inside batches.
    monkeypatch.setattr(tfrecord, "_BUFFER", buffer)
    loaded = stream(shapes)
    assert loaded.buffer == min(buffer, COUNT)
    epochs = seen(loaded.prefetch(0, 9)).reshape(6, COUNT)
    for epoch in epochs:
        assert sorted(epoch) == list(range(COUNT))
    # Without a buffer the files alone change places.
    assert len({tuple(epoch) for epoch in epochs}) > (2 if buffer == 1 else 5)


def test_the_memory_of_the_buffer_is_bounded(shapes, monkeypatch):
    size = np.mean([len(raw) for _, raw in opened(shapes).in_order(np.arange(COUNT))])
    monkeypatch.setattr(tfrecord, "_BUFFER_BYTES", 3.5 * size)
    assert stream(shapes).buffer == 3
    monkeypatch.setattr(tfrecord, "_BUFFER_BYTES", 1)
    assert stream(shapes).buffer == 1


def test_images_labels_and_shapes(shapes):
    for _, batch in stream(shapes).prefetch(0, 4):
        assert batch["image"].shape == (2, 4, 32, 32, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (2, 4) and batch["label"].dtype == np.int32
        values = batch["image"][..., 0, 0, 0] // 10
        np.testing.assert_array_equal(values % 3, batch["label"])
        assert (batch["image"] // 10 == values[..., None, None, None]).all()


def test_going_on_at_any_step_gives_the_same_batches(shapes):
    whole = dict(stream(shapes).prefetch(0, 12))
    for first in (0, 1, 3, 7):
        for step, batch in stream(shapes).prefetch(first, first + 3):
            assert same(batch, whole[step])
    assert same(stream(shapes).batch(9), whole[9])
    assert not same(stream(shapes, seed=1).batch(0), whole[0])


def test_a_late_step_reads_one_epoch_at_most(shapes, monkeypatch):
    asked = []
    original = StreamLoader._dataset

    def counted(self, tf, first_epoch):
        asked.append(first_epoch)
        return original(self, tf, first_epoch)

    monkeypatch.setattr(StreamLoader, "_dataset", counted)
    batch = stream(shapes).batch(10**9)
    assert asked == [8 * 10**9 // COUNT]
    assert same(batch, stream(shapes).batch(10**9))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_records(shapes, processes):
    each = 4 // processes
    columns = [slice(p * each, (p + 1) * each) for p in range(processes)]
    parts = [seen(stream(shapes, columns=c).prefetch(0, 9)) for c in columns]
    share = COUNT // processes
    for p, part in enumerate(parts):
        own = list(range(p * share, (p + 1) * share))
        for epoch in part[: len(part) // share * share].reshape(-1, share):
            assert sorted(epoch) == own
        again = seen(stream(shapes, columns=columns[p]).prefetch(3, 9))
        np.testing.assert_array_equal(part[len(part) // 3 :], again)


def test_processes_that_share_unevenly(shapes):
    # 12 records, 5 columns: parts of 2, 2, 3, 2 and 3.
    columns = [slice(p, p + 1) for p in range(5)]
    parts = [seen(stream(shapes, 5, columns=c).prefetch(0, 6)) for c in columns]
    owned = [set(part.tolist()) for part in parts]
    assert [len(o) for o in owned] == [2, 2, 3, 2, 3]
    assert set.union(*owned) == set(range(COUNT))


def test_more_processes_than_records(shapes):
    message = error_of(lambda: stream(shapes, 16, columns=slice(0, 1)))
    assert "12 records" in message and "array_record" in message


def test_one_record_and_epochs_shorter_than_a_batch(shapes):
    source = opened(shapes, split="train[4:5]")
    loaded = StreamLoader(source, batch_size=3, num_batches=2, seed=0)
    assert seen(loaded.prefetch(10, 12)).tolist() == [4] * 12
    source = opened(shapes, split="train[4:9]")
    values = seen(StreamLoader(source, batch_size=20, num_batches=2, seed=0).prefetch(0, 1))
    for epoch in values.reshape(-1, 5):
        assert sorted(epoch) == [4, 5, 6, 7, 8]


def test_zoomed_crops(shapes):
    config = make_config("tiny_shapes", shapes, num_classes=3, crop="random_zoom")
    loaded = datasets.make_loader(datasets.open_source(config), config)
    assert isinstance(loaded, StreamLoader) and loaded.images is None
    zooms = []
    original = loaded._records.decode
    loaded._records.decode = lambda raw, records, images, labels, crops: (
        zooms.append(crops),
        original(raw, records, images, labels, crops),
    )
    loaded.batch(5)
    zooms = np.concatenate(zooms)
    expected = crops.random_zoom(config.seed, 5 * 16, 16)
    np.testing.assert_array_equal(zooms[np.lexsort(zooms.T)], expected[np.lexsort(expected.T)])


def test_the_report_says_what_is_missing(shapes, monkeypatch):
    config = make_config("tiny_shapes", shapes, num_classes=3, cache_mib=0)
    loaded = datasets.make_loader(datasets.open_source(config), config)
    facts = report.data_report(loaded.source, config, loaded)
    report.check(facts, config)
    assert (facts["images_per_class"], facts["value_max"]) == ([4, 4, 4], 110)
    text = report.text(facts)
    for words in (
        "not guaranteed, since the data set is stored as TFRecord files",
        "the same batches for another number of processes",
        "up to an epoch of undecoded records, here 12,",
        "a full permutation each epoch (a buffer of 12 records",
    ):
        assert words in text
    sheet = report.reals(loaded, config, 2, 3)
    assert (sheet[:, 0, 0, 0] // 10).tolist() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(tfrecord, "_LABELS", 6)
    monkeypatch.setattr(TfrecordSource, "count_all_up_to", 6)
    loaded = datasets.make_loader(datasets.open_source(config), config)
    facts = report.data_report(loaded.source, config, loaded)
    assert facts["labels_counted"] == facts["values_from_images"] == 6
    assert "(of 6 labels, the first of each file)" in report.text(facts)


# Bad records


def test_damage_names_file_and_index(tmp_path):
    folder = prepare_shapes(tmp_path)
    names = sorted(n for n in os.listdir(folder) if "train.tfrecord" in n)
    path = os.path.join(folder, names[1])
    with open(path, "rb") as f:
        whole = f.read()
    third = 0  # Where record 3 begins, number 7 of the set; a frame is 16 bytes around the data.
    for _ in range(3):
        third += 16 + int.from_bytes(whole[third : third + 8], "little")
    third += 12
    for content, word in (
        (whole[:third] + bytes([whole[third] ^ 1]) + whole[third + 1 :], "cannot be read"),
        (whole[:third], "cannot be read"),
        (b"", "is missing"),
        (None, "cannot be read"),
    ):
        if content is None:
            os.remove(path)
        else:
            with open(path, "wb") as f:
                f.write(content)
        index = 3 if content else 0
        for function in (
            lambda: source_lib.read(opened(tmp_path), np.arange(COUNT)),
            lambda: list(stream(tmp_path).prefetch(0, 3)),
        ):
            message = error_of(function)
            assert f"record {index} of {names[1]}" in message and word in message


def test_a_picture_that_cannot_be_decoded(shapes, monkeypatch):
    source = opened(shapes)
    raws = {}
    for k, raw in source.in_order(np.arange(COUNT)):
        raws[k] = raw
    broken = raws[9].replace(b"\x89PNG", b"\x89PMG")
    with pytest.raises(
        ConfigError, match=r"record 1 of tiny_shapes-train\.tfrecord-00002-of-00003"
    ):
        source.decode(
            [broken], np.array([9]), np.empty((1, 32, 32, 3), np.uint8), np.empty(1, int), None
        )
