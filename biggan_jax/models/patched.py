"""3x3 convolutions whose kernel gradient is one product with the 3x3 neighbourhoods.

XLA:CPU's native forward pass and input gradient are good from some 16 channels on; its kernel
gradient, with the batch as features, is not. As `[9 Cin, pixels] x [pixels, Cout]` it is a product
like any other, at the price of writing the neighbourhoods.
"""

import jax

from biggan_jax.models import conv_pieces as pieces


def _kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    cin, cout = x.shape[-1], g.shape[-1]
    return pieces.kernel_product(pieces.patches(x), g).reshape(3, 3, cin, cout)


@jax.custom_vjp
def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, H, W, Cout]`."""
    return pieces.plain(x, w)


convolve.defvjp(
    lambda x, w: (pieces.plain(x, w), (x, w)),
    lambda saved, g: (
        pieces.plain(g, pieces.adjoint_kernel(saved[1])),
        _kernel_gradient(saved[0], g),
    ),
)
