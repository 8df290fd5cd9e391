"""FLOPs against counts by hand and against XLA's own."""

import jax
import jax.numpy as jnp
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import flops
from biggan_jax.models import networks
from tests.gan.test_state import small_config


def test_the_smallest_networks_by_hand():
    """16 px, 8 channels of width: every layer has 32 channels."""
    config = small_config()
    g, d = flops.forward(config)
    c, z, condition = 32, 4, 8 + 4
    pixels = {side: 2 * side * side for side in (4, 8, 16)}
    dense = 2 * z * c * 16 + 2 * 4 * 2 * condition * c  # The first linear; four BNs' gain and bias.
    at = lambda side, k, cin=c, cout=c: pixels[side] * k * k * cin * cout  # noqa: E731
    big = at(8, 3) + at(8, 3) + at(8, 1) + at(16, 3) + at(16, 3) + at(16, 1) + at(16, 3, cout=3)
    saved = (at(8, 3) + at(16, 3)) * 20 / 36 + (at(8, 1) + at(16, 1)) * 3 / 4
    assert g.as_written == dense + big
    assert g.needed == pytest.approx(dense + big - saved)
    first = at(16, 3, cin=3) + at(16, 3) + at(16, 1, cin=3)
    last = 2 * at(4, 3)
    big = first + 2 * at(8, 3) + at(8, 1) + last + 2 * c
    saved = (at(16, 3) + at(8, 3)) * 20 / 36 + (at(16, 1, cin=3) + at(8, 1)) * 3 / 4
    assert d.as_written == big
    assert d.needed == pytest.approx(big - saved)
    whole = flops.step(config)
    per_image = config.d_steps * (g.needed + 6 * d.needed) + 3 * g.needed + 2 * d.needed
    assert whole.needed == pytest.approx(config.batch_size * per_image)


@pytest.mark.parametrize("arch", ["biggan", "biggan_deep"])
def test_xla_counts_a_forward_pass_alike(arch):
    """Its count has additions, activations and u besides, and leaves the padding out: 6 %."""
    c = config_lib.default()
    c.model.update(arch=arch, resolution=32, g_ch=16, d_ch=16, g_attention=(16,), d_attention=(16,))
    c.model.z_dim = 20 * config_lib.slots(c)
    config = config_lib.resolve(c, 1)
    g, d = networks.build(config, "gpu")  # Whose convolutions are plain in the table.
    batch = 32
    z, labels = jnp.zeros((batch, config.model.z_dim)), jnp.zeros((batch,), jnp.int32)
    image = jnp.zeros((batch, 32, 32, 3))
    wants = [f.as_written for f in flops.forward(config)]
    calls = [(g, (z, labels), {"train": True}), (d, (image, labels), {})]
    for (module, inputs, how), want in zip(calls, wants, strict=True):
        shapes = jax.eval_shape(
            lambda m=module, i=inputs, h=how: m.init(jax.random.key(0), *i, **h)
        )
        apply = lambda v, m=module, i=inputs, h=how: m.apply(  # noqa: E731
            v, *i, **h, mutable=["batch_stats", "spectral"]
        )
        counted = jax.jit(apply).lower(shapes).cost_analysis()["flops"]
        assert counted / batch == pytest.approx(want, rel=0.12)


def test_biggan_128_as_the_paper_has_it():
    """At 4 images a device: 1.94 TFLOP as XLA counts the step as written, 1.21 with fused forms.

    XLA leaves out what falls on padding, in a 3x3 over 8x8 pixels 16 %, over 128x128 one.
    """
    config = config_lib.resolve(config_lib.default(), 512)
    got = flops.step(config).times(1 / 512)
    assert 1 < got.as_written / 1.942e12 < 1.1
    assert 1 < got.needed / 1.205e12 < 1.1
