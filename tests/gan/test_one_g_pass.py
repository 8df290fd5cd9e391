"""`optim.one_g_pass`: the fakes of all D steps at once, against a pass each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.gan import step as step_lib
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from tests.gan.test_state import small_config
from tests.gan.test_step import assert_near, collectives, compiled, make_batch


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize(("group_size", "devices"), [(4, 1), (2, 1), (8, 8)])
def test_fakes_and_statistics_are_those_of_a_pass_each(group_size, devices):
    """With u still, on weights whose sigma it decides; three D steps, two micro-batches of 8."""
    config = small_config(
        batch_size=16, accumulation=2, d_steps=3, model__bn_group_size=group_size,
        model__init="n02", optim__one_g_pass=True,
    )  # fmt: skip
    mesh = mesh_lib.make_mesh(devices)
    update = step_lib.Update(config, mesh)
    state = step_lib.init_state(config, mesh)
    draws = jax.jit(update.draw)(0)
    images, moved = jax.jit(update.fakes)(state, draws.d_z, draws.d_labels)
    generate = jax.jit(update.generate)
    plain = state
    for part in range(2):
        for step in range(3):
            i = 2 * step + part
            want, seen = generate(state.g_params, plain, draws.d_z[i], draws.d_labels[i])
            plain = plain.replace(g_batch_stats=seen["batch_stats"])
            assert_near(images[i], want, 1e-5)
        plain = plain.replace(g_spectral=seen["spectral"])  # Once for the three.
    for name in ("g_spectral", "g_batch_stats"):
        jax.tree.map(
            lambda a, b: assert_near(a, b, 1e-5), getattr(moved, name), getattr(plain, name)
        )


def test_the_step_is_the_plain_one_where_u_decides_nothing():
    """Orthogonal weights, as they are at the start: sigma is 1 for any u."""
    batch, ends = None, {}
    for one_pass in (False, True):
        config = small_config(optim__one_g_pass=one_pass, d_steps=3)
        mesh, step = compiled(1, config)
        batch = batch or make_batch(config, mesh)
        ends[one_pass] = step(step_lib.init_state(config, mesh), batch)
    (got, got_seen), (want, want_seen) = ends[True], ends[False]
    for name in ("d_params", "d_spectral", "g_batch_stats"):
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), getattr(got, name), getattr(want, name))
    for name in want_seen:
        np.testing.assert_allclose(got_seen[name], want_seen[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_loops_and_unrolled_passes_are_alike(scan):
    config = small_config(batch_size=8, accumulation=2, optim__one_g_pass=True)
    mesh = mesh_lib.make_mesh(1)
    update = step_lib.Update(config, mesh)
    state, draws = step_lib.init_state(config, mesh), jax.jit(update.draw)(0)
    update.scan = scan
    images, _ = jax.jit(update.fakes)(state, draws.d_z, draws.d_labels)
    assert images.shape == (4, 4, 16, 16, 3)
    generate = jax.jit(update.generate)
    for i in (0, 2):
        want, _ = generate(state.g_params, state, draws.d_z[i], draws.d_labels[i])
        assert_near(images[i], want, 1e-5)


def test_eight_devices_exchange_sums_alone():
    _, step = compiled(8, small_config(optim__one_g_pass=True))
    found = collectives(step.as_text())
    assert found and {kind for _, kind in found} == {"all-reduce"}


def test_woven_statistics_by_hand():
    config = small_config()
    generator, _ = networks.build(config, None, 2)
    bn = generator.bn(group_size=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 2, 3)), jnp.float32)
    variables = bn.init(jax.random.key(0), x, None, False)
    y, moved = bn.apply(variables, x, None, True, mutable=["batch_stats"])
    images = np.asarray(x, np.float64)
    running = np.zeros(3)
    for batch in (0, 1):
        mine = images[batch::2]
        for group in (0, 1):
            part = mine[2 * group : 2 * group + 2]
            mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
            want = (part - mean) / np.sqrt(var + config.model.bn_eps)
            got = np.asarray(y)[batch::2][2 * group : 2 * group + 2]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        means = [mine[2 * g : 2 * g + 2].mean((0, 1, 2)) for g in (0, 1)]
        running = 0.9 * running + 0.1 * np.mean(means, 0)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], running, rtol=1e-5, atol=1e-6)
