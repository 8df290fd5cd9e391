import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.models import ops
from tests.models import reference


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("shape", [(3, 3, 5, 8), (3, 3, 2, 40), (1, 1, 16, 4)])
def test_sigma_and_u_follow_the_port_for_50_steps(shape):
    rng = np.random.default_rng(0)
    layer = ops.SpectralConv(shape[-1], size=shape[0], eps=1e-6)
    x = rng.normal(size=(1, 4, 4, shape[2])).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    kernel = rng.normal(size=shape)
    variables = {**variables, "params": {**variables["params"], "kernel": jnp.float32(kernel)}}
    u = np.asarray(variables["spectral"]["u"], np.float64)
    matrix = np.float64(np.float32(kernel)).reshape(-1, shape[-1]).T
    apply = jax.jit(lambda v: layer.apply(v, x, mutable=["spectral"]))
    for _ in range(50):
        y, moved = apply(variables)
        sigma, u = reference.sigma(matrix, u, 1e-6)
        want = reference.conv(x, matrix.T.reshape(shape) / sigma)
        np.testing.assert_allclose(moved["spectral"]["u"], u, atol=1e-6)
        np.testing.assert_allclose(y, want, atol=1e-5 * np.abs(want).max())
        variables = {**variables, **moved}
    exact = np.linalg.svd(matrix, compute_uv=False)[0]
    got, *_ = ops.spectral_sigma(jnp.float32(matrix.T), variables["spectral"]["u"], 1e-6)
    assert abs(got - sigma) <= 1e-6 * sigma
    assert got <= exact * (1 + 1e-6)


def test_class_table_has_u_on_the_class_side():
    layer = ops.SpectralEmbed(7, 12, eps=1e-6)
    labels = jnp.arange(7)
    variables = layer.init(jax.random.key(1), labels)
    table = np.asarray(jax.random.normal(jax.random.key(2), (7, 12)), np.float64)
    variables = {**variables, "params": {"embedding": jnp.float32(table)}}
    y, moved = layer.apply(variables, labels, mutable=["spectral"])
    sigma, u = reference.sigma(table, np.asarray(variables["spectral"]["u"], float), 1e-6)
    assert moved["spectral"]["u"].shape == (1, 7)
    np.testing.assert_allclose(moved["spectral"]["u"], u, atol=1e-6)
    np.testing.assert_allclose(y, table / sigma, rtol=2e-6, atol=1e-6)


def test_gradient_of_the_kernel_has_no_radial_part():
    layer = ops.SpectralDense(6)
    x = jax.random.normal(jax.random.key(0), (9, 5))
    variables = layer.init(jax.random.key(1), x)
    kernel = jax.random.normal(jax.random.key(2), (5, 6))

    def loss(kernel):
        params = {"kernel": kernel, "bias": variables["params"]["bias"]}
        return jnp.sum(jnp.sin(layer.apply({**variables, "params": params}, x)))

    grad = jax.grad(loss)(kernel)
    assert np.linalg.norm(grad) > 0.1
    assert abs(jnp.sum(grad * kernel)) <= 1e-5 * jnp.linalg.norm(grad) * jnp.linalg.norm(kernel)


def test_gradient_of_sigma_is_that_of_finite_differences():
    matrix = jax.random.normal(jax.random.key(0), (7, 4))
    u = jax.random.normal(jax.random.key(1), (1, 4))
    grad = jax.grad(lambda m: ops.spectral_sigma(m, u, 1e-6)[0])(matrix)
    v = u @ matrix.T
    v = v / np.linalg.norm(v)
    right = v @ matrix
    np.testing.assert_allclose(grad, v.T @ right / np.linalg.norm(right), atol=1e-6)


def test_evaluation_stores_nothing_and_repeats_itself():
    layer = ops.SpectralConv(4)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    variables = layer.init(jax.random.key(1), x)
    before = jax.tree.map(np.array, variables)
    first, second = layer.apply(variables, x), layer.apply(variables, x)
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_an_orthogonal_kernel_is_not_scaled_by_the_first_step():
    layer = ops.SpectralConv(16)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    variables = layer.init(jax.random.key(1), x)
    kernel = variables["params"]["kernel"]
    np.testing.assert_allclose(
        layer.apply(variables, x), reference.conv(x, np.float64(kernel)), atol=1e-5
    )
    np.testing.assert_array_equal(variables["params"]["bias"], 0)


@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("size", [1, 3])
def test_convolutions_with_their_resampling(size, resample):
    layer = ops.SpectralConv(6, size=size, resample=resample, eps=1e-6)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 5)).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)
    params = {**variables["params"], "bias": jnp.arange(6.0)}
    kernel, bias = reference.spectral(params, variables["spectral"], 1e-6)
    want = reference.conv(reference.up(x) if resample == "up" else x, kernel, bias)
    want = reference.pool(want) if resample == "down" else want
    got = layer.apply({**variables, "params": params}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)
