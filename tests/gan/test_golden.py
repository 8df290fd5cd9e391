"""Three iterations of the author's PyTorch code, replayed: the oracle of networks and step.

Gradients and logits are compared as users have them, in float32. Where three iterations end is
compared in float64: sums round otherwise with another processor's instructions, ReLUs near 0 and
Adam, whose first updates have the size of the learning rate whatever the gradient is, magnify it,
and with the same code a bias was 5e-4 from the reference with AVX2 and 2e-5 with SSE4.2. In float64
what is left is the reference program's own rounding, the same on every machine.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from tests import compiled
from tests.golden import author_port

TOLERANCE = 1e-4  # |a - b| / |b| of each tensor; the reference program's float32.
ITERATIONS, D_STEPS, BATCH = 3, 2, 4


@pytest.fixture
def float64(monkeypatch):
    """What our code casts to float32 is cast to float64."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield


def in_float64(tree):
    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def golden_config(resolution, devices):
    c = config_lib.default()
    c.update(batch_size=BATCH * (2 if devices == 8 else 1), d_steps=D_STEPS, device_count=devices)
    ch, attention, slots = {32: (4, (), 4), 64: (8, (32,), 5)}[resolution]
    c.model.update(resolution=resolution, num_classes=7, g_ch=ch, d_ch=ch, z_dim=20 * slots)
    c.model.update(g_attention=attention, d_attention=attention, sn_eps=1e-6, bn_eps=1e-5)
    c.optim.update(eps=1e-6, g_ortho=0.0)
    c.ema.update(decay=0.99, start=0)
    return config_lib.resolve(c, devices)


def initial_state(config, golden):
    g, d = golden.tree("init/G"), golden.tree("init/D")
    state = state_lib.GanState(
        step=jnp.zeros((), jnp.int32),
        g_params=g["params"],
        g_batch_stats=g["batch_stats"],
        g_spectral=g["spectral"],
        g_opt=state_lib.optimizer(config, config.optim.g_lr).init(g["params"]),
        d_params=d["params"],
        d_spectral=d["spectral"],
        d_opt=state_lib.optimizer(config, config.optim.d_lr).init(d["params"]),
        ema_params=jax.tree.map(np.copy, g["params"]),
        ema_batch_stats=jax.tree.map(np.copy, g["batch_stats"]),
    )
    want = jax.eval_shape(lambda: state_lib.init(config))
    assert jax.tree.structure(state) == jax.tree.structure(want)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), state, want)
    return state


def copies(x, devices):
    """On 8 devices each image of the batch of 4 comes twice: every mean stays what it was."""
    return np.repeat(x, 2, axis=0) if devices == 8 else x


def d_inputs(golden, i, k, devices):
    names = ("x", "y_real", "z", "y")
    return tuple(copies(golden[f"it{i}/D{k}/{n}"], devices)[None] for n in names)


def g_inputs(golden, i, devices):
    return tuple(copies(golden[f"it{i}/G/{n}"], devices)[None] for n in ("z", "y"))


def assert_close(got, want, what):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, what
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= TOLERANCE, f"{what}: {error:.2e}"


def assert_trees_close(got, want, what):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: assert_close(a, b, what + jax.tree_util.keystr(path)), got, want
    )


def removed_by_bn(path, attention):
    """Whether a leaf of G's parameters is a bias that BN takes out again: its gradient is 0.

    A constant added to a channel before BN changes nothing. That holds for conv1 of each block. It
    holds for what a block adds to the residual stream unless attention comes later: shortcuts hand
    a constant on and at the end the head's BN takes it out.
    """
    names = [key.key for key in path]
    if len(names) < 3 or names[-1] != "bias" or not names[0].startswith("block"):
        return False
    before_attention = bool(attention) and 8 << int(names[0][5:]) <= max(attention)
    return names[1] == "conv1" or (names[1] in ("conv2", "conv_sc") and not before_attention)


def assert_generators_close(got, want, start, config, what):
    """As `assert_trees_close`, but for biases without effect.

    The gradient of those is rounding noise in both programs, and Adam divides noise by its own
    size. What can be asked is that neither moved one further than Adam moves anything: with beta1
    = 0, update t is at most lr * sqrt(t).
    """
    most = config.optim.g_lr * sum(np.sqrt(t + 1) for t in range(ITERATIONS))

    def check(path, a, b, first):
        if removed_by_bn(path, config.model.g_attention):
            for moved in (np.abs(a - first).max(), np.abs(b - first).max()):
                assert moved <= most * (1 + 1e-3), f"{what}{jax.tree_util.keystr(path)}: {moved}"
        else:
            assert_close(a, b, what + jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, got, want, start)


