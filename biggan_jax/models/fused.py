"""3x3 convolutions beside a resampling as nine products on the small grid.

Along one axis, with `S = a + b + c` and `d_i = x_i - x_{i-1}`, the kernel `(a, b, c)` on the
repeated signal gives `y_2i = S x_i - a d_i` and `y_2i+1 = S x_i + c d_{i+1}`: three products for
two outputs instead of six. In two dimensions nine for four pixels instead of 36, on the
low-resolution grid, with no coefficient but +-1. Pooling after a convolution is the adjoint. Along
each axis the three products are named S, a, c.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from biggan_jax.models import conv_pieces as pieces


def _nine_terms(x: jax.Array) -> list[jax.Array]:
    """What the nine kernels of `_nine_kernels` multiply: nine of `[B, H/2, W/2, C]`."""

    def split(z: jax.Array, axis: int) -> list[jax.Array]:
        length = x.shape[axis] - 1
        before, even, odd, after = (
            jax.lax.slice_in_dim(z, o, o + length, 2, axis) for o in range(4)
        )
        return [even + odd, before - odd, after - even]

    return [
        term
        for rows in split(pieces.pad1(x), 1)
        for term in split(jax.lax.optimization_barrier(rows), 2)
    ]


def _nine_kernels(w: jax.Array) -> list[jax.Array]:
    """`[3, 3, I, O]` -> nine of `[I, O]`: (S, a, c) of the rows times (S, a, c) of the columns."""
    return [k for rows in (w.sum(0), w[0], w[2]) for k in (rows.sum(0), rows[0], rows[2])]


def _nine_kernels_adjoint(d: Sequence[jax.Array]) -> jax.Array:
    """The gradient of `w` from the gradients of its nine kernels."""
    rows = [jnp.stack([s + a, s, s + c]) for s, a, c in (d[0:3], d[3:6], d[6:9])]
    return jnp.stack([rows[0] + rows[1], rows[0], rows[0] + rows[2]])


def _down_sum(x: jax.Array, w: jax.Array) -> jax.Array:
    """The sum over 2x2 blocks of the convolution."""
    return pieces.product(jnp.concatenate(_nine_terms(x), -1), jnp.concatenate(_nine_kernels(w)))


def _down_sum_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    c = x.shape[-1]
    d = pieces.kernel_product(g, jnp.concatenate(_nine_terms(x), -1))
    return _nine_kernels_adjoint([d[:, i * c : (i + 1) * c].T for i in range(9)])


def _up_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    padded = pieces.pad1(x)
    dh = padded[:, 1:] - padded[:, :-1]
    dw = padded[:, 1:-1, 1:] - padded[:, 1:-1, :-1]
    dhw = dh[:, :, 1:] - dh[:, :, :-1]
    dh = dh[:, :, 1:-1]
    ss, sa, sc, as_, aa, ac, cs, ca, cc = _nine_kernels(w)
    center = pieces.product(x, ss)
    by_row = [pieces.product(dh, -as_), pieces.product(dh, cs)]
    by_column = [pieces.product(dw, -sa), pieces.product(dw, sc)]
    by_corner = [
        [pieces.product(dhw, aa), pieces.product(dhw, -ac)],
        [pieces.product(dhw, -ca), pieces.product(dhw, cc)],
    ]
    return pieces.interleave(
        [
            [
                center
                + by_row[p][:, p : p + height]
                + by_column[q][:, :, q : q + width]
                + by_corner[p][q][:, p : p + height, q : q + width]
                for q in (0, 1)
            ]
            for p in (0, 1)
        ]
    )


def _up_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    # The adjoint of up-sampling and convolving is convolving with the turned kernel and summing.
    d = [pieces.kernel_product(x, term) for term in _nine_terms(g)]
    return _nine_kernels_adjoint(d)[::-1, ::-1]


@jax.custom_vjp
def up(x: jax.Array, w: jax.Array) -> jax.Array:
    """3x3 after nearest x2: `[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, 2H, 2W, Cout]`."""
    return _up_forward(x, w)


up.defvjp(
    lambda x, w: (_up_forward(x, w), (x, w)),
    lambda saved, g: (
        _down_sum(g, pieces.adjoint_kernel(saved[1])),
        _up_kernel_gradient(saved[0], g),
    ),
)


@jax.custom_vjp
def down(x: jax.Array, w: jax.Array) -> jax.Array:
    """2x2 mean after 3x3: `[B, H, W, Cin]`, `[3, 3, Cin, Cout]` -> `[B, H/2, W/2, Cout]`."""
    return _down_sum(x, 0.25 * w)


down.defvjp(
    lambda x, w: (_down_sum(x, 0.25 * w), (x, w)),
    lambda saved, g: (
        _up_forward(g, pieces.adjoint_kernel(0.25 * saved[1])),
        0.25 * _down_sum_kernel_gradient(saved[0], g),
    ),
)
