import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.models import attention, biggan_deep, norm, ops
from tests.models import reference
from tests.models.test_biggan import build, count, randomized, shapes

DEEP = {"arch": "biggan_deep", "g_ch": 128, "d_ch": 128, "z_dim": 128}
NO_ATTENTION = {"g_attention": (), "d_attention": ()}
ROWS = {  # Spec section 10.1, every row of BigGAN-deep.
    "128": ({}, 50_244_484, 34_590_210),
    "256": ({"resolution": 256}, 55_736_708, 38_247_426),
    "512": ({"resolution": 512}, 56_019_780, 38_301_122),
    "64": (
        {"resolution": 64, "g_attention": (64,), "d_attention": ()},
        49_583_876,
        20_869_633,
    ),
    "32": ({"resolution": 32, **NO_ATTENTION}, 7_561_987, 3_088_129),
    "released 128": ({"rgb_channels": 128}, 50_388_609, 34_590_210),
    "released 256": ({"resolution": 256, "rgb_channels": 128}, 55_880_833, 38_247_426),
    "released 512": ({"resolution": 512, "rgb_channels": 128}, 56_163_905, 38_301_122),
}
CONV = functools.partial(ops.SpectralConv, eps=1e-6)
BN = functools.partial(norm.BatchNorm, eps=1e-5, sn_eps=1e-6)


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("row", ROWS)
def test_parameter_counts(row):
    model, g_count, d_count = ROWS[row]
    g_vars, d_vars = shapes(*build(**DEEP | model))
    assert (count(g_vars), count(d_vars)) == (g_count, d_count)


@pytest.mark.parametrize(
    ("resolution", "statistics", "vectors"),
    [(128, 2_115_072, 183_744), (256, 2_480_640, 211_712), (512, 2_526_336, 218_624)],
)
def test_buffer_counts_of_the_released_generators(resolution, statistics, vectors):
    model = {"resolution": resolution, "rgb_channels": 128, "sigma_rule": "stored"}
    g_vars, _ = shapes(*build(**DEEP | model))
    assert 51 * sum(x.size for x in jax.tree.leaves(g_vars["batch_stats"])) == statistics
    assert sum(x.size for x in jax.tree.leaves(g_vars["spectral"])) == vectors


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512])
def test_every_resolution_gives_images_and_logits(resolution):
    model = {"resolution": resolution, "g_ch": 8, "d_ch": 8, "z_dim": 6, "rgb_channels": 5}
    g, d = build(arch="biggan_deep", **NO_ATTENTION, **model)
    g_vars, d_vars = shapes(g, d)
    z, y = jnp.zeros((2, 6)), jnp.zeros(2, jnp.int32)
    image = jax.eval_shape(functools.partial(g.apply, train=False), g_vars, z, y)
    assert (image.shape, image.dtype) == ((2, resolution, resolution, 3), jnp.float32)
    assert jax.eval_shape(d.apply, d_vars, image, y).shape == (2,)


def reference_g_block(x, c, p, s, features, up):
    kernel = {k: reference.spectral(p[k], s[k], 1e-6) for k in p if k.startswith("conv")}
    h = x
    for i in (1, 2, 3, 4):
        bn = f"bn{i}"
        h = reference.relu(reference.conditional_bn(h, c, p[bn], s[bn], 1e-5, 1e-6))
        if i == 2 and up:
            h = reference.up(h)
        h = reference.conv(h, *kernel[f"conv{i}"])
    shortcut = x[..., :features]
    return h + (reference.up(shortcut) if up else shortcut)


@pytest.mark.parametrize(("features", "up"), [(8, False), (8, True), (4, True)])
def test_g_block_against_numpy(features, up):
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(4, 4, 4, 8)).astype(np.float32), rng.normal(size=(4, 5))
    layer = biggan_deep.GBlock(features, "up" if up else None, CONV, BN)
    variables = randomized(layer.init(jax.random.key(0), x, jnp.float32(c), False))
    p, s = variables["params"], variables["spectral"]
    assert "conv_sc" not in p
    want = reference_g_block(np.float64(x), c, p, s, features, up)
    got, _ = layer.apply(variables, x, jnp.float32(c), True, mutable=["batch_stats"])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("features", "down"), [(8, False), (8, True), (12, True), (12, False)])
