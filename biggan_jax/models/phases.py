"""3x3 convolutions beside a resampling as one 2x2 convolution on the small grid.

The 3x3 kernel convolved with a 2x2 box is 4x4. Of that kernel, nearest x2 before the convolution
needs the four 2x2 phases (row 2a + p, column 2b + q), each on the small image for the pixels
(2i + p, 2j + q); the 2x2 mean after it is the same 2x2 taps over the four phases of the image,
stacked as channels. Either has 16 products for four pixels instead of 36 and no stride, dilation or
zeros between pixels, so its gradients are plain convolutions too.
"""

import jax
import jax.numpy as jnp

from biggan_jax.models import conv_pieces as pieces

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _boxed(w: jax.Array) -> jax.Array:
    """`[3, 3, I, O]` -> taps a, b and phases p, q of the 4x4 kernel: `[2, 2, 2, 2, I, O]`."""
    for axis in (0, 1):
        before = [(0, 0)] * 4
        after = list(before)
        before[axis], after[axis] = (1, 0), (0, 1)
        w = jnp.pad(w, before) + jnp.pad(w, after)
    cin, cout = w.shape[2:]
    return w.reshape(2, 2, 2, 2, cin, cout).transpose(0, 2, 1, 3, 4, 5)


def _convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=_DIMENSIONS)


def up(x: jax.Array, w: jax.Array) -> jax.Array:
    """3x3 after nearest x2: `[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, 2H, 2W, Cout]`."""
    height, width = x.shape[1:3]
    cin, cout = w.shape[2:]
    kernel = _boxed(w).transpose(0, 1, 4, 2, 3, 5).reshape(2, 2, cin, 4 * cout)
    y = _convolve(pieces.pad1(x), kernel)
    phase = lambda p, q: y[:, p : p + height, q : q + width, (2 * p + q) * cout :][..., :cout]  # noqa: E731
    return pieces.interleave([[phase(p, q) for q in (0, 1)] for p in (0, 1)])


def down(x: jax.Array, w: jax.Array) -> jax.Array:
    """2x2 mean after 3x3: `[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, H/2, W/2, Cout]`."""
    b, h, width, cin = x.shape
    kernel = 0.25 * _boxed(w).reshape(2, 2, 4 * cin, w.shape[-1])
    blocks = pieces.pad1(x).reshape(b, h // 2 + 1, 2, width // 2 + 1, 2, cin)
    stacked = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 1, width // 2 + 1, 4 * cin)
    return _convolve(stacked, kernel)
