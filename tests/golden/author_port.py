"""Reads the golden trajectories of the author's PyTorch code into our layout.

The files hold random weights, three whole iterations and their end; tests/golden/README.md lists
the keys.
"""

import pathlib
import re

import numpy as np

FOLDER = pathlib.Path(__file__).parent
MODULES = {"output_layer.0": "out_bn", "output_layer.2": "out_conv"}


class Golden:
    """One file: `golden["it0/D0/z"]` is an array, `golden.tree("init/G", 32)` a network."""

    def __init__(self, resolution):
        self.arrays = dict(np.load(FOLDER / f"author_port_{resolution}.npz"))
        self.attention = {32: {}, 64: {"G": {2: 32}, "D": {0: 32}}}[resolution]

    def __getitem__(self, key):
        return self.arrays[key]

    def tree(self, prefix):
        """Returns {"params", "batch_stats", "spectral"}, nested, in our names and layout."""
        net = prefix.split("/")[1].replace("EMA", "G")
        collections = {"params": {}, "batch_stats": {}, "spectral": {}}
        for key, value in self.arrays.items():
            if key.startswith(prefix + "/") and not key.endswith("sv0"):
                collection, path, value = self._convert(net, key[len(prefix) + 1 :], value)
                node = collections[collection]
                for name in path[:-1]:
                    node = node.setdefault(name, {})
                node[path[-1]] = value
        return collections

    def _convert(self, net, key, value):
        module, leaf = key.rsplit(".", 1)
        for old, new in MODULES.items():
            module = module.replace(old, new)
        module = re.sub(r"^blocks\.(\d+)\.0", r"block\1", module)
        for block, size in self.attention.get(net, {}).items():
            module = re.sub(rf"^blocks\.{block}\.1", f"attention{size}", module)
        path = module.split(".")
        if net == "G" and module == "linear":
            value = _rows_channel_last(value)
        if leaf.startswith("stored_"):
            return "batch_stats", [*path, leaf.removeprefix("stored_")], value
        if leaf == "u0":
            return "spectral", [*path, "u"], value
        if leaf == "weight" and path[-1] in ("shared", "embed"):
            return "params", [*path, "embedding"], value
        if leaf == "weight":
            axes = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
            return "params", [*path, "kernel"], value.transpose(axes)
        return "params", [*path, leaf], value  # bias, gain, gamma


def _rows_channel_last(value):
    """Reorders the first linear's outputs from (channel, row, column) to (row, column, channel)."""
    axis = 1 if value.shape[0] == 1 else 0  # u is [1, outputs]; weight and bias lead with outputs.
    outputs = np.moveaxis(value, axis, 0)
    outputs = outputs.reshape(-1, 4, 4, *outputs.shape[1:])
    outputs = np.moveaxis(outputs, 0, 2).reshape(-1, *outputs.shape[3:])
    return np.moveaxis(outputs, 0, axis)
