import jax.numpy as jnp
import numpy as np

from biggan_jax.gan import losses

LOGITS = jnp.array([-2.0, -1.0, 0.0, 1.0, 2.0])


def test_hinge_values():
    for logit, real, fake in zip(LOGITS, [3, 2, 1, 0, 0], [0, 0, 1, 2, 3], strict=True):
        got = losses.d_hinge(logit[None], logit[None])
        assert (float(got[0]), float(got[1])) == (real, fake)
        assert float(losses.g_hinge(logit[None])) == -logit


def test_halves_have_their_own_means():
    real, fake = losses.d_hinge(LOGITS, LOGITS[:2])
    np.testing.assert_allclose((real, fake), (6 / 5, 0.0))
