"""Inception-v3 of 2015-12-05, the network of FID, sFID, Inception Score and KID.

It differs from the Inception-v3 of torchvision and Keras: 1008 classes, average pools that leave
the padding out, a last block that pools by maximum. Structure and names are those of pytorch-fid
and torch-fidelity, whose weight files (one and the same file) are converted here. Weights do not
come with this package.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.evaluate import folded

SIZE = 299
FEATURES = 2048
CLASSES = 1008
FILE = "pt_inception-2015-12-05-6726825d.pth"
WHERE = "github.com/mseitzer/pytorch-fid/releases, fid_weights"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_BN_EPS = 1e-3
_SPATIAL = 7  # Channels, as in the ADM evaluator: 7 x 17 x 17 = 2023 numbers.


class InceptionV3(nn.Module):
    """Calls return three kinds of features, float32.

    features: [N, 2048], "pool3".
    logits: [N, 1008], without bias, as Inception Scores are made of.
    spatial: [N, 17 * 17 * 7], rows first: the first seven channels of Mixed_6d.branch1x1, which is
      `mixed_6/conv` in TensorFlow's graph; sFID's.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Takes [N, 299, 299, 3], 0..255 brought to about -1..1."""
        x = _conv("Conv2d_1a_3x3", x, 32, 3, 3, 2, "VALID")
        x = _conv("Conv2d_2a_3x3", x, 32, 3, 3, 1, "VALID")
        x = _conv("Conv2d_2b_3x3", x, 64, 3, 3)
        x = _max_pool(x)
        x = _conv("Conv2d_3b_1x1", x, 80)
        x = _conv("Conv2d_4a_3x3", x, 192, 3, 3, 1, "VALID")
        x = _max_pool(x)
        x = _block_a("Mixed_5b", x, 32)
        x = _block_a("Mixed_5c", x, 64)
        x = _block_a("Mixed_5d", x, 64)
        x = _block_b("Mixed_6a", x)
        x = _block_c("Mixed_6b", x, 128)
        x = _block_c("Mixed_6c", x, 160)
        x = _block_c("Mixed_6d", x, 160)
        spatial = x[..., :_SPATIAL]  # A block begins with its branch1x1.
        x = _block_c("Mixed_6e", x, 192)
        x = _block_d("Mixed_7a", x)
        x = _block_e("Mixed_7b", x, _average_pool)
        x = _block_e("Mixed_7c", x, lambda x: nn.max_pool(x, (3, 3), padding="SAME"))
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        logits = nn.Dense(CLASSES, use_bias=False, name="fc")(features)
        spatial = spatial.astype(jnp.float32).reshape(len(x), -1)
        return {"features": features, "logits": logits, "spatial": spatial}


def convert(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the network's parameters of pytorch-fid's or torch-fidelity's tensors.

    Raises:
      ConfigError: if a tensor is missing or does not fit.
    """
    images = jnp.zeros((1, SIZE, SIZE, 3))
    shapes = jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), images))["params"]
    names = [name for name in shapes if name != "fc"]
    params = {name: folded.fold(state, f"{name}.conv", f"{name}.bn", _BN_EPS) for name in names}
    params["fc"] = {"kernel": folded.tensor(state, "fc.weight", (CLASSES, FEATURES)).T}
    folded.check(params, InceptionV3(), SIZE)
    return params


def _conv(name, x, features, rows=1, columns=1, stride=1, padding="SAME"):
    return nn.relu(folded.Conv(features, (rows, columns), stride, padding, name=name)(x))


def _max_pool(x):
    return nn.max_pool(x, (3, 3), (2, 2))


def _average_pool(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _join(*branches):
    return jnp.concatenate(branches, axis=-1)


def _block_a(name, x, pool_features):
    one = _conv(f"{name}.branch1x1", x, 64)
    five = _conv(f"{name}.branch5x5_1", x, 48)
    five = _conv(f"{name}.branch5x5_2", five, 64, 5, 5)
    three = _conv(f"{name}.branch3x3dbl_1", x, 64)
    three = _conv(f"{name}.branch3x3dbl_2", three, 96, 3, 3)
    three = _conv(f"{name}.branch3x3dbl_3", three, 96, 3, 3)
    pool = _conv(f"{name}.branch_pool", _average_pool(x), pool_features)
    return _join(one, five, three, pool)


def _block_b(name, x):
    three = _conv(f"{name}.branch3x3", x, 384, 3, 3, 2, "VALID")
    double = _conv(f"{name}.branch3x3dbl_1", x, 64)
    double = _conv(f"{name}.branch3x3dbl_2", double, 96, 3, 3)
    double = _conv(f"{name}.branch3x3dbl_3", double, 96, 3, 3, 2, "VALID")
    return _join(three, double, _max_pool(x))


def _block_c(name, x, width):
    one = _conv(f"{name}.branch1x1", x, 192)
    seven = _conv(f"{name}.branch7x7_1", x, width)
    seven = _conv(f"{name}.branch7x7_2", seven, width, 1, 7)
    seven = _conv(f"{name}.branch7x7_3", seven, 192, 7, 1)
    double = _conv(f"{name}.branch7x7dbl_1", x, width)
    double = _conv(f"{name}.branch7x7dbl_2", double, width, 7, 1)
    double = _conv(f"{name}.branch7x7dbl_3", double, width, 1, 7)
    double = _conv(f"{name}.branch7x7dbl_4", double, width, 7, 1)
    double = _conv(f"{name}.branch7x7dbl_5", double, 192, 1, 7)
    pool = _conv(f"{name}.branch_pool", _average_pool(x), 192)
    return _join(one, seven, double, pool)


def _block_d(name, x):
    three = _conv(f"{name}.branch3x3_1", x, 192)
    three = _conv(f"{name}.branch3x3_2", three, 320, 3, 3, 2, "VALID")
    seven = _conv(f"{name}.branch7x7x3_1", x, 192)
    seven = _conv(f"{name}.branch7x7x3_2", seven, 192, 1, 7)
    seven = _conv(f"{name}.branch7x7x3_3", seven, 192, 7, 1)
    seven = _conv(f"{name}.branch7x7x3_4", seven, 192, 3, 3, 2, "VALID")
    return _join(three, seven, _max_pool(x))


def _block_e(name, x, pool):
    one = _conv(f"{name}.branch1x1", x, 320)
    three = _conv(f"{name}.branch3x3_1", x, 384)
    wide = _conv(f"{name}.branch3x3_2a", three, 384, 1, 3)
    high = _conv(f"{name}.branch3x3_2b", three, 384, 3, 1)
    double = _conv(f"{name}.branch3x3dbl_1", x, 448)
    double = _conv(f"{name}.branch3x3dbl_2", double, 384, 3, 3)
    wider = _conv(f"{name}.branch3x3dbl_3a", double, 384, 1, 3)
    higher = _conv(f"{name}.branch3x3dbl_3b", double, 384, 3, 1)
    pooled = _conv(f"{name}.branch_pool", pool(x), 192)
    return _join(one, wide, high, wider, higher, pooled)
