"""The frozen generator, written once over operations that any program has.

`models/` is the network that is trained; this is what is left of it for making images: no state, no
spectral norm, classes as mixtures, statistics chosen by truncation. An export gives its operations
(`Ops`) and gets a graph; what it computes is held to `models/` after every export.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from biggan_jax.interop.frozen import TRUNCATIONS, Frozen
from biggan_jax.models import biggan, biggan_deep

Tensor = Any  # Of the program; numbers and tensors can be added, subtracted and multiplied.


class Ops(Protocol):
    """A program's operations. A map is a batch of images in the layout the program likes."""

    def weight(self, name: str) -> Tensor:
        """Returns a frozen array."""

    def constant(self, value: np.ndarray | np.floating) -> Tensor:
        """Returns an array that is part of the graph."""

    def matmul(self, a: Tensor, b: Tensor, transpose_b: bool = False) -> Tensor:
        """Multiplies [..., I, K] and [..., K, J], or [..., J, K] where b is to be transposed."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Puts [B, D] beside each other."""

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Returns some columns of [B, D]."""

    def unit(self, x: Tensor) -> Tensor:
        """Limits to [0, 1]."""

    def rsqrt(self, x: Tensor) -> Tensor:
        """Returns 1 / sqrt(x)."""

    def relu(self, x: Tensor) -> Tensor:
        """Returns max(x, 0)."""

    def softmax(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""

    def first_map(self, x: Tensor, channels: int) -> Tensor:
        """Makes a map of 4x4 pixels of [B, 16 C], ordered (row, column, channel)."""

    def spread(self, x: Tensor, channels: int) -> Tensor:
        """Makes [B, C], [1, C] or [C] fit a map, each number for all pixels of its channel."""

    def conv(self, x: Tensor, place: str) -> Tensor:
        """Convolves, SAME, with PLACE/kernel and adds PLACE/bias, where there is one."""

    def up(self, x: Tensor) -> Tensor:
        """Repeats each pixel 2x2."""

    def unpool(self, x: Tensor) -> Tensor:
        """Puts zeros right of, below and beside each pixel."""

    def first_channels(self, x: Tensor, count: int) -> Tensor:
        """Drops the other channels."""

    def max_pool(self, x: Tensor) -> Tensor:
        """Takes the largest of 2x2 pixels."""

    def pixels(self, x: Tensor) -> Tensor:
        """Makes [B, pixels, C] of a map, row by row."""

    def as_map(self, x: Tensor, size: int) -> Tensor:
        """The inverse of `pixels`, for square maps."""

    def images(self, x: Tensor) -> Tensor:
        """Returns tanh of a map as [B, H, W, 3]."""


def generator(ops: Ops, frozen: Frozen, z: Tensor, y: Tensor, truncation: Tensor) -> Tensor:
    """Builds the graph.

    Args:
      ops: of the program.
      frozen: the generator.
      z: [B, z_dim], float32, used as it is.
      y: [B, K], float32: weights of the classes, one-hot for one of them.
      truncation: scalar, float32: which statistics, blended linearly between two rows and those
        of the nearest row outside.

    Returns:
      Images [B, H, W, 3] in [-1, 1].
    """
    model = frozen.model
    build = {"biggan": _biggan, "biggan_deep": _biggan_deep}[model["arch"]]
    net = _Net(ops, model, frozen.arrays, _rows(ops, frozen.arrays[TRUNCATIONS], truncation))
    h = build(net, z, y)
    h = ops.relu(net.norm(h, "out_bn", None, model["out_bn_eps"]))
    return ops.images(ops.conv(h, "out_conv"))


def _rows(ops, grid, truncation):
    """The weights [1, R] of the statistics' rows; None where there is one row."""
    if len(grid) == 1:
        return None
    # How much of each interval lies below the truncation: 1 ... 1, a part, 0 ... 0. Row i has
    # what of the interval before it is used and of the one behind it is not.
    slopes = ops.constant((1 / np.diff(grid))[None].astype(np.float32))
    below = ops.unit((truncation - ops.constant(grid[None, :-1])) * slopes)
    one, zero = (ops.constant(np.full((1, 1), value, np.float32)) for value in (1, 0))
    return ops.join([one, below]) - ops.join([below, zero])


