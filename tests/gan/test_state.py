import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.models import biggan, biggan_deep


def small_config(**changes):
    c = config_lib.default()
    c.model.update(resolution=16, z_dim=12, g_attention=(), d_attention=(), num_classes=5)
    c = config_lib.shrink(c)
    for key, value in changes.items():
        config_lib.override(c, key.replace("__", "."), str(value))
    return config_lib.resolve(c, 1)


@pytest.mark.parametrize("beta1", [0.0, 0.5])
def test_adam_follows_torchs_formula(beta1):
    config = small_config(optim__beta1=beta1, optim__eps=1e-6)
    lr = 2e-4
    optimizer = state_lib.optimizer(config, lr)
    rng = np.random.default_rng(0)
    w = {"w": jnp.zeros(6)}
    state = optimizer.init(w)
    moment, second, want = np.zeros(6), np.zeros(6), np.zeros(6)
    for t in range(1, 6):
        g = (rng.normal(size=6) * [1e-7, 1e-6, 1e-3, 1, 10, 0]).astype(np.float32)
        updates, state = optimizer.update({"w": jnp.asarray(g)}, state, w)
        w = optax.apply_updates(w, updates)
        g = np.float64(g)
        moment = beta1 * moment + (1 - beta1) * g
        second = 0.999 * second + 0.001 * g * g
        corrected = np.sqrt(second / (1 - 0.999**t)) + 1e-6
        want -= lr * moment / (1 - beta1**t) / corrected
    # 1 - 0.999^t in float32 is good to 3e-5 of itself at t = 1, and with it an update of about lr.
    np.testing.assert_allclose(w["w"], want, atol=5 * lr * 3e-5)


def test_no_first_moment_is_kept_where_beta1_is_0():
    config = small_config()
    params = {"w": jnp.zeros((1000,))}
    size = lambda s: sum(x.size for x in jax.tree.leaves(s))  # noqa: E731
    assert size(state_lib.optimizer(config, 0.1).init(params)) <= 1001
    config = small_config(optim__beta1=0.5)
    assert size(state_lib.optimizer(config, 0.1).init(params)) >= 2000


def test_first_state():
    config = small_config()
    state = jax.jit(lambda: state_lib.init(config))()
    again = jax.jit(lambda: state_lib.init(config))()
    jax.tree.map(np.testing.assert_array_equal, state, again)
    jax.tree.map(np.testing.assert_array_equal, state.g_params, state.ema_params)
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(pointers)) == len(pointers)  # Donation needs every buffer once.
    for path, leaf in jax.tree_util.tree_leaves_with_path((state.g_params, state.d_params)):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0)
        if path[-1].key == "kernel":
            w = np.float64(leaf).reshape(-1, leaf.shape[-1])
            w = w if w.shape[0] >= w.shape[1] else w.T
            np.testing.assert_allclose(w.T @ w, np.eye(w.shape[1]), atol=1e-5)
    other = jax.jit(lambda: state_lib.init(small_config(seed=1)))()
    assert np.abs(state.g_params["linear"]["kernel"] - other.g_params["linear"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("changes", "moving"),
    [
        ({"freeze_d_blocks": 0}, {"block0", "block1", "block2", "block3"}),
        ({"freeze_d_blocks": 1}, {"block1", "block2", "block3"}),
        ({"freeze_d_blocks": 4}, set()),
        (
            {"freeze_d_blocks": 1, "d_attention": (16, 8)},
            {"block1", "attention8", "block2", "block3"},
        ),
        ({"freeze_d_blocks": 2, "d_attention": (16, 8)}, {"block2", "block3"}),
        (
            {"freeze_d_blocks": 1, "arch": "biggan_deep", "d_attention": (16,)},
            {"block1", "attention16", "block2", "block3", "block4", "block5"},
        ),
        (
            {"freeze_d_blocks": 2, "arch": "biggan_deep", "d_attention": (16, 8)},
            {"block2", "block3", "attention8", "block4", "block5"},
        ),
    ],
)
def test_frozen_is_all_that_stands_before_the_first_free_block(changes, moving):
    keys = {f"{'optim' if k.startswith('freeze') else 'model'}__{k}": v for k, v in changes.items()}
    config = small_config(model__resolution=32, optim__beta1=0.5, **keys)
    params = jax.eval_shape(lambda: state_lib.init(config)).d_params
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), params)
    assert len([name for name in params if name.startswith("block")]) == config_lib.d_blocks(
        config.model
    )
    optimizer = state_lib.d_optimizer(config)
    state, new = optimizer.init(params), params
    for _ in range(2):
        updates, state = optimizer.update(params, state, new)
        new = optax.apply_updates(new, updates)
    whole = lambda name: [bool((x != 1).all()) for x in jax.tree.leaves(new[name])]  # noqa: E731
    some = lambda name: [bool((x != 1).any()) for x in jax.tree.leaves(new[name])]  # noqa: E731
    assert {name for name in params if all(whole(name))} == moving | {"linear", "embed"}
    assert {name for name in params if any(some(name))} == moving | {"linear", "embed"}


def test_freezing_adds_no_array_to_a_checkpoint():
    params = {"block0": {"kernel": jnp.zeros((3, 3, 3, 8))}}
    paths = lambda opt: [path for path, _ in jax.tree_util.tree_leaves_with_path(opt)]  # noqa: E731
    rms = optax.scale_by_rms(bias_correction=True)
    plain = optax.chain(rms, optax.scale_by_learning_rate(1.0))
    for beta1, want in ((0.0, plain), (0.5, optax.adam(1.0))):
        got = [
            state_lib.d_optimizer(
                small_config(optim__beta1=beta1, optim__freeze_d_blocks=blocks)
            ).init(params)
            for blocks in (0, 1)
        ]
        assert jax.tree.structure(got[0]) == jax.tree.structure(want.init(params))
        assert paths(got[0]) == paths(got[1])


def test_the_number_of_ds_blocks_is_that_of_the_tables():
    for name, family in (("biggan", biggan), ("biggan_deep", biggan_deep)):
        for table in (family.D_CHANNELS, family.COMPARE_GAN_D_CHANNELS):
            for resolution, (multiples, _) in table.items():
                blocks = config_lib.d_blocks({"arch": name, "resolution": resolution})
                assert (
                    blocks
                    == {"biggan": len(multiples), "biggan_deep": 2 * len(multiples) - 2}[name]
                )
