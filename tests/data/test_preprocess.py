import io
import itertools
import os
import sys

import numpy as np
import pytest
from PIL import Image

from biggan_jax import config
from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.preprocess import Recipe


def _noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def _encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_square_rgb_of_the_right_size_is_unchanged():
    image = _noise(16, 16, 3)
    out = preprocess.to_square(image, Recipe(16))
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(preprocess.to_square(Image.fromarray(image), Recipe(16)), image)


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((16, 40, 3), np.s_[:, 12:28]),
        ((40, 16, 3), np.s_[12:28, :]),
        ((16, 17, 3), np.s_[:, 0:16]),
    ],
)
def test_crop_is_the_middle_of_the_long_edge(shape, cut):
    image = _noise(*shape)
    np.testing.assert_array_equal(preprocess.to_square(image, Recipe(16)), image[cut])


def test_area_is_the_mean_of_blocks():
    image = _noise(64, 96, 3)
    blocks = image[:, 16:80].reshape(16, 4, 16, 4, 3).mean((1, 3))
    out = preprocess.to_square(image, Recipe(16, "area"))
    # Pillow rounds twice, after the rows and after the columns.
    assert np.abs(out - blocks).max() <= 1


def test_pixels_outside_the_crop_do_not_leak_in():
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :16] = image[:, 80:] = 255
    for resize in config.RESIZES:
        assert preprocess.to_square(image, Recipe(16, resize)).max() == 0


@pytest.mark.parametrize(
    ("resize", "method"),
    [
        ("area", Image.Resampling.BICUBIC),
        ("pil_bilinear", Image.Resampling.BILINEAR),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_enlarging(resize, method):
    image = _noise(8, 8, 3)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), method))
    np.testing.assert_array_equal(preprocess.to_square(image, Recipe(32, resize)), expected)


@pytest.mark.parametrize(("before", "after"), [(50, 16), (64, 16), (9, 32)])
def test_bilinear_is_the_mean_of_four_pixels(before, after):
    image = _noise(before, before, 3)
    centres = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.minimum(np.floor(centres).astype(int), before - 2)
    part = centres - low
    rows = image[low] * (1 - part)[:, None, None] + image[low + 1] * part[:, None, None]
    expected = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    out = preprocess.to_square(image, Recipe(after, "bilinear"))
    assert np.abs(out - expected).max() <= 1


def test_resize_methods_differ_when_shrinking():
    image = _noise(64, 64, 3)
    results = [preprocess.to_square(image, Recipe(16, r)) for r in config.RESIZES]
    for a, b in itertools.combinations(results, 2):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1)])
def test_grey_array_has_three_equal_channels(shape):
    image = _noise(*shape)
    out = preprocess.to_square(image, Recipe(16))
    for channel in range(3):
        np.testing.assert_array_equal(out[..., channel], image.reshape(16, 16))


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 3)])
def test_16_bit_array(shape):
    image = _noise(*shape, dtype=np.uint16)
    out = preprocess.to_square(image, Recipe(16)).astype(float)
    expected = np.broadcast_to(image.reshape(16, 16, -1) / 257, (16, 16, 3))
    assert np.abs(out - expected).max() <= 0.51


def test_16_bit_grey_file_uses_the_whole_range():
    ramp = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    out = preprocess.decode(_encoded(Image.fromarray(ramp)), "ramp", Recipe(16))
    assert (out.min(), out.max()) == (0, 255)
    assert np.abs(out[..., 1] - ramp / 257).max() <= 0.51


def test_transparency_is_laid_on_white():
    image = np.zeros((16, 16, 4), np.uint8)
    image[..., 0] = 200
    image[:, 8:, 3] = 255
    image[8:, :8, 3] = 51
    for given in (image, Image.fromarray(image)):
        out = preprocess.to_square(given, Recipe(16))
        assert (out[0, 0] == 255).all()
        assert out[0, 15].tolist() == [200, 0, 0]
        np.testing.assert_allclose(out[15, 0], [244, 204, 204], atol=1)