class _Net:
    """The pieces that both architectures are made of."""

    def __init__(self, ops: Ops, model: Mapping[str, Any], arrays: Mapping, rows: Tensor):
        self.ops, self.model, self._arrays, self._rows = ops, model, arrays, rows
        up = ops.unpool if model["compare_gan"] else ops.up
        self.up = up

    def dense(self, x, place):
        return self.ops.matmul(x, self.ops.weight(f"{place}/kernel")) + self.ops.weight(
            f"{place}/bias"
        )

    def norm(self, x, place, condition, eps=None):
        ops, weight = self.ops, self.ops.weight
        channels = self._arrays[f"{place}/mean"].shape[1]
        mean, var = (self._statistic(f"{place}/{moment}") for moment in ("mean", "var"))
        gain, bias = weight(f"{place}/gain"), weight(f"{place}/bias")
        if condition is not None:
            offset = np.float32(0.0 if self.model["compare_gan"] else 1.0)
            gain = ops.matmul(condition, gain) + ops.constant(offset)
            bias = ops.matmul(condition, bias)
        eps = np.float32(self.model["bn_eps"] if eps is None else eps)
        scale = gain * ops.rsqrt(var + ops.constant(eps))
        spread = lambda v: ops.spread(v, channels)  # noqa: E731
        return (x - spread(mean)) * spread(scale) + spread(bias)

    def _statistic(self, name):
        table = self.ops.weight(name)
        return table if self._rows is None else self.ops.matmul(self._rows, table)

    def attention(self, x, size):
        if size not in self.model["g_attention"]:
            return x
        ops, place = self.ops, f"attention{size}"
        theta, phi, g = (ops.conv(x, f"{place}/{name}") for name in ("theta", "phi", "g"))
        phi, g = ops.pixels(ops.max_pool(phi)), ops.pixels(ops.max_pool(g))
        weights = ops.softmax(ops.matmul(ops.pixels(theta), phi, transpose_b=True))
        mixed = ops.as_map(ops.matmul(weights, g), size)
        return ops.conv(mixed, f"{place}/o") * ops.weight(f"{place}/gamma") + x

    def joined(self, embedding, z):
        first = self.model["condition_order"] == "z_first"
        return self.ops.join([z, embedding] if first else [embedding, z])


def _biggan(net, z, y):
    ops, model = net.ops, net.model
    first, *widths = (m * model["g_ch"] for m in biggan.G_CHANNELS[model["resolution"]])
    shared = y  # Without a shared table each BN has its own, [K, C].
    if model["shared_embedding"]:
        shared = ops.matmul(y, ops.weight("shared/embedding"))
    conditions = [shared] * len(widths)
    if model["hierarchical_z"]:
        step = model["z_dim"] // (len(widths) + 1)
        starts = range(0, model["z_dim"], step)
        z, *chunks = (ops.columns(z, start, start + step) for start in starts)
        conditions = [net.joined(shared, chunk) for chunk in chunks]
    h = ops.first_map(net.dense(z, "linear"), first)
    for i, condition in enumerate(conditions):
        block = f"block{i}"
        x = h
        h = net.up(ops.relu(net.norm(x, f"{block}/bn1", condition)))
        h = ops.conv(h, f"{block}/conv1")
        h = ops.conv(ops.relu(net.norm(h, f"{block}/bn2", condition)), f"{block}/conv2")
        h = h + _shortcut(net, x, f"{block}/conv_sc")
        h = net.attention(h, 8 << i)
    return h


def _shortcut(net, x, place):
    # A 1x1 convolution commutes with repeated pixels; its bias does not with zeros between them.
    if net.model["compare_gan"]:
        return net.ops.conv(net.up(x), place)
    return net.up(net.ops.conv(x, place))


def _biggan_deep(net, z, y):
    ops, model = net.ops, net.model
    widths = [m * model["g_ch"] for m in biggan_deep.G_CHANNELS[model["resolution"]]]
    condition = net.joined(ops.matmul(y, ops.weight("shared/embedding")), z)
    h = ops.first_map(net.dense(condition, "linear"), widths[0])
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        h = _deep_block(net, h, f"block{2 * i}", condition, before, up=False)
        h = _deep_block(net, h, f"block{2 * i + 1}", condition, after, up=True)
        h = net.attention(h, 8 << i)
    return h


def _deep_block(net, x, block, condition, features, up):
    h = x
    for k in (1, 2, 3, 4):
        h = net.ops.relu(net.norm(h, f"{block}/bn{k}", condition))
        h = net.up(h) if up and k == 2 else h
        h = net.ops.conv(h, f"{block}/conv{k}")
    shortcut = net.ops.first_channels(x, features)
    return h + (net.up(shortcut) if up else shortcut)