def test_d_block_against_numpy(features, down):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
    layer = biggan_deep.DBlock(features, down, CONV)
    variables = randomized(layer.init(jax.random.key(0), x))
    p, s = variables["params"], variables["spectral"]
    kernel = {k: reference.spectral(p[k], s[k], 1e-6) for k in p}
    h = np.float64(x)
    for i in (1, 2, 3):
        h = reference.conv(reference.relu(h), *kernel[f"conv{i}"])
    h = reference.relu(h)
    shortcut = np.float64(x)
    if down:
        h, shortcut = reference.pool(h), reference.pool(shortcut)
    h = reference.conv(h, *kernel["conv4"])
    assert ("conv_sc" in p) == (features > 8)
    if features > 8:
        new = reference.conv(shortcut, *kernel["conv_sc"])
        shortcut = np.concatenate([shortcut, new], axis=-1)
    want = h + shortcut
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5 * np.abs(want).max())


def small(**model):
    sizes = {"resolution": 32, "num_classes": 5, "g_ch": 8, "d_ch": 8, "z_dim": 6, "shared_dim": 7}
    g, d = build(arch="biggan_deep", **sizes, **{**NO_ATTENTION, **model})
    z = jax.random.normal(jax.random.key(1), (3, 6))
    y = jnp.array([0, 3, 4])
    g_vars = randomized(g.init(jax.random.key(0), z, y, train=False))
    d_vars = randomized(d.init(jax.random.key(0), jnp.zeros((3, 32, 32, 3)), y), 1)
    return g, d, g_vars, d_vars, z, y


@pytest.mark.parametrize("order", ["embedding_first", "z_first"])
def test_condition_order(order):
    """A row of zeros more in the table's part of every kernel is a z that says nothing."""
    g, _, g_vars, _, z, y = small(condition_order=order)
    keep = slice(7, None) if order == "embedding_first" else slice(0, 6)

    def silence(path, leaf):
        if path[-1].key != "kernel" or leaf.ndim != 2:
            return leaf
        return leaf.at[keep].set(0)

    silent = jax.tree_util.tree_map_with_path(silence, g_vars["params"])
    images = lambda params, z: g.apply({**g_vars, "params": params}, z, y, train=False)  # noqa: E731
    np.testing.assert_array_equal(images(silent, z), images(silent, -z))
    assert np.abs(images(silent, z)[0] - images(silent, z)[1]).max() > 1e-3
    assert np.abs(images(g_vars["params"], z) - images(g_vars["params"], -z)).max() > 1e-3


def test_rgb_slicing_follows_sigma():
    """Slicing after sigma equals the full convolution then a slice, bit by bit or nearly so."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 6))
    whole, kept = CONV(16), CONV(16, keep=3)
    variables = randomized(whole.init(jax.random.key(1), x))
    np.testing.assert_allclose(
        kept.apply(variables, x), whole.apply(variables, x)[..., :3], atol=1e-6
    )
    sliced = jax.tree.map(lambda k: k[..., :3], variables)
    assert np.abs(CONV(3).apply(sliced, x) - kept.apply(variables, x)).max() > 1e-2


def test_attention_follows_the_stage(monkeypatch):
    seen = []
    monkeypatch.setattr(
        attention.Attention,
        "__call__",
        lambda self, x: seen.append((self.name, x.shape[1:])) or x,
    )
    for resolution, multiple in ((128, 2), (256, 4), (512, 4)):
        g, d = build(arch="biggan_deep", resolution=resolution, g_ch=8, d_ch=8, z_dim=6)
        shapes(g, d)
        assert set(seen) == {("attention64", (64, 64, 8 * multiple))}
        seen.clear()


def test_remat_changes_nothing():
    g, d, g_vars, d_vars, z, y = small()
    again, judge, *_ = small(remat=True)
    image = g.apply(g_vars, z, y, train=False)
    np.testing.assert_allclose(again.apply(g_vars, z, y, train=False), image, atol=1e-6)
    np.testing.assert_allclose(judge.apply(d_vars, image, y), d.apply(d_vars, image, y), rtol=1e-5)
