"""Records in whatever form protobuf may write them."""

import itertools

import numpy as np
import pytest
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from biggan_jax.config import ConfigError
from biggan_jax.data import prepare, preprocess, tfds_source
from biggan_jax.data.crops import CENTRED
from biggan_jax.data.examples import Examples
from biggan_jax.data.preprocess import Recipe


def entry(key, value):
    """One entry of an example's map, as a `Features` of its own."""
    features = tf_feature_pb2.Features()
    if isinstance(value, int):
        features.feature[key].int64_list.value.append(value)
    else:
        features.feature[key].bytes_list.value.append(value)
    return features.SerializeToString()


def sized(tag, content):
    """A field of a message: tag, size, content."""
    size, out = len(content), []
    while size > 127:
        out.append(size % 128 + 128)
        size //= 128
    return bytes([tag, *out, size]) + content


def pixels(side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def read(record, side, num_classes=1000, resolution=None, crop=CENTRED):
    examples = Examples("image", "label", num_classes, side, Recipe(resolution or side))
    image = np.zeros((resolution or side,) * 2 + (3,), np.uint8)
    out = memoryview(image).cast("B")
    label = examples.fill(5, record, out, crop, lambda i: f"number {i}")
    assert examples.label(5, record, lambda i: f"number {i}") == label
    return image, label


# 6 px: sizes of one byte. 8: two bytes. 128 and 256: three.
@pytest.mark.parametrize("side", [6, 8, 128, 256])
@pytest.mark.parametrize("label", [0, 127, 128, 999])
def test_entries_in_any_order(side, label):
    entries = [
        entry("image", pixels(side).tobytes()),
        entry("label", label),
        entry("file_name", b"a/label.JPEG"),
    ]
    for some in itertools.permutations(entries):
        record = sized(0x0A, b"".join(some))
        assert tf_example_pb2.Example.FromString(record).features.feature["label"]
        image, found = read(record, side)
        np.testing.assert_array_equal(image, pixels(side))
        assert found == label


def test_what_follows_the_image_is_looked_up_only_where_it_is_the_label():
    side, size = 8, 8 * 8 * 3
    examples = Examples("image", "label", 1000, side, Recipe(side))
    image = entry("image", bytes(size))

    def label(*entries):
        return examples.fill(
            0, sized(0x0A, b"".join(entries)), memoryview(bytearray(size)), CENTRED, str
        )

    name, three, four = entry("file_name", b"3"), entry("label", 3), entry("label", 4)
    for _ in range(2):  # The second time what can be is known.
        assert label(name, image, three) == 3
        assert label(image, four) == 4
        assert label(three, image) == 3
        assert label(four, image) == 4
        assert label(four, image, name) == 4
        assert label(three, image, name) == 3
        assert label(image, name, three) == 3
        assert label(three, image, four) == 4, "of two values of a key the later one counts"
    assert set(examples._labels.values()) == {3, 4} and len(examples._labels) == 2
    with pytest.raises(ConfigError, match="is damaged"):
        label(image, three[:-1])


def test_pixels_that_look_like_entries():
    side = 16
    data = (entry("label", 3) * 100)[: side * side * 3]
    record = sized(0x0A, entry("image", data) + entry("label", 7))
    image, label = read(record, side)
    assert (image.tobytes(), label) == (data, 7)


def test_another_form_of_the_same_entry():
    # The value of an entry before its key, which protobuf reads but does not write.
    side = 8
    value = sized(0x0A, sized(0x0A, pixels(side).tobytes()))
    turned = sized(0x0A, sized(0x12, value) + sized(0x0A, b"image"))
    image, label = read(sized(0x0A, turned + entry("label", 2)), side)
    np.testing.assert_array_equal(image, pixels(side))
    assert label == 2


def test_crops_and_other_resolutions():
    record = sized(0x0A, entry("label", 1) + entry("image", pixels(32).tobytes()))
    for resolution, crop in ((16, CENTRED), (64, CENTRED), (32, (0.8, 0.3, 0.9))):
        image, _ = read(record, 32, resolution=resolution, crop=crop)
        expected = preprocess.to_square(pixels(32), Recipe(resolution), crop)
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("cut", [1, 20, 100, 192, 193])
def test_a_record_that_ends_too_soon(cut):
    whole = sized(0x0A, entry("label", 1) + entry("image", pixels(8).tobytes()))
    with pytest.raises(ConfigError, match=r"number 5 is damaged: it is no tf\.train\.Example"):
        read(whole[:-cut], 8)
    whole = sized(0x0A, entry("image", pixels(8).tobytes()) + entry("label", 1))
    with pytest.raises(ConfigError, match="number 5 is damaged"):
        read(whole[:-cut], 8)


def test_records_of_prepared_sets_are_read_the_short_way(tmp_path):
    photos = tmp_path / "photos"
    for i in range(4):
        (photos / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(16, i)).save(photos / "ab"[i % 2] / f"{i}.png")
    request = prepare.Request(f"folder:{photos}", 64, str(tmp_path / "data"), processes=1)
    made = prepare.prepare(request, lambda line: None)
    source = tfds_source.open_split(made["data_name"], made["data_dir"], "train", Recipe(64))
    assert sorted(source[i][1] for i in range(4)) == [0, 0, 1, 1]
    assert sorted(source.examples._labels.values()) == [0, 1]
