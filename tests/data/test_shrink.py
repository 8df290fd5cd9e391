"""Scaling down by area against Pillow's box filter and against a loop in whole numbers."""

import concurrent.futures
import fractions

import numpy as np
import pytest
from PIL import Image

from biggan_jax.data.shrink import covered, shrink


def _noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 4), np.uint8)


def _shrunk(pixels, side, left, top, size):
    out = np.empty((size, size, 3), np.uint8)
    shrink(pixels, left, top, covered(side, size), out)
    return out


def _by_loops(square, size):
    """The mean of the pixels whose centres lie in a new one (its far border counts), rounded."""
    side = len(square)
    scale = fractions.Fraction(side, size)
    out = np.empty((size, size, 3), np.uint8)
    inside = [
        [k for k in range(side) if i * scale < k + fractions.Fraction(1, 2) <= (i + 1) * scale]
        for i in range(size)
    ]
    for y, rows in enumerate(inside):
        for x, columns in enumerate(inside):
            values = square[np.ix_(rows, columns)][..., :3].reshape(-1, 3).astype(int)
            out[y, x] = (values.sum(0) * 2 + len(values)) // (2 * len(values))
    return out


@pytest.mark.parametrize("side", [8, 9, 11, 12, 13, 15, 16])
def test_it_is_the_mean_of_what_a_new_pixel_covers(side):
    pixels = _noise(side + 3, side + 5)
    found = _shrunk(pixels, side, 4, 1, 8)
    np.testing.assert_array_equal(found, _by_loops(pixels[1 : 1 + side, 4 : 4 + side], 8))


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_it_is_pillows_within_a_level(size):
    for side in [*range(size, 2 * size, max(1, size // 20)), 2 * size]:
        pixels = _noise(side + 1, side + 2)
        found = _shrunk(pixels, side, 2, 1, size).astype(int)
        square = Image.fromarray(np.ascontiguousarray(pixels[1:, 2:, :3]))
        pillow = np.asarray(square.resize((size, size), Image.Resampling.BOX))
        assert np.abs(found - pillow).max() <= 1, side


def test_white_stays_white():
    for side in (64, 97, 128):
        assert (_shrunk(np.full((side, side, 4), 255, np.uint8), side, 0, 0, 64) == 255).all()


def test_threads_do_not_disturb_each_other():
    pictures = [_noise(n, n) for n in range(130, 190)]

    def make(picture):
        return _shrunk(picture, len(picture), 0, 0, 128)

    alone = [make(picture) for picture in pictures]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found, expected in zip(pool.map(make, pictures), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("side", [63, 129])
def test_other_sizes_are_refused(side):
    with pytest.raises(ValueError, match="size=64: must be from half of"):
        covered(side, 64)


@pytest.mark.parametrize(
    ("height", "left", "top", "channels", "size", "words"),
    [
        (100, 1, 0, 4, 64, "does not lie in the picture"),
        (100, 0, 1, 4, 64, "does not lie in the picture"),
        (99, 0, 0, 4, 64, "does not lie in the picture"),
        (200, -1, 0, 4, 64, "does not lie in the picture"),
        (200, 0, -1, 4, 64, "does not lie in the picture"),
        (100, 0, 0, 3, 64, "must be"),
        (100, 0, 0, 4, 63, "must be"),
    ],
)
def test_what_does_not_fit_is_refused(height, left, top, channels, size, words):
    pixels = np.zeros((height, height, channels), np.uint8)
    with pytest.raises(ValueError, match=words):
        shrink(pixels, left, top, covered(100, 64), np.empty((size, size, 3), np.uint8))


def test_memory_in_another_order_is_refused():
    out = np.empty((64, 64, 3), np.uint8)
    with pytest.raises(TypeError):
        shrink(np.zeros((100, 100, 4), np.uint8)[:, ::-1], 0, 0, covered(100, 64), out)
    with pytest.raises(TypeError):
        shrink(np.zeros((100, 100, 4), np.uint8), 0, 0, covered(100, 64), out[:, ::-1])
