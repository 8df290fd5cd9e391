import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import sigmas
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib


@functools.cache
def made(rule, arch="biggan"):
    c = config_lib.default()
    c.model.update(resolution=16, g_ch=4, d_ch=4, num_classes=5, sigma_rule=rule, arch=arch)
    c.model.update(g_attention=(8,), d_attention=(8,), shared_dim=6)
    c.model.z_dim = 6 * (1 if arch == "biggan_deep" else config_lib.slots(c))
    c.batch_size = 16
    config = config_lib.resolve(c, 1)
    generator, discriminator = networks.build(config)
    keys = jax.random.split(jax.random.key(1), 4)
    z, labels = jax.random.normal(keys[0], (16, c.model.z_dim)), jnp.arange(16) % 5
    images = jax.random.normal(keys[1], (16, 16, 16, 3))
    g = generator.init({"params": keys[2]}, z, labels, train=True)
    d = discriminator.init({"params": keys[3]}, images, labels)
    d["params"]["attention8"]["gamma"] += 1  # Attention of 0 has no gradients.
    return config, generator, discriminator, g, d, (z, images, labels)


@pytest.mark.parametrize(
    ("rule", "devices"), [("fresh", 2), ("hub", 8), ("stored", 8), ("shorter_side", 8)]
)
def test_equal_those_of_the_layers(rule, devices):
    config, _, discriminator, _, d, (_, images, labels) = made(rule)
    mesh = mesh_lib.make_mesh(devices)
    weight = jax.random.normal(jax.random.key(5), (16,))

    def in_layers(params):
        logits, moved = discriminator.apply(
            {"params": params, "spectral": d["spectral"]}, images, labels, mutable=["spectral"]
        )
        return jnp.sum(weight * logits), (logits, moved["spectral"])

    def at_once(params):
        sigma, moved = sigmas.find(params, d["spectral"], mesh, config["model"])
        logits = discriminator.apply({"params": params, "sigma": sigma}, images, labels)
        return jnp.sum(weight * logits), (logits, moved)

    (want, want_rest), (got, got_rest) = (
        jax.jit(jax.grad(call, has_aux=True))(d["params"]) for call in (in_layers, at_once)
    )
    assert jax.tree.structure(want_rest[1]) == jax.tree.structure(got_rest[1])
    for a, b in zip(
        jax.tree.leaves((want, want_rest)), jax.tree.leaves((got, got_rest)), strict=True
    ):
        # Sums of some hundred terms in another order.
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1e-3, np.abs(a).max()))
        assert np.abs(a).max() > 0


def test_the_work_is_shared_and_moved_by_one_all_reduce():
    config, _, _, g, _, _ = made("fresh")
    mesh = mesh_lib.make_mesh(8)
    find = lambda params, spectral: sigmas.find(params, spectral, mesh, config["model"])  # noqa: E731
    compiled = jax.jit(find, out_shardings=mesh_lib.replicated(mesh)).lower(
        g["params"], g["spectral"]
    )
    text = compiled.compile().as_text()
    assert text.count(" all-reduce(") == 1 and "all-gather(" not in text


def test_of_rounded_kernels_in_float32():
    """As FSDP gathers them: sigma is that of the rounded kernel, its gradient comes in bfloat16."""
    config, _, _, g, _, _ = made("fresh")
    mesh = mesh_lib.make_mesh(2)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim == 4 else x, g["params"])
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), low)

    def total(params):
        sigma, moved = sigmas.find(params, g["spectral"], mesh, config["model"])
        return sum(jax.tree.leaves(sigma)), (sigma, moved)

    run = jax.jit(jax.grad(total, has_aux=True))
    (got, got_rest), (want, want_rest) = run(low), run(rounded)
    # Two programs: sums of some hundred terms in another order.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got_rest, want_rest)
    for a, b, kernel in zip(*map(jax.tree.leaves, (got, want, low)), strict=True):
        assert a.dtype == kernel.dtype
        # Rounded to 8 bits where the kernel is.
        rtol = 2**-8 if a.dtype == jnp.bfloat16 else 1e-5
        close(a.astype(jnp.float32), b, rtol=rtol)
