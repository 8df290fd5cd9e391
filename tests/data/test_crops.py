import numpy as np
import pytest

from biggan_jax.data import crops, preprocess
from biggan_jax.data.preprocess import Recipe


def test_those_of_a_position_do_not_depend_on_what_is_drawn_with_it():
    whole = crops.random_zoom(3, 0, 1000)
    assert whole.shape == (1000, 3)
    for first, count in ((0, 1), (1, 2), (137, 400), (999, 1)):
        np.testing.assert_array_equal(
            crops.random_zoom(3, first, count), whole[first : first + count]
        )
    far = crops.random_zoom(3, 2**70, 2)
    np.testing.assert_array_equal(far[1:], crops.random_zoom(3, 2**70 + 1, 1))


def test_they_are_philoxs_own_numbers():
    # Four numbers of 64 bits a position; of each the 53 upper bits.
    for position in (0, 5):
        bits = np.random.Philox(key=9)
        bits.advance(position)
        u = np.random.Generator(bits).random(4)
        side, x, y = crops.random_zoom(9, position, 1)[0]
        assert (x, y) == (u[1], u[2])
        assert side == pytest.approx(np.sqrt(0.5) + (1 - np.sqrt(0.5)) * u[0], abs=1e-15)


def test_sides_and_places_are_uniform():
    found = crops.random_zoom(0, 0, 20_000)
    low = [np.sqrt(0.5), 0, 0]
    assert (found >= low).all() and (found < 1).all()
    unit = (found - low) / (1 - np.array(low))
    # 2,000 in each tenth, give or take five standard deviations of 42.
    for column in unit.T:
        assert np.abs(np.bincount((column * 10).astype(int), minlength=10) - 2000).max() < 212
    assert np.abs(np.corrcoef(unit.T) - np.eye(3)).max() < 5 / np.sqrt(20_000)
    assert not np.array_equal(found[:10], crops.random_zoom(1, 0, 10))


def test_half_to_all_of_the_centred_square_is_shown():
    # Each pixel of the picture tells its place; without scaling they can be read off.
    height, width = 60, 90
    place = np.stack(np.broadcast_arrays(*np.ogrid[:height, :width], 0), -1).astype(np.uint8)
    for crop in crops.random_zoom(0, 0, 200):
        side = round(crop[0] * height)
        shown = preprocess.to_square(place, Recipe(side), tuple(crop))
        assert height * height / 2 - 60 <= side * side <= height * height
        top, left = shown[0, 0, :2].astype(int)
        np.testing.assert_array_equal(shown, place[top : top + side, left : left + side])
