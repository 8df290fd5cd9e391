import functools

import jax
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sampler
from tests.gan.test_state import small_config


def test_truncated_latents_follow_the_threshold():
    z = np.asarray(latents.draw(0, np.arange(2000), 120, 2.0))
    assert np.abs(z).max() <= 2
    assert abs(z.std() / 0.8796 - 1) < 0.01
    z = np.asarray(latents.draw(0, np.arange(2000), 120, 0.5))
    assert 0.49 < np.abs(z).max() <= 0.5 and abs(z.std() / 0.2841 - 1) < 0.01  # Not rescaled.
    z = np.asarray(latents.draw(0, np.arange(2000), 120, None))
    assert np.abs(z).max() > 4 and abs(z.std() - 1) < 0.01


def test_a_latent_depends_on_seed_and_index_alone():
    whole = latents.draw(5, np.arange(10), 4, None)
    np.testing.assert_array_equal(latents.draw(5, np.arange(7, 10), 4, None), whole[7:])
    assert not np.array_equal(latents.draw(6, np.arange(10), 4, None), whole)


@pytest.mark.parametrize("truncation", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_truncation(truncation):
    with pytest.raises(config_lib.ConfigError, match="must be a number above 0"):
        latents.check_truncation(truncation)


@functools.cache
def setup(devices):
    config = small_config(sample__standing_passes=3, device_count=1)
    mesh = mesh_lib.make_mesh(devices)
    state = step_lib.init_state(config, mesh)
    # EMA weights of their own, so that a sampler that reads the raw ones is caught.
    other = jax.tree.map(lambda x: x * 1.1 + 0.01, state.g_params)
    return config, mesh, state.replace(ema_params=other), sampler.Sampler(config, mesh)


def test_standing_statistics_are_means_over_passes():
    """Against batches of one's own: the same latents through a plain forward pass."""
    config, _, state, made = setup(1)
    got = made.standing_statistics(state, 0.7)
    model = {**config.model, "bn_momentum": 0.5}
    generator, _ = networks.build({"model": model})
    total = None
    for i in range(3):
        index = i * made.batch_size + np.arange(made.batch_size)
        z = latents.draw(0x57A7, index, config.model.z_dim, 0.7)
        key = jax.random.fold_in(jax.random.key(0x1ABE1), i)
        labels = jax.random.randint(key, (made.batch_size,), 0, config.model.num_classes)
        start = jax.tree.map(np.zeros_like, state.ema_batch_stats)
        variables = {
            "params": state.ema_params,
            "batch_stats": start,
            "spectral": state.g_spectral,
        }
        _, moved = generator.apply(variables, z, labels, train=True, mutable=["batch_stats"])
        batch = jax.tree.map(lambda x: 2 * np.asarray(x), moved["batch_stats"])
        total = batch if total is None else jax.tree.map(np.add, total, batch)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b / 3, rtol=1e-5, atol=1e-6), got, total
    )
    other = made.standing_statistics(state, None)
    assert np.abs(other["out_bn"]["var"] - got["out_bn"]["var"]).max() > 0


def test_images_do_not_depend_on_batch_or_mesh():
    config, _, state, made = setup(1)
    labels = np.arange(11) % config.model.num_classes
    statistics = made.standing_statistics(state)
    images = made.sample(state, statistics, labels, seed=3)
    assert images.shape == (11, 16, 16, 3) and images.dtype == np.uint8
    assert images.std() > 1
    np.testing.assert_array_equal(made.sample(state, statistics, labels[:3], seed=3), images[:3])
    _, mesh, state8, made8 = setup(8)
    assert len(mesh.devices) == 8
    images8 = made8.sample(state8, made8.standing_statistics(state8), labels, seed=3)
    assert np.abs(images8.astype(int) - images).max() <= 1  # Rounding at a half.


def test_samples_checks_what_it_is_asked():
    config, mesh, state, _ = setup(1)
    samples = sampler.Samples(config, state, mesh)
    with pytest.raises(config_lib.ConfigError, match="class 5: this model has classes 0 to 4"):
        samples.sample(np.array([0, 5]))
    assert samples.sample(np.array([0, 4]), truncation=0.5).shape == (2, 16, 16, 3)
