"""3x3 convolutions by Winograd's F(4x4, 3x3) (Lavin and Gray 2016, section 4).

36 products of `[tiles, Cin] x [Cin, Cout]` instead of 9 multiplications a pixel, a quarter of the
multiplications: y = A ((G w G^T) * (B^T x B)) A^T for each tile of 6x6 inputs. The points 0, +-5/8,
+-11/8 keep the entries of the transforms near 1; the rounding error is half of that with the usual
0, +-1, +-2, about 1e-6 relative with 128 channels against 2e-7 for a direct sum.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.models import conv_pieces as pieces

TILE = 4  # Output pixels of a tile along one axis.


@functools.cache
def _winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Cook-Toom transforms: output `[4, 6]`, kernel `[6, 3]`, input `[6, 6]`."""
    points = (0.0, 0.625, -0.625, 1.375, -1.375)  # And infinity.
    n = len(points) + 1
    output, kernel, inputs = np.zeros((TILE, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        output[:, j] = [p**i for i in range(TILE)]
        kernel[j] = [p**i / np.prod([p - q for q in others]) for i in range(3)]
        inputs[j, : n - 1] = np.poly(others)[::-1]
    output[-1, -1] = kernel[-1, -1] = 1.0
    inputs[-1] = np.poly(points)[::-1]
    inputs[np.abs(inputs) < 1e-12] = 0.0  # Odd powers cancel; rounding leaves crumbs.
    return output, kernel, inputs


def _tile_transform(
    matrix: np.ndarray, x: jax.Array, axis_tiles: tuple[int, int]
) -> list[jax.Array]:
    """Applies `matrix` `[n, k]` to both axes of every tile of `x`, tiles starting every 4 pixels.

    Returns the n columns of the transformed tiles; each holds its n rows, `[n, B, *axis_tiles, C]`.
    (One array an entry would run as fast and compile six times longer.)
    """

    def entries(z: jax.Array, axis: int, tiles: int) -> list[jax.Array]:
        last = (tiles - 1) * TILE + 1
        return [jax.lax.slice_in_dim(z, o, o + last, TILE, axis) for o in range(matrix.shape[1])]

    rows = entries(x, 1, axis_tiles[0])
    # The barrier keeps XLA from computing the row transform again for every column.
    stacked = jax.lax.optimization_barrier(jnp.stack([pieces.combine(row, rows) for row in matrix]))
    columns = entries(stacked, 3, axis_tiles[1])
    return [pieces.combine(column, columns) for column in matrix]


def _winograd_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    output, kernel, inputs = _winograd_matrices()
    kernel = kernel.astype(x.dtype)
    tiles = _tile_transform(inputs, pieces.pad1(x), (x.shape[1] // TILE, x.shape[2] // TILE))
    u = jnp.einsum("ap,pqio,bq->baio", kernel, w, kernel, precision="highest")
    products = [
        jnp.einsum("abhwi,aio->abhwo", tile, u[column]) for column, tile in enumerate(tiles)
    ]
    half = [jax.lax.optimization_barrier(pieces.combine(row, products)) for row in output]
    return pieces.interleave([[pieces.combine(row, list(h)) for h in half] for row in output])


def _winograd_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    output, kernel, inputs = _winograd_matrices()
    kernel = kernel.astype(x.dtype)
    tiles = (x.shape[1] // TILE, x.shape[2] // TILE)
    x_tiles = _tile_transform(inputs, pieces.pad1(x), tiles)
    g_tiles = _tile_transform(output.T, g, tiles)
    du = jnp.stack(pieces.kernel_products(x_tiles, g_tiles))
    return jnp.einsum("ap,baio,bq->pqio", kernel, du, kernel, precision="highest")


@jax.custom_vjp
def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, H, W, Cout]`; H and W divisible by 4."""
    return _winograd_forward(x, w)


convolve.defvjp(
    lambda x, w: (_winograd_forward(x, w), (x, w)),
    lambda saved, g: (
        _winograd_forward(g, pieces.adjoint_kernel(saved[1])),
        _winograd_kernel_gradient(saved[0], g),
    ),
)
