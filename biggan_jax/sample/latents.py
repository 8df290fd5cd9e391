"""Latents for sampling, a function of (seed, index): the same image in any batch on any mesh.

Four programs mean four things by "truncation" (spec section 14.1); each has its name here:
  threshold: N(0, 1) resampled until |z_i| <= t, not rescaled. The paper's, and the default.
  hub: t times N(0, 1) resampled until |z_i| <= 2, t in [0, 1]. The TF-Hub modules and their ports.
  std: N(0, t^2). The author's PyTorch code.
  clamp: N(0, 1) clipped to [-t, t]. mmgeneration.
"""

import jax
import jax.numpy as jnp

from biggan_jax.config import ConfigError

MODES = ("threshold", "hub", "std", "clamp")


def draw(
    seed: int, index: jax.Array, dim: int, truncation: float | None, mode: str = "threshold"
) -> jax.Array:
    """Draws one latent an index.

    Args:
      seed: which series of latents.
      index: [N] integers, places in the series.
      dim: length of a latent.
      truncation: t, or None for the plain normal in every mode.
      mode: what t means, one of `MODES`.

    Returns:
      [N, dim], float32.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(index)
    bounded = lambda t: jax.vmap(  # noqa: E731
        lambda k: jax.random.truncated_normal(k, -t, t, (dim,))
    )(keys)
    if truncation is not None and mode == "threshold":
        return bounded(truncation).astype(jnp.float32)
    if truncation is not None and mode == "hub":
        return truncation * bounded(2.0).astype(jnp.float32)
    z = jax.vmap(lambda k: jax.random.normal(k, (dim,)))(keys)
    if truncation is None:
        return z
    return z * truncation if mode == "std" else jnp.clip(z, -truncation, truncation)


def check_truncation(truncation: float | None, mode: str = "threshold") -> None:
    """Checks a truncation against its mode.

    Raises:
      ConfigError: unless truncation is None or a finite number above 0 (at most 1 in mode hub), or
        if there is no such mode.
    """
    if mode not in MODES:
        raise ConfigError(f"--mode={mode}: must be one of {', '.join(MODES)}.")
    if truncation is None:
        return
    if not 0 < truncation < float("inf"):
        raise ConfigError(f"--truncation={truncation}: must be a number above 0.")
    if mode == "hub" and truncation > 1:
        raise ConfigError(f"--truncation={truncation}: must be at most 1 in mode hub.")


def describe(truncation: float | None, mode: str) -> str:
    """Returns what a sheet says: "no truncation" or, say, "threshold truncation 0.5"."""
    return "no truncation" if truncation is None else f"{mode} truncation {truncation:g}"