def torch_variance(ours, config, decayed):
    """Running variance as torch holds it: what the batches added, times n / (n - 1).

    Args:
      ours: tree of our running statistics.
      config: resolved.
      decayed: weight that is left of the first value, 1.
    """

    def convert(path, value):
        if path[-1].key != "var":
            return value
        block = path[0].key
        size = 4 << (int(block[5:]) + (path[1].key == "bn2")) if block[:5] == "block" else None
        n = BATCH * (size or config.model.resolution) ** 2
        return decayed + (value - decayed) * n / (n - 1)

    return jax.tree_util.tree_map_with_path(convert, ours)


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("devices", [1, 8])
def test_three_iterations(resolution, devices, float64):
    golden = author_port.Golden(resolution)
    golden.arrays = in_float64(golden.arrays)
    config = golden_config(resolution, devices).as_configdict()
    config.model.dtype = "float64"
    mesh = mesh_lib.make_mesh(devices)
    with jax.default_matmul_precision("highest"):
        step = step_lib.make_train_step(config, mesh)
        state = jax.device_put(initial_state(config, golden), mesh_lib.replicated(mesh))
        for i in range(ITERATIONS):
            reals = [d_inputs(golden, i, k, devices) for k in range(D_STEPS)]
            x, y_real, z, y = (np.concatenate(part) for part in zip(*reals, strict=True))
            draws = step_lib.Draws(z, y, *g_inputs(golden, i, devices))
            batch = mesh_lib.put_batch({"image": x, "label": y_real, "draws": draws}, mesh)
            if i == 0 and resolution == 32:
                step = compiled.as_users_have_it(step, state, batch)
            state, metrics = step(state, batch)
            for half in ("real", "fake"):
                want = np.mean([golden[f"it{i}/D{k}/loss_{half}"] for k in range(D_STEPS)])
                assert abs(metrics[f"d_loss_{half}"] - want) <= TOLERANCE * max(1, abs(want))
            assert_close(metrics["g_loss"], golden[f"it{i}/G/loss"], f"it{i} g_loss")

    g, d, average = (golden.tree(f"final/{net}") for net in ("G", "D", "EMA"))
    assert int(state.step) == ITERATIONS
    assert {x.dtype for x in jax.tree.leaves(state.g_params)} == {jnp.dtype("float64")}
    start = golden.tree("init/G")["params"]
    assert_generators_close(state.g_params, g["params"], start, config, "G")
    assert_trees_close(state.g_spectral, g["spectral"], "G u")
    assert_trees_close(state.d_params, d["params"], "D")
    assert_trees_close(state.d_spectral, d["spectral"], "D u")
    assert_generators_close(state.ema_params, average["params"], start, config, "EMA")
    # Running statistics start at 0 and 1; three forwards an iteration move them.
    keep, decay = config.model.bn_momentum ** (D_STEPS + 1), config.ema.decay
    left = keep**ITERATIONS
    stats = torch_variance(state.g_batch_stats, config, left)
    assert_trees_close(stats, g["batch_stats"], "statistics")
    left = 1.0
    for i in range(ITERATIONS):
        left = decay * left + (1 - decay) * keep ** (i + 1)
    stats = torch_variance(state.ema_batch_stats, config, left)
    assert_trees_close(stats, average["batch_stats"], "EMA statistics")


def with_gradients(gradients, update):
    """Both as one program: what they share is compiled once."""
    return jax.jit(
        lambda state, *inputs: (
            gradients(state, *(x[0] for x in inputs))[0],
            update(state, *inputs),
        )
    )


# At 64 px eight devices are seen to train alike above; compiling that takes minutes.
@pytest.mark.parametrize(("resolution", "devices"), [(32, 1), (64, 1), (32, 8)])
def test_logits_and_first_gradients(resolution, devices):
    golden = author_port.Golden(resolution)
    config = golden_config(resolution, devices)
    mesh = mesh_lib.make_mesh(devices)
    update = step_lib.Update(config, mesh)
    put = lambda inputs: mesh_lib.put_batch(inputs, mesh)  # noqa: E731
    first = slice(0, None, 2 if devices == 8 else 1)
    with jax.default_matmul_precision("highest"):
        state = jax.device_put(initial_state(config, golden), mesh_lib.replicated(mesh))
        d_both = with_gradients(update.d_gradients, update.d_update)
        g_both = with_gradients(update.g_gradients, update.g_update)
        for i in range(ITERATIONS):
            for k in range(D_STEPS):
                inputs = put(d_inputs(golden, i, k, devices))
                grads, (state, logits) = d_both(state, *inputs)
                if i == k == 0:
                    assert_trees_close(grads, golden.tree("grad/D")["params"], "D grad")
                for half in ("real", "fake"):
                    want = golden[f"it{i}/D{k}/logit_{half}"]
                    assert_close(logits[half][0, first], want, f"it{i}/D{k} {half}")
            grads, (state, _) = g_both(state, *put(g_inputs(golden, i, devices)))
            if i == 0:
                want = golden.tree("grad/G")["params"]
                largest = max(np.abs(g).max() for g in jax.tree.leaves(want))

                def check(path, a, b, largest=largest):
                    if removed_by_bn(path, config.model.g_attention):
                        # Zero but for rounding: 1e-5 of the largest gradient.
                        assert max(np.abs(a).max(), np.abs(b).max()) <= 1e-5 * largest, path
                    else:
                        assert_close(a, b, "G grad" + jax.tree_util.keystr(path))

                jax.tree_util.tree_map_with_path(check, grads, want)


@pytest.mark.parametrize("resolution", [32, 64])
def test_evaluation_mode(resolution):
    golden = author_port.Golden(resolution)
    update = step_lib.Update(golden_config(resolution, 1), mesh_lib.make_mesh(1))
    with jax.default_matmul_precision("highest"):
        z, y = golden["eval/z"], golden["eval/y"]
        image = update.generator.apply(golden.tree("final/G"), z, y, train=False)
        assert_close(image, golden["eval/image"], "image")
        d = golden.tree("final/D")
        del d["batch_stats"]
        logit = update.discriminator.apply(d, golden["eval/x"], y)
        assert_close(logit, golden["eval/logit"], "logit")
