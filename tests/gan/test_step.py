import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from biggan_jax.gan import losses
from biggan_jax.gan import metrics as gan_metrics
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from tests import compiled as compiled_lib
from tests.gan.test_state import small_config


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


def make_batch(config, mesh, seed=0):
    rng = np.random.default_rng(seed)
    rounds, size = config.d_steps * config.accumulation, config.batch_size // config.accumulation
    side = config.model.resolution
    batch = {
        "image": rng.integers(0, 256, (rounds, size, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, config.model.num_classes, (rounds, size), dtype=np.int32),
    }
    return mesh_lib.put_batch(batch, mesh)


@functools.cache
def compiled(devices, config, as_users_have_it=False):
    mesh = mesh_lib.make_mesh(devices)
    args = step_lib.init_state(config, mesh), make_batch(config, mesh)
    step = step_lib.make_train_step(config, mesh)
    if as_users_have_it:
        return mesh, compiled_lib.as_users_have_it(step, *args)
    return mesh, step.lower(*args).compile()


def run(config, devices, steps=2):
    """What users' programs make: the rounding of others turns a ReLU over in the second step."""
    mesh, step = compiled(devices, config, as_users_have_it=True)
    state, seen = step_lib.init_state(config, mesh), []
    for i in range(steps):
        state, metrics = step(state, make_batch(config, mesh, i))
        seen.append(jax.tree.map(float, metrics))
    return state, seen


def relative(a, b):
    a, b = np.float64(a), np.float64(b)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)


def assert_near(a, b, tolerance):
    assert relative(a, b) <= tolerance


def test_eight_devices_make_the_step_of_one():
    config = small_config()
    one, metrics_one = run(config, 1)
    eight, metrics_eight = run(config, 8)
    for a, b in zip(metrics_eight, metrics_one, strict=True):
        for name in a:
            assert abs(a[name] - b[name]) <= 1e-4 * max(1, abs(b[name])), name
    for name in ("g_spectral", "d_spectral", "d_params"):
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-4), getattr(eight, name), getattr(one, name))
    # Statistics after one step: from the second on, biases that BN takes out again, moved by
    # Adam-scaled rounding, shift the means.
    (one, _), (eight, _) = run(config, 1, steps=1), run(config, 8, steps=1)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), eight.g_batch_stats, one.g_batch_stats)


def test_eight_devices_give_the_gradients_of_one():
    """To 1e-5 of the largest gradient, for one of four draws at least.

    Gradients jump where a ReLU's input is within rounding of zero and the two runs take different
    sides; a draw without such a place has to agree in everything.
    """
    config, draws_tried = small_config(), 4
    gradients = {"d": {}, "g": {}}
    for devices in (1, 8):
        mesh = mesh_lib.make_mesh(devices)
        update = step_lib.Update(config, mesh)
        state = step_lib.init_state(config, mesh)
        batch = make_batch(config, mesh)
        draw, d, g = (jax.jit(f) for f in (update.draw, update.d_gradients, update.g_gradients))
        real, labels = batch["image"][0] / 127.5 - 1, batch["label"][0]
        for i in range(draws_tried):
            draws = draw(i)
            fakes = draws.d_z[0], draws.d_labels[0]
            gradients["d"][devices, i] = d(state, real, labels, *fakes)[0]
            gradients["g"][devices, i] = g(state, draws.g_z[0], draws.g_labels[0])[0]
    for net in ("d", "g"):
        errors = []
        for i in range(draws_tried):
            one, eight = (jax.tree.leaves(gradients[net][devices, i]) for devices in (1, 8))
            largest = max(np.abs(x).max() for x in one)
            gaps = [np.abs(np.subtract(a, b)).max() for a, b in zip(eight, one, strict=True)]
            errors.append(max(gaps) / largest)
        assert min(errors) <= 1e-5, (net, errors)
        assert max(errors) <= 1e-2, (net, errors)  # A place or two, not another computation.


