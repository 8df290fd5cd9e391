import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax.gan import regularizers
from biggan_jax.parallel import mesh as mesh_lib


def penalty(kernel, beta):
    """Equation 3 as it is written."""
    w = kernel.reshape(-1, kernel.shape[-1])
    gram = jnp.matmul(w.T, w, precision="highest")
    return beta * jnp.sum((gram * (1 - jnp.eye(len(gram)))) ** 2)


@pytest.mark.parametrize("shape", [(3, 3, 4, 10), (3, 3, 2, 40), (5, 7), (7, 5), (1, 1, 6, 6)])
def test_equals_automatic_differentiation_of_equation_3(shape):
    kernel = jax.random.normal(jax.random.key(0), shape)
    want = jax.grad(penalty)(kernel, 1e-4)
    got = regularizers.ortho_gradient(kernel, 1e-4)
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_is_twice_the_gradient_of_the_authors_port():
    kernel = np.random.default_rng(0).normal(size=(6, 9))
    m = kernel.T
    port = 2 * (m @ m.T * (1 - np.eye(9))) @ m
    got = regularizers.ortho_gradient(jnp.float32(kernel), 1.0)
    np.testing.assert_allclose(got, 2 * port.T, rtol=1e-4, atol=1e-4)


def test_memory_of_a_wide_layer_is_bounded():
    """W^T W of BigGAN-128's first linear alone would be 2.25 GiB."""
    shape = jax.ShapeDtypeStruct((20, 24576), jnp.float32)
    compiled = jax.jit(regularizers.ortho_gradient).lower(shape, 1e-4).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6


def test_touches_kernels_alone():
    kernel = jax.random.normal(jax.random.key(0), (4, 5))
    params = {
        "linear": {"kernel": kernel, "bias": jnp.ones(5)},
        "shared": {"embedding": kernel},
        "attention64": {"gamma": jnp.ones(())},
    }
    grads = jax.tree.map(jnp.zeros_like, params)
    out = regularizers.add_ortho_gradient(grads, params, 0.5)
    want = regularizers.ortho_gradient(kernel, 0.5)
    np.testing.assert_array_equal(out["linear"]["kernel"], want)
    assert float(np.abs(want).max()) > 0.1
    for rest in (out["linear"]["bias"], out["shared"]["embedding"], out["attention64"]["gamma"]):
        np.testing.assert_array_equal(rest, 0)
    assert regularizers.add_ortho_gradient(grads, params, 0.0) is grads


@pytest.mark.parametrize("shape", [(3, 3, 4, 10), (3, 3, 2, 40), (5, 7), (7, 5)])
def test_devices_that_share_the_product_agree_with_one(shape, monkeypatch):
    monkeypatch.setattr(regularizers, "_WORTH_SHARING", 0)
    kernel = jax.random.normal(jax.random.key(0), shape)
    want = regularizers.ortho_gradient(kernel, 1e-4)
    mesh = mesh_lib.make_mesh(8)
    got = jax.jit(lambda kernel: regularizers.ortho_gradient(kernel, 1e-4, mesh))(kernel)
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())


def test_a_product_worth_it_is_shared():
    mesh, shape = mesh_lib.make_mesh(8), jax.ShapeDtypeStruct((3, 3, 512, 512), jnp.float32)
    whole = mesh_lib.replicated(mesh)
    jit = functools.partial(jax.jit, in_shardings=whole, out_shardings=whole)
    flops = [
        jit(lambda kernel, m=m: regularizers.ortho_gradient(kernel, 1e-4, m))
        .lower(shape)
        .compile()
        .cost_analysis()["flops"]
        for m in (None, mesh)
    ]
    assert flops[1] < flops[0] / 7
