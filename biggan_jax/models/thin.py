"""3x3 convolutions with an image on one side, that is with few input or few output channels.

With few output channels: one product to `9 Cout` channels, then nine shifted adds. With few input
channels XLA:CPU's native forward pass is good, but its kernel gradient is not.
"""

import jax
import jax.numpy as jnp

from biggan_jax.models import conv_pieces as pieces

CHANNELS = 8  # Of an "image" side: a product this narrow starves the matrix units.


def _thin_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    cin, cout = w.shape[2:]
    if cin < cout:
        return pieces.plain(x, w)
    height, width = x.shape[1:3]
    z = pieces.pad1(pieces.product(x, w.transpose(2, 0, 1, 3).reshape(cin, 9 * cout)))
    total = jnp.zeros((), x.dtype)
    for i in range(9):
        p, q = divmod(i, 3)
        total += z[:, p : p + height, q : q + width, i * cout : (i + 1) * cout]
    return total


def _thin_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    cin, cout = x.shape[-1], g.shape[-1]
    if cin < cout:
        return pieces.kernel_product(pieces.patches(x), g).reshape(3, 3, cin, cout)
    # Shifting the gradient one way is shifting the input the other way.
    turned = pieces.kernel_product(x, pieces.patches(g)).reshape(cin, 3, 3, cout)
    return turned[:, ::-1, ::-1].transpose(1, 2, 0, 3)


@jax.custom_vjp
def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, H, W, Cout]`."""
    return _thin_forward(x, w)


convolve.defvjp(
    lambda x, w: (_thin_forward(x, w), (x, w)),
    lambda saved, g: (
        _thin_forward(g, pieces.adjoint_kernel(saved[1])),
        _thin_kernel_gradient(saved[0], g),
    ),
)
