import functools

import jax
import numpy as np

from biggan_jax.gan import step as step_lib
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sampler
from tests.gan.test_state import small_config


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
    got = made.standing_statistics(sampler.ema_weights(state), 0.7)
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
    other = made.standing_statistics(sampler.ema_weights(state), None)
    assert np.abs(other["out_bn"]["var"] - got["out_bn"]["var"]).max() > 0


def test_images_do_not_depend_on_batch_or_mesh():
    config, _, state, made = setup(1)
    weights = sampler.ema_weights(state)
    labels = np.arange(11) % config.model.num_classes
    statistics = made.standing_statistics(weights)
    images = made.sample(weights, statistics, labels, seed=3)
    assert images.shape == (11, 16, 16, 3) and images.dtype == np.uint8
    assert images.std() > 1
    np.testing.assert_array_equal(made.sample(weights, statistics, labels[:3], seed=3), images[:3])
    _, mesh, state8, made8 = setup(8)
    assert len(mesh.devices) == 8
    weights = sampler.ema_weights(state8)
    images8 = made8.sample(weights, made8.standing_statistics(weights), labels, seed=3)
    assert np.abs(images8.astype(int) - images).max() <= 1  # Rounding at a half.
