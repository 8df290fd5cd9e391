import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.models import attention, biggan, networks, norm, ops
from tests.models import reference


def build(**model):
    c = config_lib.default()
    c.model.update(model)
    c.batch_size = 8
    return networks.build(config_lib.resolve(c, 1))


def shapes(g, d):
    size = g.resolution
    z, y = jnp.zeros((2, g.z_dim)), jnp.zeros(2, jnp.int32)
    g_vars = jax.eval_shape(functools.partial(g.init, train=False), jax.random.key(0), z, y)
    d_vars = jax.eval_shape(d.init, jax.random.key(0), jnp.zeros((2, size, size, 3)), y)
    return g_vars, d_vars


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


PLAIN = {"shared_embedding": False, "hierarchical_z": False}
WHOLE_Z = {"z_dim": 128}  # The rows without skip-z were counted with 128, not 120.
CIFAR = {"resolution": 32, "num_classes": 10, "g_ch": 64, "d_ch": 64, "z_dim": 128}
NO_ATTENTION = {"g_attention": (), "d_attention": ()}
ROWS = {  # Spec section 10.1, every row of BigGAN.
    "128": ({}, 70_433_988, 87_982_370),
    "128 no skip-z": ({"hierarchical_z": False, **WHOLE_Z}, 72_792_516, 87_982_370),
    "128 no share": ({**PLAIN, **WHOLE_Z}, 85_556_164, 87_982_370),
    "128 ch64": ({"g_ch": 64, "d_ch": 64}, 31_978_628, 39_448_258),
    "128 ch64 no share": ({"g_ch": 64, "d_ch": 64, **PLAIN, **WHOLE_Z}, 42_017_412, 39_448_258),
    "256 attention 64": ({"resolution": 256, "z_dim": 140}, 82_235_844, 99_225_890),
    "256 attention 128": (
        {"resolution": 256, "z_dim": 140, "g_attention": (128,)},
        82_097_604,
        99_225_890,
    ),
    "512": ({"resolution": 512, "z_dim": 160}, 82_468_068, 99_401_282),
    "512 z128": ({"resolution": 512, "z_dim": 128}, 82_296_804, 99_401_282),
    "64": (
        {"resolution": 64, "z_dim": 100, "g_attention": (64,), "d_attention": ()},
        70_083_972,
        45_500_449,
    ),
    "64 attention 32": (
        {"resolution": 64, "z_dim": 100, "g_attention": (32,), "d_attention": (32,)},
        70_222_212,
        45_511_970,
    ),
    # The table says ch 64; both numbers are those of ch 96.
    "32": (
        {"resolution": 32, "z_dim": 80, "g_ch": 96, "d_ch": 96, **NO_ATTENTION},
        9_358_595,
        9_836_929,
    ),
    "CIFAR script": ({**CIFAR, **PLAIN, **NO_ATTENTION}, 4_304_387, 4_207_361),
}


@pytest.mark.parametrize("row", ROWS)
def test_parameter_counts(row):
    model, g_count, d_count = ROWS[row]
    g_vars, d_vars = shapes(*build(**model))
    assert (count(g_vars), count(d_vars)) == (g_count, d_count)


@pytest.mark.parametrize("resolution", config_lib.RESOLUTIONS)
def test_every_resolution_gives_images_and_logits(resolution):
    z_dim = 4 * (int(np.log2(resolution)) - 1)
    g, d = build(resolution=resolution, z_dim=z_dim, g_ch=8, d_ch=8, **NO_ATTENTION)
    g_vars, d_vars = shapes(g, d)
    z, y = jnp.zeros((2, z_dim)), jnp.zeros(2, jnp.int32)
    image = jax.eval_shape(functools.partial(g.apply, train=False), g_vars, z, y)
    assert (image.shape, image.dtype) == ((2, resolution, resolution, 3), jnp.float32)
    assert jax.eval_shape(d.apply, d_vars, image, y).shape == (2,)


def test_tables_are_there_for_every_resolution():
    assert tuple(biggan.G_CHANNELS) == tuple(biggan.D_CHANNELS) == config_lib.RESOLUTIONS
    for resolution, widths in biggan.G_CHANNELS.items():
        assert 4 << (len(widths) - 1) == resolution


CONV = functools.partial(ops.SpectralConv, eps=1e-6)
BN = functools.partial(norm.BatchNorm, eps=1e-5, sn_eps=1e-6)