def test_palette_with_a_transparent_entry():
    picture = Image.new("P", (16, 16), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.paste(0, (0, 0, 16, 8))
    out = preprocess.decode(_encoded(picture, transparency=0), "palette", Recipe(16))
    assert out[0, 0].tolist() == [255, 255, 255]
    assert out[15, 0].tolist() == [40, 50, 60]


def test_cmyk_file():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    out = preprocess.decode(_encoded(picture, "JPEG"), "cmyk", Recipe(16))
    np.testing.assert_allclose(out.reshape(-1, 3).mean(0), [255, 0, 0], atol=4)


def test_bilevel():
    picture = Image.new("1", (16, 16), 1)
    assert (preprocess.to_square(picture, Recipe(16)) == 255).all()
    assert (preprocess.to_square(np.ones((16, 16), bool), Recipe(16)) == 255).all()


def test_any_crop():
    image = _noise(40, 64, 3)
    whole = preprocess.to_square(image, Recipe(20), (0.5, 1.0, 0.0))
    np.testing.assert_array_equal(whole, image[:20, 44:])
    assert preprocess.to_square(image, Recipe(20), (0.01, 0.5, 0.5)).shape == (20, 20, 3)


def _photo(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + k) * np.cos(y / (23 + k)) for k in range(3)]
    return np.uint8(127.5 + 127 * np.stack(waves, -1))


@pytest.mark.parametrize("grey", [False, True])
def test_jpegs_decode_as_pillow_does(grey):
    picture = Image.fromarray(_photo(300, 200)).convert("L" if grey else "RGB")
    file = _encoded(picture, "JPEG", quality=90)
    with Image.open(io.BytesIO(file)) as decoded:
        expected = preprocess.to_square(decoded.convert("RGB"), Recipe(64))
    np.testing.assert_array_equal(preprocess.decode(file, "photo", Recipe(64)), expected)


def test_scaled_jpegs_are_close():
    file = _encoded(Image.fromarray(_photo(600, 400)), "JPEG", quality=95)
    exact = preprocess.decode(file, "photo", Recipe(64))
    scaled = preprocess.decode(file, "photo", Recipe(64, decode="scaled"))
    # Rounding of the crop shifts it by half a pixel of the smaller picture at most.
    assert 0 < np.abs(scaled.astype(int) - exact).mean() <= 5
    same = preprocess.decode(file, "photo", Recipe(512, decode="scaled"))
    np.testing.assert_array_equal(same, preprocess.decode(file, "photo", Recipe(512)))


