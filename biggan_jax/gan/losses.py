"""The hinge loss (spec section 11.1)."""

import jax
import jax.numpy as jnp


def d_hinge(real: jax.Array, fake: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Discriminator's two halves, each a mean over its own images.

    Args:
      real: logits of reals, any shape.
      fake: logits of fakes, any shape.

    Returns:
      `mean(max(0, 1 - real))` and `mean(max(0, 1 + fake))`; the loss is their sum.
    """
    return jnp.mean(jax.nn.relu(1 - real)), jnp.mean(jax.nn.relu(1 + fake))


def g_hinge(fake: jax.Array) -> jax.Array:
    """Generator's loss, `-mean(fake)`."""
    return -jnp.mean(fake)
