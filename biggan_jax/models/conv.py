"""Convolutions, resampling and their fusions as pure functions.

Every function is exact mathematics in every form: forms differ in float rounding only. ``"plain"``
is the native convolution and the tested truth; it is the right one on TPU and GPU. On XLA:CPU in
float32 the native forms leave most of the machine unused, and these are taken instead:

``winograd`` (3x3)
    F(4x4, 3x3): 36 products of `[tiles, Cin] x [Cin, Cout]` instead of 9 multiplications a pixel,
    a quarter of the multiplications (Lavin and Gray 2016, section 4). The points 0, +-5/8, +-11/8
    keep the entries of the transforms near 1; the rounding error is half of that with the usual
    0, +-1, +-2, about 1e-6 relative with 128 channels against 2e-7 for a direct sum.
``thin`` (3x3 with an image on one side)
    With few output channels: one product to `9 Cout` channels, then nine shifted adds. With few
    input channels the native forward pass is good, but its kernel gradient is not.
``fused`` (3x3 beside a resampling)
    Along one axis, with `S = a + b + c` and `d_i = x_i - x_{i-1}`, the kernel `(a, b, c)` on the
    repeated signal gives `y_2i = S x_i - a d_i` and `y_2i+1 = S x_i + c d_{i+1}`: three products
    for two outputs instead of six. In two dimensions nine for four pixels instead of 36, on the
    low-resolution grid, with no coefficient but +-1. Pooling after a convolution is the adjoint.

The CPU forms have their own reverse rules, because what XLA derives (dilated convolutions, kernel
gradients with the batch as features) runs 3 to 14 times slower. `benchmarks/conv_forms.py` measures
all of them. Forward-mode derivatives exist in the plain form only; elsewhere JAX raises.

Forms are chosen while tracing, by `jax.default_backend()`. A program that compiles for an
accelerator which is not there (the default backend is then the CPU) passes ``form="plain"``.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.config import ConfigError

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_THIN = 8  # Channels of an "image" side: a product this narrow starves the matrix units.
_TILE = 4  # Output pixels of a Winograd tile along one axis.
_MIN_WINOGRAD_CHANNELS = 96  # Below, the transforms cost more than the products they save.


def conv3x3(x: jax.Array, w: jax.Array, *, form: str | None = None) -> jax.Array:
    """Convolves with a 3x3 kernel, stride 1, zero padding to the same size, no bias.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "winograd" (H and W divisible by 4), "thin" (Cin or Cout at most 8), or None
        for the fastest one known for this backend and shape.

    Returns:
      `[B, H, W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown or cannot take this shape.
    """
    w = w.astype(x.dtype)
    if form is None:
        form = _pick_form(x, w)
    if form == "plain":
        return _plain(x, w)
    if form == "winograd":
        if x.shape[1] % _TILE or x.shape[2] % _TILE:
            raise ConfigError(
                f"conv3x3: form 'winograd' needs height and width divisible by {_TILE}, "
                f"got {x.shape[1]}x{x.shape[2]}; use form 'plain'"
            )
        return _winograd(x, w)
    if form == "thin":
        if min(w.shape[2:]) > _THIN:
            raise ConfigError(
                f"conv3x3: form 'thin' needs at most {_THIN} input or output channels, "
                f"got {w.shape[2]} and {w.shape[3]}; use form 'plain'"
            )
        return _thin(x, w)
    raise ConfigError(f"conv3x3: unknown form {form!r}; allowed: 'plain', 'winograd', 'thin', None")


def up_conv3x3(x: jax.Array, w: jax.Array, *, form: str | None = None) -> jax.Array:
    """Computes `conv3x3(nearest_up2(x), w)`.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "fused", or None for the fastest one known for this backend and shape.

    Returns:
      `[B, 2H, 2W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown.
    """
    w = w.astype(x.dtype)
    if form is None:
        form = _pick_resampling_form(x, w)
    if form == "plain":
        return _plain(nearest_up2(x), w)
    if form == "fused":
        return _up(x, w)
    raise ConfigError(f"up_conv3x3: unknown form {form!r}; allowed: 'plain', 'fused', None")


def conv3x3_down(x: jax.Array, w: jax.Array, *, form: str | None = None) -> jax.Array:
    """Computes `avg_pool2(conv3x3(x, w))`.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16, H and W even.
      w: Kernel `[3, 3, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain", "fused", or None for the fastest one known for this backend and shape.

    Returns:
      `[B, H/2, W/2, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown, or H or W is odd.
    """
    _check_even("conv3x3_down", x)
    w = w.astype(x.dtype)
    if form is None:
        form = _pick_resampling_form(x, w)
    if form == "plain":
        return avg_pool2(_plain(x, w))
    if form == "fused":
        return _down(x, w)
    raise ConfigError(f"conv3x3_down: unknown form {form!r}; allowed: 'plain', 'fused', None")


def conv1x1(x: jax.Array, w: jax.Array, *, form: str | None = None) -> jax.Array:
    """Mixes the channels of every pixel.

    Args:
      x: Input `[B, H, W, Cin]`, float32 or bfloat16.
      w: Kernel `[1, 1, Cin, Cout]`; cast to the dtype of `x`.
      form: "plain" (a convolution), "matmul", or None for the one that suits the backend.

    Returns:
      `[B, H, W, Cout]` in the dtype of `x`.

    Raises:
      ConfigError: The form is unknown.
    """
    w = w.astype(x.dtype)
    if form is None:
        form = "matmul" if jax.default_backend() == "cpu" else "plain"
    if form == "plain":
        return _plain(x, w)
    if form == "matmul":
        return _product(x, w[0, 0])
    raise ConfigError(f"conv1x1: unknown form {form!r}; allowed: 'plain', 'matmul', None")


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
    _check_even("avg_pool2", x)
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _check_even(name: str, x: jax.Array) -> None:
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ConfigError(
            f"{name}: height and width must be even, got {x.shape[1]}x{x.shape[2]}; "
            f"nearest: {x.shape[1] // 2 * 2}x{x.shape[2] // 2 * 2}"
        )


def _pick_form(x: jax.Array, w: jax.Array) -> str:
    """The measured choice for a 3x3 convolution (numbers: `benchmarks/conv_forms.py`)."""
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return "plain"
    if min(w.shape[2:]) <= _THIN:
        return "thin"
    whole_tiles = x.shape[1] % _TILE == 0 and x.shape[2] % _TILE == 0
    # A 4x4 image is one tile, mostly padding.
    if whole_tiles and x.shape[1] > _TILE and min(w.shape[2:]) >= _MIN_WINOGRAD_CHANNELS:
        return "winograd"
    return "plain"


def _pick_resampling_form(x: jax.Array, w: jax.Array) -> str:
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32:
        return "plain"
    # Beside an image nothing is won: the nine terms would be as many as the products.
    return "plain" if min(w.shape[2:]) <= _THIN else "fused"


# Pieces that every form uses.


def _plain(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def _product(x: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("bhwi,io->bhwo", x, k)


def _kernel_product(x: jax.Array, g: jax.Array) -> jax.Array:
    """Sums `x_i g_o` over all pixels: `[B, H, W, I]`, `[B, H, W, O]` -> `[I, O]`."""
    return jnp.einsum("bhwi,bhwo->io", x, g)


def _kernel_products(xs: list[jax.Array], gs: list[jax.Array]) -> list[jax.Array]:
    """The kernel products `[n, I, O]` of pairs `[n, B, H, W, I]`, `[n, B, H, W, O]`.

    Left alone, XLA:CPU lays the operands out with the pixels innermost, and the sums that make
    them then write with a stride: 5 times slower. The barrier fixes the layout.
    """
    n = xs[0].shape[0]
    flat_x, flat_g = jax.lax.optimization_barrier(
        ([x.reshape(n, -1, x.shape[-1]) for x in xs], [g.reshape(n, -1, g.shape[-1]) for g in gs])
    )
    return [jnp.einsum("npi,npo->nio", x, g) for x, g in zip(flat_x, flat_g, strict=True)]


def _adjoint_kernel(w: jax.Array) -> jax.Array:
    """The kernel of the input gradient: turned by 180 degrees, channels swapped."""
    return w[::-1, ::-1].swapaxes(2, 3)


def _pad1(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _interleave(phases: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Weaves m x m images into one: pixel `[m i + a, m j + b]` is `phases[a][b][i, j]`."""
    b, h, w, c = phases[0][0].shape
    m = len(phases)
    return jnp.stack([jnp.stack(row, 3) for row in phases], 2).reshape(b, m * h, m * w, c)


def _combine(coefficients: np.ndarray, arrays: Sequence[jax.Array]) -> jax.Array:
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


# Winograd F(4x4, 3x3): y = A ((G w G^T) * (B^T x B)) A^T for each tile of 6x6 inputs.


@functools.cache
def _winograd_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Cook-Toom transforms: output `[4, 6]`, kernel `[6, 3]`, input `[6, 6]`."""
    points = (0.0, 0.625, -0.625, 1.375, -1.375)  # And infinity.
    n = len(points) + 1
    output, kernel, inputs = np.zeros((_TILE, n)), np.zeros((n, 3)), np.zeros((n, n))
    for j, p in enumerate(points):
        others = [q for q in points if q != p]
        output[:, j] = [p**i for i in range(_TILE)]
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
        last = (tiles - 1) * _TILE + 1
        return [jax.lax.slice_in_dim(z, o, o + last, _TILE, axis) for o in range(matrix.shape[1])]

    rows = entries(x, 1, axis_tiles[0])
    # The barrier keeps XLA from computing the row transform again for every column.
    stacked = jax.lax.optimization_barrier(jnp.stack([_combine(row, rows) for row in matrix]))
    columns = entries(stacked, 3, axis_tiles[1])
    return [_combine(column, columns) for column in matrix]


def _winograd_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    output, kernel, inputs = _winograd_matrices()
    kernel = kernel.astype(x.dtype)
    tiles = _tile_transform(inputs, _pad1(x), (x.shape[1] // _TILE, x.shape[2] // _TILE))
    u = jnp.einsum("ap,pqio,bq->baio", kernel, w, kernel, precision="highest")
    products = [
        jnp.einsum("abhwi,aio->abhwo", tile, u[column]) for column, tile in enumerate(tiles)
    ]
    half = [jax.lax.optimization_barrier(_combine(row, products)) for row in output]
    return _interleave([[_combine(row, list(h)) for h in half] for row in output])


def _winograd_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    output, kernel, inputs = _winograd_matrices()
    kernel = kernel.astype(x.dtype)
    tiles = (x.shape[1] // _TILE, x.shape[2] // _TILE)
    x_tiles = _tile_transform(inputs, _pad1(x), tiles)
    g_tiles = _tile_transform(output.T, g, tiles)
    du = jnp.stack(_kernel_products(x_tiles, g_tiles))
    return jnp.einsum("ap,baio,bq->pqio", kernel, du, kernel, precision="highest")


@jax.custom_vjp
def _winograd(x: jax.Array, w: jax.Array) -> jax.Array:
    return _winograd_forward(x, w)


_winograd.defvjp(
    lambda x, w: (_winograd_forward(x, w), (x, w)),
    lambda saved, g: (
        _winograd_forward(g, _adjoint_kernel(saved[1])),
        _winograd_kernel_gradient(saved[0], g),
    ),
)


# Convolutions with an image on one side.


def _patches(x: jax.Array) -> jax.Array:
    """The 3x3 neighbourhood of every pixel: `[B, H, W, C]` -> `[B, H, W, 9 C]`."""
    h, w = x.shape[1:3]
    padded = _pad1(x)
    return jnp.concatenate([padded[:, p : p + h, q : q + w] for p in range(3) for q in range(3)], 3)


def _thin_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    cin, cout = w.shape[2:]
    if cin < cout:
        return _plain(x, w)
    height, width = x.shape[1:3]
    z = _pad1(_product(x, w.transpose(2, 0, 1, 3).reshape(cin, 9 * cout)))
    total = jnp.zeros((), x.dtype)
    for i in range(9):
        p, q = divmod(i, 3)
        total += z[:, p : p + height, q : q + width, i * cout : (i + 1) * cout]
    return total


def _thin_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    cin, cout = x.shape[-1], g.shape[-1]
    if cin < cout:
        return _kernel_product(_patches(x), g).reshape(3, 3, cin, cout)
    # Shifting the gradient one way is shifting the input the other way.
    turned = _kernel_product(x, _patches(g)).reshape(cin, 3, 3, cout)
    return turned[:, ::-1, ::-1].transpose(1, 2, 0, 3)


@jax.custom_vjp
def _thin(x: jax.Array, w: jax.Array) -> jax.Array:
    return _thin_forward(x, w)


_thin.defvjp(
    lambda x, w: (_thin_forward(x, w), (x, w)),
    lambda saved, g: (
        _thin_forward(g, _adjoint_kernel(saved[1])),
        _thin_kernel_gradient(saved[0], g),
    ),
)


# Convolutions beside a resampling. Along each axis the three products are named S, a, c.


def _nine_terms(x: jax.Array) -> list[jax.Array]:
    """What the nine kernels of `_nine_kernels` multiply: nine of `[B, H/2, W/2, C]`."""

    def split(z: jax.Array, axis: int) -> list[jax.Array]:
        length = x.shape[axis] - 1
        before, even, odd, after = (
            jax.lax.slice_in_dim(z, o, o + length, 2, axis) for o in range(4)
        )
        return [even + odd, before - odd, after - even]

    return [
        term for rows in split(_pad1(x), 1) for term in split(jax.lax.optimization_barrier(rows), 2)
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
    return _product(jnp.concatenate(_nine_terms(x), -1), jnp.concatenate(_nine_kernels(w)))


def _down_sum_kernel_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    c = x.shape[-1]
    d = _kernel_product(g, jnp.concatenate(_nine_terms(x), -1))
    return _nine_kernels_adjoint([d[:, i * c : (i + 1) * c].T for i in range(9)])


def _up_forward(x: jax.Array, w: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    padded = _pad1(x)
    dh = padded[:, 1:] - padded[:, :-1]
    dw = padded[:, 1:-1, 1:] - padded[:, 1:-1, :-1]
    dhw = dh[:, :, 1:] - dh[:, :, :-1]
    dh = dh[:, :, 1:-1]
    ss, sa, sc, as_, aa, ac, cs, ca, cc = _nine_kernels(w)
    center = _product(x, ss)
    by_row = [_product(dh, -as_), _product(dh, cs)]
    by_column = [_product(dw, -sa), _product(dw, sc)]
    by_corner = [
        [_product(dhw, aa), _product(dhw, -ac)],
        [_product(dhw, -ca), _product(dhw, cc)],
    ]
    return _interleave(
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
    d = [_kernel_product(x, term) for term in _nine_terms(g)]
    return _nine_kernels_adjoint(d)[::-1, ::-1]


@jax.custom_vjp
def _up(x: jax.Array, w: jax.Array) -> jax.Array:
    return _up_forward(x, w)


_up.defvjp(
    lambda x, w: (_up_forward(x, w), (x, w)),
    lambda saved, g: (
        _down_sum(g, _adjoint_kernel(saved[1])),
        _up_kernel_gradient(saved[0], g),
    ),
)


@jax.custom_vjp
def _down(x: jax.Array, w: jax.Array) -> jax.Array:
    return _down_sum(x, 0.25 * w)


_down.defvjp(
    lambda x, w: (_down_sum(x, 0.25 * w), (x, w)),
    lambda saved, g: (
        _up_forward(g, _adjoint_kernel(0.25 * saved[1])),
        0.25 * _down_sum_kernel_gradient(saved[0], g),
    ),
)