@pytest.mark.parametrize("decode", ["exact", "scaled"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_results_are_put_where_one_wants_them(decode, file_format):
    file = _encoded(Image.fromarray(_photo(300, 200)), file_format)
    out = np.zeros((2, 64, 64, 3), np.uint8)
    found = preprocess.decode(file, "photo", Recipe(64, decode=decode), out=out[1])
    assert found.base is out and not out[0].any()
    np.testing.assert_array_equal(out[1], preprocess.decode(file, "p", Recipe(64, decode=decode)))


@pytest.mark.parametrize("decode", ["exact", "scaled"])
@pytest.mark.parametrize(
    "out",
    [
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8)[:, ::-1],
        np.frombuffer(bytes(64 * 64 * 3), np.uint8).reshape(64, 64, 3),
    ],
    ids=["size", "type", "order", "read-only"],
)
def test_a_result_that_does_not_fit_is_not_the_pictures_fault(decode, out):
    file = _encoded(Image.fromarray(_photo(300, 200)), "JPEG")
    with pytest.raises(ValueError, match=r"^out: must be \[64, 64, 3\] uint8 in C order") as caught:
        preprocess.decode(file, "photo", Recipe(64, decode=decode), out=out)
    assert not isinstance(caught.value, ConfigError)


def test_files_are_read_whole_where_the_system_gives_little(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.fromarray(_photo(64, 64)).save(path)
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, count: read(file, min(count, 1000)))
    found = preprocess.decode(str(path), "photo", Recipe(64))
    np.testing.assert_array_equal(found, _photo(64, 64))


def test_pipes_are_read_and_folders_are_not(tmp_path):
    data = _encoded(Image.fromarray(_photo(64, 64)), "PNG")
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    found = preprocess.decode(f"/dev/fd/{reader}", "pipe", Recipe(64))
    os.close(reader)
    np.testing.assert_array_equal(found, _photo(64, 64))
    with pytest.raises(ConfigError, match=r"cannot be read as a picture: .*[Ii]s a directory"):
        preprocess.decode(str(tmp_path), "folder", Recipe(64))


def test_scaled_without_numba_is_refused(monkeypatch):
    import biggan_jax.data

    for name in ("jpeg", "shrink"):
        monkeypatch.delitem(sys.modules, f"biggan_jax.data.{name}", raising=False)
        monkeypatch.delattr(biggan_jax.data, name, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    preprocess._short_way.cache_clear()
    with pytest.raises(ConfigError, match=r"^data\.decode='scaled': Numba cannot be used here \("):
        Recipe(64, decode="scaled")
    assert Recipe(64, decode="scaled", resize="lanczos").decode == "scaled"
    assert Recipe(64).decode == "exact"


def test_a_turned_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 8
    image = _photo(64, 64)
    turned = preprocess.decode(_encoded(Image.fromarray(image), "JPEG", exif=exif), "t", Recipe(64))
    straight = preprocess.decode(_encoded(Image.fromarray(image), "JPEG"), "t", Recipe(64))
    np.testing.assert_array_equal(turned, np.rot90(straight))


def test_damage_inside_a_jpeg():
    whole = _encoded(Image.fromarray(_photo(300, 200)), "JPEG")
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(200) + whole[middle + 200 :]
    preprocess.decode(damaged, "photo", Recipe(64))  # As Pillow does: some picture comes out.
    with pytest.raises(ConfigError, match=r"photo cannot be read as a picture: .*JPEG"):
        preprocess.decode(damaged, "photo", Recipe(64, strict=True))
    for strict in (False, True):
        with pytest.raises(ConfigError, match=r"photo cannot be read as a picture: "):
            preprocess.decode(whole[:middle], "photo", Recipe(64, strict=strict))


def test_notes_say_what_was_done():
    def notes(picture, kind="PNG", resolution=16, **options):
        found = []
        file = _encoded(picture, kind, **options)
        preprocess.decode(file, "picture", Recipe(resolution), notes=found)
        return found

    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.fromarray(_noise(16, 16, 3))
    assert notes(rgb) == []
    assert notes(Image.new("CMYK", (16, 16)), "JPEG") == ["CMYK: converted to RGB"]
    assert notes(rgb.convert("L"), "JPEG") == ["grey: three equal channels"]
    assert notes(Image.fromarray(_noise(16, 16, dtype=np.uint16)))[0] == "16-bit: reduced to 8"
    assert notes(rgb, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))]) == [
        "animated: first frame taken"
    ]
    assert notes(rgb, "JPEG", exif=exif) == ["EXIF: rotated as it says"]
    assert notes(Image.fromarray(_noise(16, 16, 4))) == ["transparent: laid on white"]
    assert notes(rgb, resolution=32) == ["enlarged: from 16 x 16 pixels"]


def test_a_strip_is_refused():
    with pytest.raises(ConfigError, match="5000 x 1 pixels"):
        preprocess.to_square(np.zeros((1, 5000, 3), np.uint8), Recipe(16))


def test_exif_orientation_is_obeyed():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it rotated by 90 degrees clockwise.
    out = preprocess.decode(_encoded(Image.fromarray(image), exif=exif), "turned", Recipe(16))
    np.testing.assert_array_equal(out, np.rot90(image, -1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), ["float32", "uint8"]),
        (np.zeros((4, 4, 2), np.uint8), ["[4, 4, 2]", "[H, W, 3]"]),
        (np.zeros((4,), np.uint8), ["[4]"]),
        (Image.new("F", (4, 4)), ["floating-point"]),
        (Image.new("I", (4, 4), 70000), ["32-bit"]),
    ],
)
def test_pixels_without_a_range_are_refused(image, words):
    with pytest.raises(ConfigError) as e:
        preprocess.to_square(image, Recipe(16))
    assert all(word in str(e.value) for word in words)


def test_unknown_resize_is_refused():
    with pytest.raises(ConfigError, match=r"data\.resize='cubic'.*area, bilinear, pil_"):
        preprocess.to_square(_noise(4, 4, 3), Recipe(16, "cubic"))


def test_unreadable_files_are_named(tmp_path):
    whole = _encoded(Image.fromarray(_noise(32, 32, 3)))
    cut_off = tmp_path / "cut.png"
    cut_off.write_bytes(whole[: len(whole) // 2])
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (cut_off, text, empty, tmp_path / "absent.png"):
        with pytest.raises(ConfigError) as e:
            preprocess.decode(str(path), str(path), Recipe(16))
        message = str(e.value)
        assert message.startswith(str(path))
        assert message.endswith(".")
        assert "\n" not in message
    with pytest.raises(ConfigError, match=r"record 7 .*empty"):
        preprocess.decode(b"", "record 7", Recipe(16))