def test_draws_are_the_same_on_any_mesh_and_new_each_step():
    config = small_config()
    draws = {
        devices: jax.jit(step_lib.Update(config, mesh_lib.make_mesh(devices)).draw)
        for devices in (1, 8)
    }
    first, again = draws[1](3), draws[8](3)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = draws[1](4)
    z = np.concatenate([np.ravel(x) for x in (first.d_z, first.g_z, other.d_z, other.g_z)])
    assert len(np.unique(z)) == len(z)  # No latent comes twice: not over updates, not over steps.
    labels = np.concatenate([draws[1](i).d_labels.ravel() for i in range(50)])
    counts = np.bincount(labels, minlength=5)
    assert len(counts) == 5 and counts.min() > 0.6 * counts.mean()


def collectives(text):
    """Names and result shapes of the collectives in a compiled program."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    pattern = rf"= (\([^)]*\)|\S+) ({kinds})(?:-start)?\("
    return re.findall(pattern, text)


@pytest.mark.parametrize("group_size", [None, 2])
def test_the_step_moves_nothing_but_sums_between_devices(group_size):
    changes = {"batch_size": 16, "model__bn_group_size": 2} if group_size else {}
    _, step = compiled(8, small_config(**changes))
    found = collectives(step.as_text())
    assert found
    assert {kind for _, kind in found} == {"all-reduce"}


def test_one_device_moves_nothing():
    _, one = compiled(1, small_config())
    assert not collectives(one.as_text())


def test_the_state_is_donated():
    config = small_config()
    mesh, step = compiled(1, config)
    state = step_lib.init_state(config, mesh)
    kernel = state.g_params["linear"]["kernel"]
    step(state, make_batch(config, mesh))
    assert kernel.is_deleted()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_micro_batch_counts_once_and_in_its_update(accumulation):
    """Each round of reals and of latents moves the end of a step, and none is used twice."""
    config = small_config(accumulation=accumulation)
    mesh = mesh_lib.make_mesh(1)
    update = step_lib.Update(config, mesh)
    batch = make_batch(config, mesh)
    batch = {**batch, "image": batch["image"] / 127.5 - 1, "draws": jax.jit(update.draw)(0)}
    state = step_lib.init_state(config, mesh)
    logits = {"real": jnp.zeros((accumulation, 4)), "fake": jnp.zeros((accumulation, 4))}
    seen = []

    def record(name):
        def recorded(state, *inputs, lr_scale=None):
            seen.append((name, inputs))
            return state, {**logits, "grad_norm": jnp.float32(1)}

        return recorded

    update.d_update, update.g_update = record("d"), record("g")
    update.step(state, batch)
    assert [name for name, _ in seen] == ["d"] * config.d_steps + ["g"]
    got = [np.concatenate(part) for part in zip(*(i for n, i in seen if n == "d"), strict=True)]
    draws = batch["draws"]
    for a, b in zip(got, (batch["image"], batch["label"], draws.d_z, draws.d_labels), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(seen[-1][1], (draws.g_z, draws.g_labels), strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_micro_batches_of_g_by_hand():
    config = small_config(accumulation=2, optim__g_ortho=0.0)
    mesh = mesh_lib.make_mesh(1)
    update = step_lib.Update(config, mesh)
    state = step_lib.init_state(config, mesh)
    draws = jax.jit(update.draw)(0)
    gradients = jax.jit(update.g_gradients)
    first, moved, _ = gradients(state, draws.g_z[0], draws.g_labels[0])
    second, moved, _ = gradients(moved, draws.g_z[1], draws.g_labels[1])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    _, opt = update.g_optimizer.update(mean, state.g_opt)
    got, seen = jax.jit(update.g_update)(state, draws.g_z, draws.g_labels)
    assert seen["fake"].shape == draws.g_labels.shape
    assert relative(seen["grad_norm"], optax.tree.norm(mean)) < 1e-5
    # The second moments are the squared mean gradients, without Adam's division by their size.
    for a, b in zip(jax.tree.leaves(got.g_opt), jax.tree.leaves(opt), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max() + 1e-12)
    for name in ("g_spectral", "d_spectral", "g_batch_stats"):
        jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), getattr(got, name), getattr(moved, name))


def plain_step(update, state, batch, draws):
    """The iteration of spec section 11.2 in a few lines: concatenated batches, no accumulation."""
    c = update.config
    to_float = lambda x: x.astype(jnp.float32) / 127.5 - 1  # noqa: E731
    for k in range(c.d_steps):
        variables = {"batch_stats": state.g_batch_stats, "spectral": state.g_spectral}
        fake, moved = update.generator.apply(
            {"params": state.g_params, **variables},
            draws.d_z[k],
            draws.d_labels[k],
            train=True,
            mutable=["batch_stats", "spectral"],
        )
        images = jnp.concatenate([fake, to_float(batch["image"][k])])
        labels = jnp.concatenate([draws.d_labels[k], batch["label"][k]])

        def loss(params, images=images, labels=labels, spectral=state.d_spectral):
            logits, moved = update.discriminator.apply(
                {"params": params, "spectral": spectral}, images, labels, mutable=["spectral"]
            )
            fake, real = jnp.split(logits, 2)
            return sum(losses.d_hinge(real, fake)), moved["spectral"]

        grads, d_spectral = jax.grad(loss, has_aux=True)(state.d_params)
        updates, opt = update.d_optimizer.update(grads, state.d_opt)
        state = state.replace(
            d_params=optax.apply_updates(state.d_params, updates),
            d_opt=opt,
            d_spectral=d_spectral,
            g_batch_stats=moved["batch_stats"],
            g_spectral=moved["spectral"],
        )
    return state


def test_interleaving_changes_no_d_update():
    config = small_config()
    mesh, step = compiled(1, config)
    update = step_lib.Update(config, mesh)
    state, batch = step_lib.init_state(config, mesh), make_batch(config, mesh)
    want = jax.jit(functools.partial(plain_step, update))(state, batch, jax.jit(update.draw)(0))
    got, _ = step(state, batch)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), got.d_params, want.d_params)


@pytest.mark.parametrize("scan", [False, True])
def test_accumulated_micro_batches_make_the_gradient_of_the_whole_batch(scan):
    """For D, which has no BN; spectral norm's u is held by orthogonal weights (sigma is 1)."""
    config = small_config(batch_size=8, accumulation=1)
    mesh = mesh_lib.make_mesh(1)
    update = step_lib.Update(config, mesh)
    update.scan = scan
    state = step_lib.init_state(config, mesh)
    rng = np.random.default_rng(0)
    images = jnp.float32(rng.normal(size=(4, 4, 16, 16, 3)))
    labels = jnp.asarray(rng.integers(0, 5, (4, 4)))

    def d_gradients(state, x, y):
        def loss(params):
            logits, _ = update.judge(params, state.d_spectral, x, y)
            return losses.g_hinge(logits), logits

        grads, logits = jax.grad(loss, has_aux=True)(state.d_params)
        return grads, state, {"fake": logits}

    accumulate = lambda *x: update._accumulate(d_gradients, state, x)  # noqa: E731
    parts, _, logits = jax.jit(accumulate)(images, labels)
    whole, _, _ = jax.jit(accumulate)(images.reshape(1, 16, 16, 16, 3), labels.reshape(1, 16))
    assert logits["fake"].shape == (4, 4)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), parts, whole)


