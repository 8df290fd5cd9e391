"""The short way from a JPEG to its square against the long one, by Pillow."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.data import crops, jpeg, preprocess
from biggan_jax.data.crops import CENTRED
from biggan_jax.data.preprocess import Recipe


def _picture(height, width, mode="RGB"):
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(-40, 40, (height, width, 3))
    waves = [np.sin(x / 17 + k) * np.cos(y / (23 + k)) for k in range(3)]
    colours = 127.5 + 80 * np.stack(waves, -1) + noise
    return Image.fromarray(np.uint8(colours)).convert(mode)


def _file(height, width, mode="RGB", **options):
    buffer = io.BytesIO()
    _picture(height, width, mode).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def _square(file, crop=CENTRED):
    """What the short way makes of a file at 64 px, or None if it leaves it to the long one."""
    out = np.empty((64, 64, 3), np.uint8)
    return out if jpeg.square(file, crop, out) else None


def _by_pillow(file, resolution, crop=CENTRED):
    """What `preprocess` makes of a file when it has to tell of it: it goes the long way then."""
    return preprocess.decode(file, "photo", Recipe(resolution, decode="scaled"), crop, notes=[])


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": "4:4:4"}, {"progressive": True}, {"keep_rgb": True}]
)
@pytest.mark.parametrize(
    ("height", "width"),
    [(64, 64), (65, 90), (127, 100), (128, 128), (129, 300), (375, 500), (512, 512), (600, 1024)],
)
@pytest.mark.parametrize("crop", [CENTRED, (0.75, 0.2, 0.9)])
def test_images_are_those_of_the_long_way(height, width, crop, options):
    file = _file(height, width, **options)
    found = _square(file, crop)
    if crop[0] * min(height, width) < 64:
        assert found is None
    else:
        np.testing.assert_array_equal(found, _by_pillow(file, 64, crop))


@pytest.mark.parametrize("share", [0.71, 0.75, 0.9, 0.97, 1.0])
def test_a_crop_of_a_reduced_picture_is_not_enlarged(share):
    for long in range(64, 700, 9):
        width, height = crops.reduced(long + 40, long, crops.shortest(64, (share, 0.5, 0.5)))
        side = crops.window(width, height, (share, 0.5, 0.5))[0]
        assert side >= 64 or height == long
        assert side < 128 + 2 or height == -(-long // 8)


def test_sizes_are_those_that_the_decoder_gives():
    for height, width, at_least in ((375, 500, 128), (511, 640, 64), (100, 90, 200)):
        small = crops.reduced(width, height, at_least)
        decoded = simplejpeg.decode_jpeg(
            _file(height, width), min_height=small[1], min_width=small[0]
        )
        assert decoded.shape[1::-1] == small


def _exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _with_two_headers(height, width):
    """A file of 150 x 140 whose header says otherwise to who reads a length after every mark."""
    whole = _file(150, 140)
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    frame = b"\xff\xc0\0\x11\x08" + size + b"\3\1\x22\0\2\x11\1\3\x11\1"
    other = bytes(8) + frame + b"\xff\xda\0\x0c" + bytes(10)
    skipped = b"\xff\xd0\xff\xfe\xff\xf0" + bytes(0xFFF0 - 2)
    comment = b"\xff\xfe" + (2 + len(other)).to_bytes(2, "big") + other
    return whole[:2] + skipped + comment + whole[2:]


def _with_frame(kind, bits):
    at = _WHOLE.index(b"\xff\xc0")
    return (
        _WHOLE[:at]
        + bytes((0xFF, kind))
        + _WHOLE[at + 2 : at + 4]
        + bytes((bits,))
        + _WHOLE[at + 5 :]
    )


_WHOLE = _file(300, 260)
_LEFT_TO_PILLOW = {
    "EXIF": _file(300, 260, exif=_exif(6)),
    "XMP": _file(300, 260, xmp=b'<x tiff:Orientation="6"/>'),
    "grey": _file(300, 260, "L"),
    "CMYK": _file(300, 260, "CMYK"),
    "too small": _file(60, 60),
    "damaged": _WHOLE[:2000] + bytes(200) + _WHOLE[2200:],
    "cut off": _WHOLE[: len(_WHOLE) // 2],
    "only a header": _WHOLE[:100],
    "two bytes": _WHOLE[:2],
    "no JPEG": b"\x89PNG" + _WHOLE[4:],
    "two headers": _with_two_headers(100, 100),
    "two headers, of which one is long": _with_two_headers(64, 2000),
    "lossless": _with_frame(0xC3, 8),
    "arithmetic coding": _with_frame(0xC9, 8),
    "12 bits": _with_frame(0xC1, 12),
    "no pixels": _with_frame(0xC0, 8)[: _WHOLE.index(b"\xff\xda")],
    "fill bytes": _WHOLE[:2] + b"\xff" + _WHOLE[2:],
}


@pytest.mark.parametrize("what", _LEFT_TO_PILLOW)
def test_what_is_left_to_pillow(what):
    file = _LEFT_TO_PILLOW[what]
    assert _square(file) is None
    try:
        expected = _by_pillow(file, 64)
    except ConfigError as e:
        with pytest.raises(ConfigError) as caught:
            preprocess.decode(file, "photo", Recipe(64, decode="scaled"))
        assert str(caught.value) == str(e)
    else:
        found = preprocess.decode(file, "photo", Recipe(64, decode="scaled"))
        np.testing.assert_array_equal(found, expected)


def test_several_pictures_in_one_file_are_left_to_pillow():
    buffer = io.BytesIO()
    first, second = _picture(300, 260), _picture(200, 260)
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert _square(buffer.getvalue()) is None


def test_profiles_of_colours_are_not_in_the_way():
    file = _file(300, 260, icc_profile=bytes(3000))
    np.testing.assert_array_equal(_square(file), _by_pillow(file, 64))


def test_turned_pictures_are_turned():
    turned = preprocess.decode(_LEFT_TO_PILLOW["EXIF"], "photo", Recipe(64, decode="scaled"))
    straight = preprocess.decode(_WHOLE, "photo", Recipe(64, decode="scaled"))
    # The crop takes its middle, which may lie one pixel aside after turning.
    assert np.abs(turned.astype(int) - np.rot90(straight, -1)).mean() < 12
    assert np.abs(turned.astype(int) - straight).mean() > 24


def test_a_strip_is_no_picture():
    with pytest.raises(ConfigError, match=r"cannot be read as a picture: a picture of .* used"):
        preprocess.decode(_file(20, 2100), "photo", Recipe(16, decode="scaled"))
