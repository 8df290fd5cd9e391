import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.gan import spectra
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from tests.gan.test_state import small_config


def oracle(weight):
    """The top three by LAPACK in float64, zeros where there are fewer."""
    matrix = np.float64(np.asarray(weight)).reshape(-1, weight.shape[-1])
    values = np.linalg.svd(matrix, compute_uv=False)[:3]
    return np.pad(values, (0, 3 - len(values)))


def with_values(values, rows, columns, seed=0):
    """A float32 matrix with these singular values."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(rng.normal(size=(columns, len(values))))[0]
    return jnp.float32(left * values @ right.T)


def values_after(weight, looks):
    side = min(weight.size // weight.shape[-1], weight.shape[-1])
    block = jax.random.normal(jax.random.key(9), (side, min(spectra.BLOCK, side)))
    block = jnp.linalg.qr(block)[0]
    step = jax.jit(spectra.top_singular_values)
    for _ in range(looks):
        sigma, block = step(weight, block)
    return np.asarray(sigma), block


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("normal", jax.random.normal(jax.random.key(0), (3, 3, 64, 96))),
        ("wide", jax.random.normal(jax.random.key(1), (20, 2000))),
        ("three outputs", jax.random.normal(jax.random.key(2), (3, 3, 64, 3))),
        ("one output", jax.random.normal(jax.random.key(3), (64, 1))),
        ("one standing out", with_values([50.0, *np.linspace(2, 1, 99)], 300, 100)),
        ("close ones", with_values([1.01, 1.005, 1.0, *np.linspace(0.99, 0.5, 97)], 300, 100)),
        ("equal ones", with_values(np.ones(64), 576, 64)),
        ("rank one", with_values([7.0], 100, 50)),
        ("zeros", jnp.zeros((30, 20))),
    ],
)
def test_a_cold_start_gives_the_values_of_lapack_to_a_percent(name, weight):
    sigma, block = values_after(weight, spectra.FIRST_LOOKS)
    want = oracle(weight)
    # Where there is nothing, what is left is rounding of the squares: the root of 1e-7.
    np.testing.assert_allclose(sigma, want, rtol=0.01, atol=1e-3 * want[0])
    # Ritz values lie below the true ones.
    assert (sigma <= want * (1 + 1e-5) + 1e-3 * want[0]).all()
    width = block.shape[1]
    np.testing.assert_allclose(block.T @ block, np.eye(width), atol=1e-5)


def test_one_warm_look_follows_a_weight_that_moved():
    """Also a direction that overtakes the others from far behind, in a few looks."""
    weight = with_values([1.2, 1.1, 1.0, *np.linspace(0.9, 0.5, 97)], 300, 100)
    _, block = values_after(weight, spectra.FIRST_LOOKS)
    moved = weight + 0.02 * with_values([1.0, 1.0, 1.0], 300, 100, seed=5)
    sigma, _ = spectra.top_singular_values(moved, block)
    np.testing.assert_allclose(sigma, oracle(moved), rtol=0.01)
    exploded = weight + with_values([5.0], 300, 100, seed=6)
    for _ in range(2):
        sigma, block = spectra.top_singular_values(exploded, block)
    np.testing.assert_allclose(sigma[0], oracle(exploded)[0], rtol=0.01)


def settings():
    return small_config(batch_size=16, model__g_attention=(8,), model__d_attention=(8,))


@functools.cache
def looked(devices):
    """A state, and what a look sees after a cold start."""
    config = settings()
    mesh = mesh_lib.make_mesh(devices)
    state = step_lib.init_state(config, mesh)
    # Weights as they are after training: no singular value like another.
    moved = lambda x: x * jnp.linspace(1, 3, x.shape[-1]) if x.ndim > 1 else x  # noqa: E731
    state = state.replace(
        g_params=jax.tree.map(moved, state.g_params), d_params=jax.tree.map(moved, state.d_params)
    )
    look, vectors = spectra.make_look(config, mesh), spectra.start(config, mesh)
    for _ in range(spectra.FIRST_LOOKS):
        numbers, vectors = look(state, vectors)
    return state, jax.device_get(numbers), look, vectors


def test_every_matrix_of_both_networks_is_looked_at():
    state, numbers, _, vectors = looked(1)
    leaves, want = [], []
    for net, tree in (("G", state.g_params), ("D", state.d_params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if path[-1].key in ("kernel", "embedding"):
                want.append(net + "/" + "/".join(key.key for key in path[:-1]))
                leaves.append(leaf)
    names = spectra.names(settings())
    assert names == want and len(set(names)) == len(names) == len(vectors)
    assert {"G/linear", "G/shared", "G/attention8/o", "G/out_conv", "D/embed"} <= set(names)
    assert numbers["sigma"].shape == (len(names), 3) and numbers["sigma"].dtype == np.float32
    for name, leaf, sigma in zip(names, leaves, numbers["sigma"], strict=True):
        np.testing.assert_allclose(sigma, oracle(leaf), rtol=0.01, err_msg=name)


def test_eight_devices_see_what_one_sees():
    _, one, _, _ = looked(1)
    _, eight, _, _ = looked(8)
    np.testing.assert_allclose(eight["sigma"], one["sigma"], rtol=1e-4)
    np.testing.assert_allclose(eight["g_diversity"], one["g_diversity"], rtol=1e-4)


def test_diversity_falls_to_0_where_z_does_nothing_and_labels_do():
    state, numbers, look, vectors = looked(1)
    assert numbers["g_diversity"] > 0.1
    before = jax.tree.map(np.asarray, state)

    # What z reaches: the first linear, and the part of each condition behind the embedding.
    def deaf(path, x):
        if path[-1].key != "kernel":
            return x
        if path[0].key == "linear":
            return x * 0
        return x.at[8:].set(0) if path[-2].key in ("gain", "bias") else x

    params = jax.tree_util.tree_map_with_path(deaf, state.g_params)
    changed, _ = look(state.replace(g_params=params), vectors)
    assert changed["g_diversity"] < 1e-5
    again, _ = look(state, vectors)
    np.testing.assert_array_equal(again["g_diversity"], numbers["g_diversity"])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))


def test_diversity_is_the_distance_within_classes():
    rng = np.random.default_rng(0)
    classes = rng.uniform(-1, 1, (4, 1, 6, 6, 3))
    apart = rng.normal(size=(4, 2, 6, 6, 3)) * 0.1
    images = np.float32(classes + apart)
    want = np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in images])
    got = spectra.diversity(jnp.asarray(images.reshape(8, 6, 6, 3)))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_reals_are_measured_as_fakes_are():
    rng = np.random.default_rng(1)
    sheet = rng.integers(0, 256, (5, 3, 4, 4, 3), dtype=np.uint8)  # Rows, classes.
    sheet[:, 1] = 128  # A class without pictures is grey; of one with a single picture, copies.
    floats = np.float64(sheet) / 127.5 - 1
    pairs = [(floats[i, k], floats[i + 1, k]) for i in (0, 2) for k in (0, 2)]
    want = np.mean([np.sqrt(np.mean((a - b) ** 2)) for a, b in pairs])
    got = spectra.real_diversity(sheet.reshape(15, 4, 4, 3), classes=3)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert spectra.real_diversity(sheet[:1].reshape(3, 4, 4, 3), classes=3) is None
    assert spectra.real_diversity(sheet[:, 1], classes=1) is None