def test_micro_batches_in_a_loop_equal_unrolled_ones():
    config = small_config(batch_size=8, accumulation=4, d_steps=1)
    mesh = mesh_lib.make_mesh(1)
    batch = make_batch(config, mesh)
    ends = []
    for scan in (False, True):
        update = step_lib.Update(config, mesh)
        update.scan = scan
        state, metrics = jax.jit(update.step)(step_lib.init_state(config, mesh), batch)
        ends.append((state.d_params, state.d_spectral, state.g_batch_stats, metrics))
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-4), *ends)


def test_flips_half_of_the_reals():
    config = small_config(data__flip=True)
    update = step_lib.Update(config, mesh_lib.make_mesh(1))
    images = jnp.tile(jnp.linspace(-1, 1, 16)[None, None, None, :, None], (1, 400, 16, 1, 3))
    out = np.asarray(update._to_float(images, jnp.array(0), 0))
    flipped = (out[0, :, 0, 0, 0] > 0).mean()
    assert 0.4 < flipped < 0.6
    same = np.asarray(images[0, 0])
    for image in out[0, :20]:
        assert np.array_equal(image, same) or np.array_equal(image, same[:, ::-1])
    other = np.asarray(update._to_float(images, jnp.array(0), 1))
    assert not np.array_equal(out, other)  # Each D step flips anew.


