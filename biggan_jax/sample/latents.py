"""Latents for sampling, a function of (seed, index): the same image in any batch on any mesh."""

import jax
import jax.numpy as jnp

from biggan_jax.config import ConfigError


def draw(seed: int, index: jax.Array, dim: int, truncation: float | None) -> jax.Array:
    """Draws one latent an index.

    With a truncation tau every component is N(0, 1) resampled until |z_i| <= tau, not rescaled:
    the paper's threshold convention (spec section 14.1).

    Args:
      seed: which series of latents.
      index: [N] integers, places in the series.
      dim: length of a latent.
      truncation: tau, or None for the plain normal.

    Returns:
      [N, dim], float32.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    if truncation is None:
        return jax.vmap(lambda k: jax.random.normal(k, (dim,)))(keys)
    cut = lambda k: jax.random.truncated_normal(k, -truncation, truncation, (dim,))  # noqa: E731
    return jax.vmap(cut)(keys).astype(jnp.float32)


def check_truncation(truncation: float | None) -> None:
    """Raises ConfigError unless truncation is None or a finite number above 0."""
    if truncation is not None and not 0 < truncation < float("inf"):
        raise ConfigError(f"--truncation={truncation}: must be a number above 0.")
