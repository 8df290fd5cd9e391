"""Changes of size by two."""

import jax
import jax.numpy as jnp

from biggan_jax.config import ConfigError


def nearest_up2(x: jax.Array) -> jax.Array:
    """Repeats every pixel twice along both axes: `[B, H, W, C]` -> `[B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def unpool2(x: jax.Array) -> jax.Array:
    """Puts zeros right of, below and beside every pixel: `[B, H, W, C]` -> `[B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    y = jnp.pad(x[:, :, None, :, None, :], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))
    return y.reshape(b, 2 * h, 2 * w, c)


def avg_pool2(x: jax.Array) -> jax.Array:
    """Averages blocks of 2x2 pixels: `[B, H, W, C]` -> `[B, H/2, W/2, C]`.

    Args:
      x: Input `[B, H, W, C]`, H and W even.

    Returns:
      The means in the dtype of `x`, summed in float32.

    Raises:
      ConfigError: H or W is odd.
    """
    check_even("avg_pool2", x)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def check_even(name: str, x: jax.Array) -> None:
    """Checks that `x` `[B, H, W, C]` can be halved; `name` is who asks.

    Raises:
      ConfigError: H or W is odd.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ConfigError(
            f"{name}: height and width must be even, got {x.shape[1]}x{x.shape[2]}; "
            f"nearest: {x.shape[1] // 2 * 2}x{x.shape[2] // 2 * 2}"
        )
