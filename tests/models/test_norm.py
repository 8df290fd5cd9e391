import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.models import norm
from tests.models import reference


def make(condition, x, **kwargs):
    layer = norm.BatchNorm(eps=1e-5, **kwargs)
    return layer, layer.init(jax.random.key(0), x, condition, train=False)


def batch(seed, n=8, mean=3.0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, 4, 4, 6)) * 2 + mean).astype(np.float32)
    return x, rng.normal(size=(n, 5)).astype(np.float32)


def test_output_and_running_statistics_of_three_steps():
    x, c = batch(0)
    layer, variables = make(c, x)
    mean, var = np.zeros(6), np.ones(6)
    for step in range(3):
        x, c = batch(step)
        want = reference.conditional_bn(
            np.float64(x), c, variables["params"], variables["spectral"], 1e-5, 1e-4
        )
        y, moved = layer.apply(variables, x, c, train=True, mutable=["batch_stats", "spectral"])
        np.testing.assert_allclose(y, want, atol=1e-5)
        variables = {**variables, **moved}
        mean = 0.9 * mean + 0.1 * np.float64(x).mean((0, 1, 2))
        var = 0.9 * var + 0.1 * np.float64(x).var((0, 1, 2))
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)


def test_zero_projections_leave_plain_normalisation():
    x, c = batch(1)
    layer, variables = make(c, x)
    zeros = jax.tree.map(jnp.zeros_like, variables["params"])
    y = layer.apply({**variables, "params": zeros}, x, c, train=True, mutable=[])[0]
    want = reference.batch_norm(np.float64(x), 1.0, 0.0, 1e-5)
    np.testing.assert_allclose(y, want, atol=1e-5)


def test_stored_statistics_are_used_in_evaluation():
    x, _ = batch(2)
    layer, variables = make(None, x)
    stats = {"mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)}
    y = layer.apply({**variables, "batch_stats": stats}, x, None, train=False)
    np.testing.assert_allclose(y, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5), atol=1e-5)


def test_labels_as_condition_read_tables():
    x, _ = batch(3)
    labels = jnp.array([0, 2, 1, 1, 0, 2, 2, 0])
    layer, variables = make(labels, x, num_classes=3)
    p = variables["params"]
    assert set(variables) == {"params", "batch_stats"}  # No spectral norm on the tables.
    gain = 1 + np.asarray(p["gain"]["embedding"])[labels][:, None, None]
    bias = np.asarray(p["bias"]["embedding"])[labels][:, None, None]
    y = layer.apply(variables, x, labels, train=True, mutable=[])[0]
    np.testing.assert_allclose(y, reference.batch_norm(np.float64(x), gain, bias, 1e-5), atol=1e-5)


def test_groups_have_their_own_statistics():
    x, _ = batch(4)
    layer, variables = make(None, x, group_size=2)
    y, moved = layer.apply(variables, x, None, train=True, mutable=["batch_stats"])
    groups = np.float64(x).reshape(4, 2, 4, 4, 6)
    want = np.concatenate([reference.batch_norm(g, 1.0, 0.0, 1e-5) for g in groups])
    np.testing.assert_allclose(y, want, atol=1e-5)
    var = 0.9 + 0.1 * np.mean([g.var((0, 1, 2)) for g in groups], axis=0)
    np.testing.assert_allclose(moved["batch_stats"]["var"], var, rtol=1e-5)


def test_variance_survives_a_large_mean():
    x, _ = batch(5, mean=3000.0)
    _, var = norm.batch_moments(jnp.asarray(x), 8)
    np.testing.assert_allclose(var[0], np.float64(x).var((0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize("group_size", [16, 2])
def test_gradient_equals_that_of_the_formula(group_size):
    x, c = batch(6)
    layer, variables = make(c, x, group_size=group_size)

    def ours(x):
        return jnp.sum(jnp.sin(layer.apply(variables, x, c, train=True, mutable=[])[0]))

    def numeric(x, direction, h=1e-6):
        def f(x):
            parts = [(x, c)] if group_size > 8 else zip(np.split(x, 4), np.split(c, 4), strict=True)
            p, s = variables["params"], variables["spectral"]
            return sum(
                np.sin(reference.conditional_bn(a, b, p, s, 1e-5, 1e-4)).sum() for a, b in parts
            )

        x = np.float64(x)
        return (f(x + h * direction) - f(x - h * direction)) / (2 * h)

    with jax.default_matmul_precision("highest"):
        grad = np.float64(jax.grad(ours)(jnp.asarray(x)))
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=x.shape)
        want = numeric(x, direction)
        assert abs(np.sum(grad * direction) - want) <= 1e-4 * np.linalg.norm(grad)
