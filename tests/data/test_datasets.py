import numpy as np
import pytest
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.data import crops, datasets, loader, preprocess, report
from biggan_jax.data import source as source_lib
from biggan_jax.data.preprocess import Recipe
from tests.data.made import make_config, open_source


def error_of(*args, **kwargs):
    with pytest.raises(ConfigError) as e:
        open_source(*args, **kwargs)
    message = str(e.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    """Two classes; every picture of the size 32 x 32 but one."""
    (tmp_path / "b_dogs").mkdir()
    (tmp_path / "a_cats").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a_cats" / "1_rgb.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "a_cats" / "2_grey.PNG")
    alpha = np.dstack([noise, np.zeros((32, 32), np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "a_cats" / "3_rgba.webp", lossless=True)
    Image.new("CMYK", (40, 32), (255, 0, 0, 0)).save(tmp_path / "b_dogs" / "1_cmyk.jpg")
    deep = (noise[..., 0].astype(np.uint16) * 257).copy()
    Image.fromarray(deep).save(tmp_path / "b_dogs" / "2_16bit.tiff")
    exif = Image.Exif()
    exif[0x0112] = 3  # Upside down.
    Image.fromarray(noise).save(tmp_path / "b_dogs" / "3_turned.png", exif=exif)
    (tmp_path / "b_dogs" / "notes.txt").write_text("not a picture")
    (tmp_path / "b_dogs" / ".hidden.png").write_text("not a picture")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("not a class")
    return tmp_path, noise


def test_folder(folder):
    directory, noise = folder
    source = open_source("folder", directory)
    assert source.class_names == ("a_cats", "b_dogs")
    assert (source.num_classes, len(source)) == (2, 6)
    assert source.labels().tolist() == [0, 0, 0, 1, 1, 1]
    images, labels = source_lib.read(source, np.arange(6))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    grey = noise[..., :1].repeat(3, -1)
    np.testing.assert_array_equal(images[0], noise)
    np.testing.assert_array_equal(images[1], grey)
    assert (images[2] == 255).all()
    np.testing.assert_allclose(images[3].reshape(-1, 3).mean(0), [0, 255, 255], atol=4)
    np.testing.assert_array_equal(images[4], grey)
    np.testing.assert_array_equal(images[5], noise[::-1, ::-1])


def test_folder_resizes_as_asked(folder):
    directory, noise = folder
    for resize, method in (("area", "BOX"), ("lanczos", "LANCZOS"), ("pil_bilinear", "BILINEAR")):
        source = open_source("folder", directory, resolution=16, resize=resize)
        expected = Image.fromarray(noise).resize((16, 16), Image.Resampling[method])
        # At whole factors the area's mean is rounded once, by Pillow's filter twice.
        off = np.abs(source[0][0].astype(int) - np.asarray(expected)).max()
        assert off <= (resize == "area")


def test_folder_with_an_empty_file(folder):
    path = folder[0] / "a_cats" / "4_empty.jpg"
    path.touch()
    message = error_of("folder", folder[0])
    assert str(path) in message
    assert "empty" in message


def test_folder_with_a_broken_file(folder):
    path = folder[0] / "a_cats" / "0_broken.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 and nothing more")
    source = open_source("folder", folder[0])
    with pytest.raises(ConfigError, match="cannot be read as a picture") as e:
        source[0]
    assert str(path) in str(e.value)
    with pytest.raises(ConfigError, match=r"0_broken\.jpg"):
        loader.Loader(source, batch_size=1, num_batches=1, seed=0, cache_mib=1)


def test_folder_mistakes(folder, tmp_path):
    directory = folder[0]
    assert "data.dir" in error_of("folder", "")
    assert "no such folder" in error_of("folder", directory / "absent")
    assert "no sub-folders" in error_of("folder", directory / "a_cats")
    message = error_of("folder", directory, "test")
    assert "data.split='test'" in message
    assert "'train'" in message
    (directory / "c_birds").mkdir()
    message = error_of("folder", directory)
    assert str(directory / "c_birds") in message
    assert "no pictures" in message


def test_folder_with_zoomed_crops(folder):
    directory, noise = folder
    source = open_source("folder", directory, resolution=16)
    zoom = tuple(crops.random_zoom(0, 3, 1)[0])
    expected = preprocess.to_square(Image.fromarray(noise), Recipe(16), zoom)
    np.testing.assert_array_equal(source.get(0, zoom)[0], expected)
    assert (expected != source[0][0]).any()


# Fake data


def test_fake_data():
    source = open_source("fake", resolution=64, num_classes=7)
    assert (len(source), source.num_classes, source.where) == (1_281_167, 7, "memory")
    images, labels = source_lib.read(source, np.arange(40) * 30_000)
    assert images.shape == (40, 64, 64, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(40) * 30_000 % 7)
    assert len({image.tobytes() for image in images}) == 40
    np.testing.assert_array_equal(images[5], source[150_000][0])
    # 40 x 12,288 values are uniform: 1,920 of each, give or take five standard deviations of 44.
    assert np.abs(np.bincount(images.ravel(), minlength=256) - 1920).max() < 5 * 44
    assert np.bincount(source.labels()).tolist() == [183_024] * 6 + [183_023]


def test_fake_data_are_made_when_they_are_needed():
    config = make_config("fake", resolution=16, cache_mib=10**6, crop="random_zoom", fraction=0.5)
    batches = datasets.make_loader(datasets.open_source(config), config)
    assert (batches.images, len(batches.source)) == (None, 640_584)
    batch = batches.batch(10**6)
    assert batch["image"].shape == (2, 8, 16, 16, 3)
    facts = report.data_report(batches.source, config, batches)
    report.check(facts, config)
    text = report.text(facts)
    for words in (
        "fake, split train, in memory",
        "640,584 at",
        "0.5 of the records",
        "random_zoom",
    ):
        assert words in text


def test_fake_data_have_no_splits():
    assert "data.split='test'" in error_of("fake", split="test")
