import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.sample import latents


def draw(truncation, mode, dim=120, count=2000):
    return np.asarray(latents.draw(0, np.arange(count), dim, truncation, mode))


def test_threshold_resamples_and_does_not_rescale():
    z = draw(2.0, "threshold")
    assert np.abs(z).max() <= 2
    assert abs(z.std() / 0.8796 - 1) < 0.01  # Of N(0, 1) cut at 2, spec section 14.1.
    z = draw(0.5, "threshold")
    assert 0.49 < np.abs(z).max() <= 0.5 and abs(z.std() / 0.2841 - 1) < 0.01


def test_hub_scales_the_normal_cut_at_two():
    z = draw(0.5, "hub")
    assert 0.98 < np.abs(z).max() <= 1.0 and abs(z.std() / (0.8796 / 2) - 1) < 0.01
    np.testing.assert_array_equal(draw(1.0, "hub"), draw(2.0, "threshold"))
    # At the same bound the two conventions differ: 0.540 against 0.440.
    assert abs(draw(1.0, "threshold").std() / 0.540 - 1) < 0.01


def test_std_and_clamp():
    z = draw(0.5, "std")
    assert np.abs(z).max() > 2 and abs(z.std() / 0.5 - 1) < 0.01
    z = draw(0.5, "clamp")
    at_the_bound = np.mean(np.abs(z) == 0.5)
    assert np.abs(z).max() == 0.5 and abs(at_the_bound / 0.6171 - 1) < 0.01  # P(|z| > 0.5).


@pytest.mark.parametrize("mode", latents.MODES)
def test_none_is_the_plain_normal_in_every_mode(mode):
    z = draw(None, mode)
    assert np.abs(z).max() > 4 and abs(z.std() - 1) < 0.01
    assert latents.describe(None, mode) == "no truncation"
    assert latents.describe(0.5, mode) == f"{mode} truncation 0.5"


@pytest.mark.parametrize("mode", latents.MODES)
def test_a_latent_depends_on_seed_and_index_alone(mode):
    whole = latents.draw(5, np.arange(10), 4, 0.7, mode)
    np.testing.assert_array_equal(latents.draw(5, np.arange(7, 10), 4, 0.7, mode), whole[7:])
    assert not np.array_equal(latents.draw(6, np.arange(10), 4, 0.7, mode), whole)


@pytest.mark.parametrize("truncation", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_truncation(truncation):
    with pytest.raises(config_lib.ConfigError, match="must be a number above 0"):
        latents.check_truncation(truncation)


def test_bad_modes():
    with pytest.raises(config_lib.ConfigError, match="must be at most 1 in mode hub"):
        latents.check_truncation(1.5, "hub")
    latents.check_truncation(1.5, "threshold")
    with pytest.raises(config_lib.ConfigError, match="must be one of threshold, hub, std, clamp"):
        latents.check_truncation(0.5, "none")
