"""Convolutions, alone and beside a change of size, as pure functions.

Every function is exact mathematics in every form: forms differ in float rounding only. `"plain"`
is the native convolution and the tested truth. Which form is used is data, measured a backend
(`forms.py`); each of the others is a file: `winograd.py`, `thin.py`, `patched.py`, `fused.py`,
`phases.py`.

On XLA:CPU in float32 the native forms leave most of the machine unused. The forms made for it have
their own reverse rules, because what XLA derives (dilated convolutions, kernel gradients with the
batch as features) runs 3 to 14 times slower; of these forward-mode derivatives do not exist, and
JAX raises.
"""

from collections.abc import Callable

import jax

from biggan_jax.config import ConfigError
from biggan_jax.models import conv_pieces as pieces
from biggan_jax.models import forms, fused, patched, phases, thin, winograd
from biggan_jax.models.resample import avg_pool2, check_even, nearest_up2

_Forms = dict[str, Callable[[jax.Array, jax.Array], jax.Array]]

FORMS: dict[str, _Forms] = {
    "conv3x3": {
        "plain": pieces.plain,
        "winograd": winograd.convolve,
        "thin": thin.convolve,
        "patched": patched.convolve,
    },
    "up_conv3x3": {
        "plain": lambda x, w: pieces.plain(nearest_up2(x, form="plain"), w),
        "window": lambda x, w: pieces.plain(nearest_up2(x, form="window"), w),
        "fused": fused.up,
        "phases": phases.up,
    },
    "conv3x3_down": {
        "plain": lambda x, w: avg_pool2(pieces.plain(x, w), form="plain"),
        "window": lambda x, w: avg_pool2(pieces.plain(x, w), form="window"),
        "fused": fused.down,
        "phases": phases.down,
    },
    "conv1x1": {
        "plain": pieces.plain,
        "matmul": lambda x, w: pieces.product(x, w[0, 0]),
    },
}


def conv3x3(
    x: jax.Array, w: jax.Array, *, form: str | None = None, backend: str | None = None
) -> jax.Array:
    """Convolves with a 3x3 kernel, stride 1, zero padding to the same size, no bias.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "winograd" (H and W divisible by 4), "thin" (Cin or Cout at most 8),
        "patched", or None for the one in the table.
      backend: whose table: "cpu", "gpu" or "tpu"; None for JAX's default backend. A program that
        is compiled for devices that are not there names theirs.

    Returns:
      `[B, H, W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown or cannot take this shape.
    """
    return _run("conv3x3", x, w, form, backend)


def up_conv3x3(
    x: jax.Array, w: jax.Array, *, form: str | None = None, backend: str | None = None
) -> jax.Array:
    """Computes `conv3x3(nearest_up2(x), w)`.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "window" (see `resample`), "fused", "phases", or None for the one in the
        table.
      backend: as for `conv3x3`.

    Returns:
      `[B, 2H, 2W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown.
    """
    return _run("up_conv3x3", x, w, form, backend)


def conv3x3_down(
    x: jax.Array, w: jax.Array, *, form: str | None = None, backend: str | None = None
) -> jax.Array:
    """Computes `avg_pool2(conv3x3(x, w))`.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16, H and W even.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "window" (see `resample`), "fused", "phases", or None for the one in the
        table.
      backend: as for `conv3x3`.

    Returns:
      `[B, H/2, W/2, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown, or H or W is odd.
    """
    check_even("conv3x3_down", x)
    return _run("conv3x3_down", x, w, form, backend)


def conv1x1(
    x: jax.Array, w: jax.Array, *, form: str | None = None, backend: str | None = None
) -> jax.Array:
    """Mixes the channels of every pixel.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[1, 1, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain" (a convolution), "matmul", or None for the one in the table.
      backend: as for `conv3x3`.

    Returns:
      `[B, H, W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown.
    """
    return _run("conv1x1", x, w, form, backend)


def cannot(form: str, x: jax.Array, w: jax.Array) -> str | None:
    """Returns why a form cannot take an input and a kernel, or None."""
    if form == "winograd" and (x.shape[1] % winograd.TILE or x.shape[2] % winograd.TILE):
        return f"needs height and width divisible by {winograd.TILE}, got {x.shape[1]}x{x.shape[2]}"
    if form == "thin" and min(w.shape[2:]) > thin.CHANNELS:
        return (
            f"needs at most {thin.CHANNELS} input or output channels, got {w.shape[2]} and"
            f" {w.shape[3]}"
        )
    return None


def _run(operation, x, w, form, backend):
    w = w.astype(x.dtype)
    known = FORMS[operation]
    if form is None:
        takes = lambda form: form in known and cannot(form, x, w) is None  # noqa: E731
        form = forms.pick(operation, x, w.shape[-1], backend, takes)
    forms.check(operation, form, known)
    if reason := cannot(form, x, w):
        raise ConfigError(f"{operation}: form {form!r} {reason}; use form 'plain'")
    return known[form](x, w)
