"""DINOv2's vision transformers, whose Fréchet distance Stein et al. 2023 ask for in FID's place.

The networks are those of `facebookresearch/dinov2`, the pixels those of `dgm-eval`, the program of
"Exposing flaws of generative model evaluation metrics": Pillow's bicubic resize to 224 px and the
means and deviations of ImageNet. The feature is the class token after the last norm.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.evaluate import folded

# Channels, blocks, heads.
SHAPES = {"dinov2_vitb14": (768, 12, 12), "dinov2_vitl14": (1024, 24, 16)}
SIZE = 224
RESIZE = "pil_bicubic_8bit"
ZERO = (123.675, 116.28, 103.53)
UNIT = (58.395, 57.12, 57.375)
WHERE = "https://dl.fbaipublicfiles.com/dinov2"
_PATCH = 14
_GRID = SIZE // _PATCH
_TRAINED_GRID = 37  # 518 px.
_EPS = 1e-6


class VisionTransformer(nn.Module):
    """Calls return the features `[N, channels]`.

    channels: of each token.
    blocks: of attention and perceptron.
    heads: of attention.
    """

    channels: int
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        """Takes [N, 224, 224, 3], `(x - ZERO) / UNIT` of floats 0..255."""
        count = len(x)
        patches = x.reshape(count, _GRID, _PATCH, _GRID, _PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(count, _GRID**2, _PATCH**2 * 3)
        tokens = nn.Dense(self.channels, name="patches")(patches)
        place = self.param("place", nn.initializers.normal(0.02), (1 + _GRID**2, self.channels))
        tokens = jnp.pad(tokens, ((0, 0), (1, 0), (0, 0))) + place
        for i in range(self.blocks):
            h = nn.LayerNorm(_EPS, name=f"block{i}_norm1")(tokens)
            tokens = tokens + self._attention(h, f"block{i}_")
            h = nn.LayerNorm(_EPS, name=f"block{i}_norm2")(tokens)
            h = nn.gelu(nn.Dense(4 * self.channels, name=f"block{i}_fc1")(h), approximate=False)
            tokens = tokens + nn.Dense(self.channels, name=f"block{i}_fc2")(h)
        return {"features": nn.LayerNorm(_EPS, name="norm")(tokens[:, 0])}

    def _attention(self, x, name):
        h = nn.Dense(3 * self.channels, name=f"{name}qkv")(x)
        h = h.reshape(*x.shape[:2], 3, self.heads, self.channels // self.heads)
        h = jax.nn.dot_product_attention(h[:, :, 0], h[:, :, 1], h[:, :, 2])
        return nn.Dense(self.channels, name=f"{name}out")(h.reshape(x.shape))


def convert(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the parameters of `VisionTransformer(*SHAPES[name])` of the released tensors.

    What scales a branch lies in its last product, the class token and the places of the tokens, for
    224 px, in one array.

    Raises:
      ConfigError: if a tensor is missing or of another shape.
    """
    channels, blocks, _ = SHAPES[name]

    def tensor(key, *shape):
        return folded.tensor(state, key, shape)

    def dense(key, inputs, outputs, scale=None):
        kernel = tensor(f"{key}.weight", outputs, inputs).T
        bias = tensor(f"{key}.bias", outputs)
        if scale is not None:
            gamma = tensor(scale, outputs)
            kernel, bias = kernel * gamma, bias * gamma
        return {"kernel": kernel, "bias": bias}

    def norm(key):
        return {"scale": tensor(f"{key}.weight", channels), "bias": tensor(f"{key}.bias", channels)}

    pixels = tensor("patch_embed.proj.weight", channels, 3, _PATCH, _PATCH)
    place = tensor("pos_embed", 1, 1 + _TRAINED_GRID**2, channels)[0]
    first = tensor("cls_token", 1, 1, channels)[0] + place[:1]
    params: dict[str, Any] = {
        "patches": {
            "kernel": pixels.transpose(2, 3, 1, 0).reshape(-1, channels),
            "bias": tensor("patch_embed.proj.bias", channels),
        },
        "place": np.concatenate([first, _shrink(place[1:])]),
        "norm": norm("norm"),
    }
    for i in range(blocks):
        block = f"blocks.{i}."
        params |= {
            f"block{i}_norm1": norm(block + "norm1"),
            f"block{i}_qkv": dense(block + "attn.qkv", channels, 3 * channels),
            f"block{i}_out": dense(block + "attn.proj", channels, channels, block + "ls1.gamma"),
            f"block{i}_norm2": norm(block + "norm2"),
            f"block{i}_fc1": dense(block + "mlp.fc1", channels, 4 * channels),
            f"block{i}_fc2": dense(block + "mlp.fc2", 4 * channels, channels, block + "ls2.gamma"),
        }
    return params


def _shrink(place):
    """From the grid of training to ours, as `interpolate_pos_encoding` does it.

    That is torch's bicubic without smoothing, read not at the sizes' ratio but at 16.1 / 37.
    """
    weights = np.zeros((_GRID, _TRAINED_GRID))
    for i in range(_GRID):
        at = (i + 0.5) * _TRAINED_GRID / (_GRID + 0.1) - 0.5
        first = math.floor(at)
        for j in range(first - 1, first + 3):
            weights[i, min(max(j, 0), _TRAINED_GRID - 1)] += _cubic(abs(at - j))
    grid = place.reshape(_TRAINED_GRID, _TRAINED_GRID, -1).astype(np.float64)
    small = np.einsum("ph,qw,hwc->pqc", weights, weights, grid, optimize=True)
    return small.reshape(_GRID**2, -1).astype(np.float32)


def _cubic(x):
    """The cubic of Keys 1981 with torch's a = -3/4, of 0 <= x <= 2."""
    a = -0.75
    return ((a + 2) * x - (a + 3)) * x * x + 1 if x <= 1 else ((x - 5) * x + 8) * x * a - 4 * a