def test_bfloat16_step_runs_and_keeps_float32_state():
    config = small_config(model__dtype="bfloat16")
    state, seen = run(config, 1, steps=1)
    assert all(np.isfinite(v) for v in seen[0].values())
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype in (jnp.float32, jnp.int32)


@functools.cache
def controlled():
    """One device's step with a control, and what starts it."""
    config = small_config(data__flip=True)
    mesh = mesh_lib.make_mesh(1)
    return config, mesh, step_lib.make_train_step(config, mesh)


def take(control, batch=None, change=lambda state: state):
    config, mesh, step = controlled()
    batch = batch or make_batch(config, mesh)
    return step(change(step_lib.init_state(config, mesh)), batch, control)


def test_noise_0_draws_what_was_drawn_before_there_was_noise():
    config = small_config(data__flip=True)
    update = step_lib.Update(config, mesh_lib.make_mesh(1))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 7), 5)
    draws = jax.jit(update.draw)(7, 0)
    shape = (config.d_steps, config.batch_size, config.model.z_dim)
    np.testing.assert_array_equal(draws.d_z, jax.random.normal(keys[0], shape))
    np.testing.assert_array_equal(draws.d_labels, jax.random.randint(keys[1], shape[:2], 0, 5))
    np.testing.assert_array_equal(draws.g_z, jax.random.normal(keys[2], (1, *shape[1:])))
    np.testing.assert_array_equal(draws.g_labels, jax.random.randint(keys[3], (1, 8), 0, 5))
    images = jnp.float32(np.random.default_rng(0).normal(size=(1, 8, 16, 16, 3)))
    flip = jax.random.bernoulli(jax.random.fold_in(keys[4], 1), 0.5, (1, 8))
    want = jnp.where(flip[..., None, None, None], images[:, :, :, ::-1], images)
    np.testing.assert_array_equal(jax.jit(update._to_float)(images, 7, 1, 0), want)


def test_each_noise_has_draws_and_flips_of_its_own_the_same_on_any_mesh():
    config = small_config(data__flip=True)
    images = jnp.float32(np.random.default_rng(0).normal(size=(1, 40, 16, 16, 3)))
    seen = {}
    for devices in (1, 8):
        update = step_lib.Update(config, mesh_lib.make_mesh(devices))
        draw, flip = jax.jit(update.draw), jax.jit(update._to_float)
        seen[devices] = [(draw(3, n), flip(images, 3, 0, n)) for n in (0, 1, 2)]
    jax.tree.map(np.testing.assert_array_equal, seen[1], seen[8])
    z = np.concatenate([np.ravel(x) for draws, _ in seen[1] for x in (draws.d_z, draws.g_z)])
    assert len(np.unique(z)) == len(z)
    for i in (1, 2):
        for a, b in zip(jax.tree.leaves(seen[1][0]), jax.tree.leaves(seen[1][i]), strict=True):
            assert not np.array_equal(a, b)