def randomized(variables, seed=0):
    """Replaces zeros (biases, gamma) by random numbers, so that nothing goes untested."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: x + jnp.float32(rng.normal(size=x.shape) * 0.2), variables["params"]
    )
    return {**variables, "params": params}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def test_attention_against_loops():
    x = np.random.default_rng(0).normal(size=(2, 4, 8, 16)).astype(np.float32)
    layer = attention.Attention(CONV)
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)  # gamma starts at 0.
    params = {**variables["params"], "gamma": jnp.float32(0.7)}
    want = reference.attention(np.float64(x), params, variables["spectral"], 1e-6)
    got = layer.apply({**variables, "params": params}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("width", [3, 6])
def test_g_block_against_numpy(width):
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(4, 4, 4, 6)).astype(np.float32), rng.normal(size=(4, 5))
    layer = biggan.GBlock(width, "up", CONV, BN)
    variables = randomized(layer.init(jax.random.key(0), x, jnp.float32(c), False))
    p, s = variables["params"], variables["spectral"]
    kernel = {k: reference.spectral(p[k], s[k], 1e-6) for k in ("conv1", "conv2", "conv_sc")}
    h = reference.relu(reference.conditional_bn(np.float64(x), c, p["bn1"], s["bn1"], 1e-5, 1e-6))
    h = reference.conv(reference.up(h), *kernel["conv1"])
    h = reference.relu(reference.conditional_bn(h, c, p["bn2"], s["bn2"], 1e-5, 1e-6))
    want = reference.conv(h, *kernel["conv2"])
    want = want + reference.conv(reference.up(x), *kernel["conv_sc"])
    got, _ = layer.apply(variables, x, jnp.float32(c), True, mutable=["batch_stats"])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("first", "down", "width"),
    [(True, True, 6), (False, True, 6), (False, True, 4), (False, False, 4)],
)
def test_d_block_against_numpy(first, down, width):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3 if first else 4)).astype(np.float32)
    layer = biggan.DBlock(width, down, first, True, CONV)
    variables = randomized(layer.init(jax.random.key(0), x))
    p, s = variables["params"], variables["spectral"]
    kernel = {k: reference.spectral(p[k], s[k], 1e-6) for k in p}
    h = reference.conv(np.float64(x) if first else reference.relu(np.float64(x)), *kernel["conv1"])
    h = reference.conv(reference.relu(h), *kernel["conv2"])
    h = reference.pool(h) if down else h
    shortcut = np.float64(x)
    assert ("conv_sc" in p) == (down or width != x.shape[-1])
    if first:
        shortcut = reference.conv(reference.pool(shortcut), *kernel["conv_sc"])
    elif "conv_sc" in p:
        shortcut = reference.pool(reference.conv(shortcut, *kernel["conv_sc"]))
    want = h + shortcut
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=1e-5 * np.abs(want).max())


def small(**model):
    g, d = build(resolution=32, num_classes=5, g_ch=4, d_ch=4, z_dim=16, **NO_ATTENTION, **model)
    z = jax.random.normal(jax.random.key(1), (3, 16))
    y = jnp.array([0, 3, 4])
    g_vars = randomized(g.init(jax.random.key(0), z, y, train=False))
    d_vars = randomized(d.init(jax.random.key(0), jnp.zeros((3, 32, 32, 3)), y), 1)
    return g, d, g_vars, d_vars, z, y


def test_d_head_sums_and_projects():
    _, d, _, d_vars, _, y = small()
    x = jax.random.normal(jax.random.key(2), (3, 32, 32, 3))
    logits, seen = d.apply(d_vars, x, y, capture_intermediates=True, mutable=["intermediates"])
    h = np.float64(seen["intermediates"]["block3"]["__call__"][0])
    h = reference.relu(h).sum((1, 2))
    p, s = d_vars["params"], d_vars["spectral"]
    w, b = reference.spectral(p["linear"], s["linear"], 1e-4)
    table = np.float64(p["embed"]["embedding"])
    table = table / reference.sigma(table, np.float64(s["embed"]["u"]), 1e-4)[0]
    want = (h @ w)[:, 0] + b + (table[np.asarray(y)] * h).sum(1)
    np.testing.assert_allclose(logits, want, rtol=1e-4)


def test_first_linear_feeds_rows_columns_channels_in_this_order():
    g, _, g_vars, _, _, y = small()
    kernel = np.zeros((4, 16 * 16), np.float32)
    row, column, channel = 2, 1, 5
    kernel[0, (row * 4 + column) * 16 + channel] = 1.0
    params = {**g_vars["params"], "linear": {"kernel": kernel, "bias": np.zeros(256, np.float32)}}
    z = jnp.zeros((3, 16)).at[:, 0].set(1.0)
    _, seen = g.apply(
        {**g_vars, "params": params},
        z,
        y,
        train=False,
        capture_intermediates=lambda module, _: module.name in ("linear", "bn1"),
        mutable=["intermediates"],
    )
    first = np.asarray(seen["intermediates"]["linear"]["__call__"][0]).reshape(3, 4, 4, 16)
    want = np.zeros((4, 4, 16))
    want[row, column, channel] = first.max()
    assert first.max() > 0
    np.testing.assert_array_equal(first[0], want)


def test_only_the_linear_sees_slot_0_and_each_block_sees_its_own():
    g, _, g_vars, _, z, y = small()
    moved = jax.jacobian(
        lambda z: g.apply(
            g_vars,
            z,
            y,
            train=False,
            capture_intermediates=lambda module, _: module.name in ("linear", "gain"),
            mutable=["intermediates"],
        )[1]["intermediates"]
    )
    moved = jax.jit(moved)(z)
    for slot, name in enumerate(["linear", "block0", "block1", "block2"]):
        norms = jax.tree.map(lambda j, at=4 * slot: np.abs(j[..., at : at + 4]).max(), moved)
        seen = {"linear": norms["linear"]["__call__"][0]}
        seen |= {f"block{i}": norms[f"block{i}"]["bn1"]["gain"]["__call__"][0] for i in range(3)}
        for module, gradient in seen.items():
            assert (gradient > 1e-4) == (module == name), (slot, module)


def test_condition_is_embedding_then_slot():
    """Swapping rows of the projections and the parts of the condition changes nothing."""
    x = jax.random.normal(jax.random.key(0), (4, 2, 2, 6))
    embedding = jax.random.normal(jax.random.key(1), (4, 3))
    slot = jax.random.normal(jax.random.key(2), (4, 2))
    layer = BN()
    c = jnp.concatenate([embedding, slot], axis=1)
    variables = layer.init(jax.random.key(3), x, c, train=False)
    swapped = jax.tree.map(lambda k: jnp.concatenate([k[3:], k[:3]]), variables["params"])
    other = jnp.concatenate([slot, embedding], axis=1)
    ours = layer.apply(variables, x, c, train=True, mutable=[])[0]
    theirs = layer.apply({**variables, "params": swapped}, x, other, train=True, mutable=[])[0]
    np.testing.assert_allclose(ours, theirs, atol=2e-6)  # Sums in another order.


@pytest.mark.parametrize("switches", [PLAIN, {"hierarchical_z": False}])
def test_switches_of_the_ablation(switches):
    g, _, g_vars, _, z, y = small(**switches)
    assert ("shared" in g_vars["params"]) == switches.get("shared_embedding", True)
    gain = g_vars["params"]["block0"]["bn1"]["gain"]
    rows = jax.tree.leaves(gain)[0].shape[0]
    assert rows == (128 if "shared" in g_vars["params"] else 5)
    assert g_vars["params"]["linear"]["kernel"].shape[0] == 16
    images = g.apply(g_vars, z, y, train=False)
    other = g.apply(g_vars, z, (y + 1) % 5, train=False)
    assert np.abs(images - other).max() > 1e-3  # The label matters.


def test_shared_embedding_is_not_spectrally_normalised():
    _, _, g_vars, d_vars, _, _ = small()
    assert "shared" not in g_vars["spectral"] and "out_bn" not in g_vars["spectral"]
    assert "embed" in d_vars["spectral"]
    kernels = [
        p for p, _ in jax.tree_util.tree_leaves_with_path(g_vars["params"]) if p[-1].key == "kernel"
    ]
    assert len(kernels) == len(jax.tree.leaves(g_vars["spectral"]))


def test_remat_changes_no_gradient():
    g, d, g_vars, d_vars, z, y = small()
    g2, d2, *_ = small(remat=True)

    def gradient(g, d):
        def loss(params):
            x, _ = g.apply({**g_vars, "params": params}, z, y, train=True, mutable=["batch_stats"])
            return d.apply(d_vars, x, y).sum()

        return jax.jit(jax.grad(loss))(g_vars["params"])

    plain, again = gradient(g, d), gradient(g2, d2)
    # Rounding is that of the largest gradient: biases before BN have none of their own.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), plain, again)


@pytest.mark.slow
def test_bfloat16_of_g128_stays_near_float32():
    g, _ = build(g_ch=32, d_ch=32)
    half, _ = build(g_ch=32, d_ch=32, dtype="bfloat16")
    z = jax.random.normal(jax.random.key(1), (2, 120))
    y = jnp.array([0, 3])
    variables = jax.jit(functools.partial(g.init, train=False))(jax.random.key(0), z, y)
    full, low = (
        jax.jit(lambda v, net=net: net.apply(v, z, y, train=True, mutable=[])[0])(variables)
        for net in (g, half)
    )
    assert low.dtype == jnp.float32
    # |a - b| / |b|, as the golden tests measure. A bfloat16 rounds to 2e-3 of itself, and some
    # twenty of them in a row to about sqrt(20) times that.
    assert np.linalg.norm(full - low) <= 2e-2 * np.linalg.norm(full)
