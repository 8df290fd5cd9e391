"""Pieces that the forms of a convolution share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def plain(x: jax.Array, w: jax.Array) -> jax.Array:
    """The native 3x3 or 1x1 convolution, stride 1, zero padding to the same size."""
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def product(x: jax.Array, k: jax.Array) -> jax.Array:
    """Mixes the channels of every pixel: `[B, H, W, I]`, `[I, O]` -> `[B, H, W, O]`."""
    return jnp.einsum("bhwi,io->bhwo", x, k)


def kernel_product(x: jax.Array, g: jax.Array) -> jax.Array:
    """Sums `x_i g_o` over all pixels: `[B, H, W, I]`, `[B, H, W, O]` -> `[I, O]`."""
    return jnp.einsum("bhwi,bhwo->io", x, g)


def kernel_products(xs: list[jax.Array], gs: list[jax.Array]) -> list[jax.Array]:
    """The kernel products `[n, I, O]` of pairs `[n, B, H, W, I]`, `[n, B, H, W, O]`.

    Left alone, XLA:CPU lays the operands out with the pixels innermost, and the sums that make
    them then write with a stride: 5 times slower. The barrier fixes the layout.
    """
    n = xs[0].shape[0]
    flat_x, flat_g = jax.lax.optimization_barrier(
        ([x.reshape(n, -1, x.shape[-1]) for x in xs], [g.reshape(n, -1, g.shape[-1]) for g in gs])
    )
    return [jnp.einsum("npi,npo->nio", x, g) for x, g in zip(flat_x, flat_g, strict=True)]


def adjoint_kernel(w: jax.Array) -> jax.Array:
    """The kernel of the input gradient: turned by 180 degrees, channels swapped."""
    return w[::-1, ::-1].swapaxes(2, 3)


def pad1(x: jax.Array) -> jax.Array:
    """A pixel of zeros on all sides."""
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def patches(x: jax.Array) -> jax.Array:
    """The 3x3 neighbourhood of every pixel: `[B, H, W, C]` -> `[B, H, W, 9 C]`."""
    h, w = x.shape[1:3]
    padded = pad1(x)
    return jnp.concatenate([padded[:, p : p + h, q : q + w] for p in range(3) for q in range(3)], 3)


def interleave(phases: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Weaves m x m images into one: pixel `[m i + a, m j + b]` is `phases[a][b][i, j]`."""
    b, h, w, c = phases[0][0].shape
    m = len(phases)
    return jnp.stack([jnp.stack(row, 3) for row in phases], 2).reshape(b, m * h, m * w, c)


def combine(coefficients: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
    """The linear combination with its zeros left out and its ones not multiplied."""
    total = None
    for coefficient, array in zip(coefficients.tolist(), arrays, strict=True):
        if coefficient == 0.0:
            continue
        term = array if abs(coefficient) == 1.0 else abs(coefficient) * array
        if total is None:
            total = term if coefficient > 0 else -term
        else:
            total = total + term if coefficient > 0 else total - term
    assert total is not None
    return total
