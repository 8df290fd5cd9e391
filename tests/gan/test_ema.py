import jax.numpy as jnp
import numpy as np

from biggan_jax.gan import ema


def test_copies_before_start_and_decays_after():
    average, current = {"w": jnp.array([1.0, 5.0])}, {"w": jnp.array([3.0, -1.0])}
    for step in (0, 1):
        got = ema.update(average, current, jnp.array(step), 0.75, start=2)
        np.testing.assert_array_equal(got["w"], current["w"])
    got = ema.update(average, current, jnp.array(2), 0.75, start=2)
    np.testing.assert_array_equal(got["w"], [1.5, 3.5])