def test_a_control_moves_the_step_without_compiling_it_anew():
    config, mesh, step = controlled()
    usual, metrics = take(step_lib.Control())
    plain, plain_metrics = step_lib.make_train_step(config, mesh)(
        step_lib.init_state(config, mesh), make_batch(config, mesh)
    )
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-5), metrics, plain_metrics)
    jax.tree.map(lambda a, b: assert_near(a, b, 1e-4), usual.d_params, plain.d_params)
    _, other = take(step_lib.Control(noise=1))
    assert abs(other["d_fake"] - metrics["d_fake"]) > 1e-4
    start = step_lib.init_state(config, mesh).g_params
    still, _ = take(step_lib.Control(g_lr_scale=0.0))
    jax.tree.map(np.testing.assert_array_equal, still.g_params, start)
    half, _ = take(step_lib.Control(noise=np.int64(0), g_lr_scale=np.float64(0.5)))
    for a, b, c in zip(*map(jax.tree.leaves, (half.g_params, usual.g_params, start)), strict=True):
        # Sums of weights of size 1 and updates of 5e-5: rounded to 2e-7.
        np.testing.assert_allclose((a - c), (b - c) / 2, atol=3e-7)
    assert step._controlled._cache_size() == 1


def leaf_set(tree, value, *names):
    """The tree with one number of one leaf replaced."""

    def change(path, leaf):
        here = tuple(key.key for key in path) == names
        return leaf.at[(0,) * leaf.ndim].set(value) if here else leaf

    changed = jax.tree_util.tree_map_with_path(change, tree)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(changed), jax.tree.leaves(tree), strict=True)
    )
    return changed


def test_what_is_not_finite_is_named_by_the_step():
    config, mesh, _ = controlled()
    assert int(take(step_lib.Control())[1]["bad"]) == 0
    # G's update alone: its parameters.
    assert int(take(step_lib.Control(g_lr_scale=np.nan))[1]["bad"]) == 16
    # From here on a ReLU may hide a NaN from the loss (bit 1), by backend.
    # A latent of G's update: D's parameters have been updated by then; its u moves again.
    batch, update = make_batch(config, mesh), step_lib.Update(config, mesh)
    draws = jax.jit(update.draw)(0)
    bad_z = draws._replace(g_z=draws.g_z.at[0, 0, 0].set(jnp.nan))
    _, metrics = take(step_lib.Control(), {**batch, "draws": bad_z})
    assert int(metrics["bad"]) | 1 == 1 | 4 | 16 | 32
    # Squared, it is no float32 any more; all that is computed from it still is.
    huge = lambda s: s.replace(d_params=leaf_set(s.d_params, 1e20, "linear", "bias"))  # noqa: E731
    assert int(take(step_lib.Control(), change=huge)[1]["bad"]) == 8
    nan_u = lambda s: s.replace(g_spectral=leaf_set(s.g_spectral, np.nan, "linear", "u"))  # noqa: E731
    assert int(take(step_lib.Control(), change=nan_u)[1]["bad"]) | 1 == 63


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        *((1, "d_loss"), (1, "g_loss"), (2, "d_grad_norm"), (4, "g_grad_norm"), (8, "d_norm")),
        *((16, "g_norm"), (32, "ema_batch_stats"), (32, "g_batch_stats"), (32, "d_spectral")),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_each_place_has_its_bit(bit, name, value):
    metrics = {n: jnp.float32(1) for n in ("d_loss", "g_loss", "d_norm", "g_norm")}
    metrics |= {n: jnp.float32(1) for n in ("d_grad_norm", "g_grad_norm")}
    config, mesh, _ = controlled()
    state = step_lib.init_state(config, mesh)
    assert int(gan_metrics.bad(metrics, state)) == 0
    if name in metrics:
        metrics[name] = jnp.float32(value)
    else:
        leaves, tree = jax.tree.flatten(getattr(state, name))
        leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(value)
        state = state.replace(**{name: jax.tree.unflatten(tree, leaves)})
    assert int(gan_metrics.bad(metrics, state)) == bit


def test_bad_in_words():
    assert gan_metrics.bad_text(0) == ""
    assert gan_metrics.bad_text(1 | 16) == "a loss, G's parameters"
