import itertools

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.sample import walk

RNG = np.random.default_rng(0)


def angle(a, b):
    return np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))


def turned(a, b, t):
    """By brute force: halving the way between two directions again and again."""
    low, high, at = a / np.linalg.norm(a), b / np.linalg.norm(b), (0.0, 1.0)
    for _ in range(50):
        middle = (low + high) / np.linalg.norm(low + high)
        half = sum(at) / 2
        if half <= t:
            low, at = middle, (half, at[1])
        else:
            high, at = middle, (at[0], half)
    return low * ((1 - t) * np.linalg.norm(a) + t * np.linalg.norm(b))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_slerp_turns_at_constant_speed(scale):
    a, b = RNG.normal(size=12), scale * RNG.normal(size=12)
    t = np.linspace(0, 1, 9)
    way = walk.slerp(a, b, t)
    np.testing.assert_array_equal(way[0], a)
    np.testing.assert_array_equal(way[-1], b)
    steps = [angle(x, y) for x, y in itertools.pairwise(way)]
    np.testing.assert_allclose(steps, angle(a, b) / 8, rtol=1e-9)
    lengths = np.linalg.norm(way, axis=1)
    np.testing.assert_allclose(np.diff(lengths, 2), 0, atol=1e-12)
    for x, s in zip(way, t, strict=True):
        np.testing.assert_allclose(x, turned(a, b, s), atol=1e-11)


def test_slerp_of_near_directions_and_of_none():
    a = RNG.normal(size=12)
    np.testing.assert_allclose(walk.slerp(a, 2 * a, np.array([0.5]))[0], 1.5 * a, rtol=1e-12)
    near = a + 1e-5 * RNG.normal(size=12)
    got = walk.slerp(a, near, np.array([0.25]))[0]
    np.testing.assert_allclose(got, 0.75 * a + 0.25 * near, atol=1e-9)
    for b in (-a, np.zeros(12)):
        with pytest.raises(ConfigError, match="walk linearly"):
            walk.slerp(a, b, np.array([0.5]))


def test_a_path_passes_its_points_and_a_loop_closes():
    z, mix = RNG.normal(size=(3, 8)), np.eye(5)[[0, 4, 2]]
    for how in walk.WAYS:
        open_z, open_mix = walk.path(z, mix, 4, how)
        assert open_z.shape == (9, 8) and open_mix.shape == (9, 5)
        assert open_z.dtype == open_mix.dtype == np.float32
        np.testing.assert_array_equal(open_z[::4], np.float32(z))
        np.testing.assert_array_equal(open_mix[::4], np.float32(mix))
        loop_z, loop_mix = walk.path(z, mix, 4, how, loop=True)
        assert loop_z.shape == (12, 8)
        np.testing.assert_array_equal(loop_z[:9], open_z)
        # The frame after the last one is the first: the last leg is the way from point 2 to 0.
        back_z, back_mix = walk.path(z[[2, 0]], mix[[2, 0]], 4, how)
        np.testing.assert_array_equal(np.r_[loop_z[8:], loop_z[:1]], back_z)
        np.testing.assert_array_equal(np.r_[loop_mix[8:], loop_mix[:1]], back_mix)
    np.testing.assert_allclose(loop_mix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(loop_mix[1], [0.75, 0, 0, 0, 0.25], atol=1e-7)
    linear, _ = walk.path(z, mix, 4, "linear")
    np.testing.assert_allclose(linear[3], 0.25 * z[0] + 0.75 * z[1], rtol=1e-6)


def test_points_that_are_alike_stand_still():
    z = np.zeros((2, 8))  # Of no direction; but the way to itself needs none.
    way, mix = walk.path(z, np.eye(2), 2)
    assert not way.any()
    np.testing.assert_allclose(mix[1], [0.5, 0.5])


def test_only_some_chunks_move():
    z, base = RNG.normal(size=(4, 12)), RNG.normal(size=12)
    moved = walk.only_chunks(z, base, [1, 2], 4)
    np.testing.assert_array_equal(moved[:, 3:9], z[:, 3:9])
    np.testing.assert_array_equal(moved[:, :3], np.tile(base[:3], (4, 1)))
    np.testing.assert_array_equal(moved[:, 9:], np.tile(base[9:], (4, 1)))
    with pytest.raises(ConfigError, match="4 is none of the chunks 0 to 3"):
        walk.only_chunks(z, base, [4], 4)
