"""Changes of size by two."""

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.models import forms

FORMS = ("plain", "window")  # Of `nearest_up2` and of `avg_pool2`.


def nearest_up2(x: jax.Array, *, form: str | None = None, backend: str | None = None) -> jax.Array:
    """Repeats every pixel twice along both axes: `[B, H, W, C]` -> `[B, 2H, 2W, C]`.

    Args:
      x: Input `[B, H, W, C]`.
      form: "plain" (a broadcast), "window" (zeros between the pixels, then sums of 2x2: on TPU it
        needs no transpose), or None for the one in the table.
      backend: whose table, as for `conv.conv3x3`.

    Raises:
      ConfigError: The form is unknown.
    """
    if _form("nearest_up2", x, form, backend) == "window":
        zero, sides = np.zeros((), x.dtype), ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(
            x, zero, jax.lax.add, (1, 2, 2, 1), (1, 1, 1, 1), sides, base_dilation=(1, 2, 2, 1)
        )
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def unpool2(x: jax.Array) -> jax.Array:
    """Puts zeros right of, below and beside every pixel: `[B, H, W, C]` -> `[B, 2H, 2W, C]`."""
    b, h, w, c = x.shape
    y = jnp.pad(x[:, :, None, :, None, :], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (0, 0)))
    return y.reshape(b, 2 * h, 2 * w, c)


def avg_pool2(x: jax.Array, *, form: str | None = None, backend: str | None = None) -> jax.Array:
    """Averages blocks of 2x2 pixels: `[B, H, W, C]` -> `[B, H/2, W/2, C]`.

    Args:
      x: Input `[B, H, W, C]`, H and W even.
      form: "plain" (a mean over axes of two), "window" (sums of 2x2 windows), or None for the one
        in the table.
      backend: whose table, as for `conv.conv3x3`.

    Returns:
      The means in the dtype of `x`, summed in float32.

    Raises:
      ConfigError: H or W is odd, or the form is unknown.
    """
    check_even("avg_pool2", x)
    if _form("avg_pool2", x, form, backend) == "window":
        window = (1, 2, 2, 1)
        total = jax.lax.reduce_window(
            x.astype(jnp.float32), np.float32(0), jax.lax.add, window, window, "VALID"
        )
        return (total / 4).astype(x.dtype)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _form(operation, x, form, backend):
    if form is None:
        return forms.pick(operation, x, x.shape[-1], backend, FORMS.__contains__)
    forms.check(operation, form, dict.fromkeys(FORMS))
    return form


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
