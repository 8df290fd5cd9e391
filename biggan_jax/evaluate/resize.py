"""Resizing as other programs do it, to the pixel, as two products with small matrices.

Scores move by more than models do when the resize is another one, so each has a name:
  tf1_bilinear: TensorFlow 1's `resize_bilinear`: pixel i of the result is read at i * size / out,
    not at pixel centres, and nothing is smoothed. FID's original graph and torch-fidelity.
  torch_bilinear: `F.interpolate(align_corners=False)`: at pixel centres, nothing is smoothed.
    pytorch-fid.
  pil_bicubic: Pillow's, on floats: at pixel centres, a = -1/2, smoothed where it shrinks.
    clean-fid, where it is called "clean".
  pil_bicubic_8bit: Pillow's on pictures as they are: rounded to 8 bits after columns, then rows.
    dgm-eval.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

KINDS = ("tf1_bilinear", "torch_bilinear", "pil_bicubic", "pil_bicubic_8bit")


def resize(images: jax.Array, kind: str, size: int) -> jax.Array:
    """Resizes images, without keeping their proportions.

    Args:
      images: [N, H, W, C], float, 0..255.
      kind: one of `KINDS`.
      size: pixels of a side of the result.

    Returns:
      [N, size, size, C], float32, 0..255; not rounded, but for pil_bicubic_8bit.
    """
    rows, columns = (jnp.asarray(matrix(kind, n, size)) for n in images.shape[1:3])
    # Columns first, as Pillow has it. In bfloat16, an accelerator's default, 255 levels are lost.
    products = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    images = images.astype(jnp.float32)
    images = products("pw,nhwc->nhpc", columns, images)
    if kind == "pil_bicubic_8bit":
        images = _to_8_bits(images)
    images = products("ph,nhwc->npwc", rows, images)
    if kind == "pil_bicubic_8bit":
        return _to_8_bits(images)
    # A cubic overshoots.
    return jnp.clip(images, 0, 255) if kind == "pil_bicubic" else images


def _to_8_bits(images):
    """Halves go up, as Pillow has it."""
    return jnp.clip(jnp.floor(images + 0.5), 0, 255)


@functools.cache
def matrix(kind: str, size: int, out: int) -> np.ndarray:
    """Returns `[out, size]` float32: what each pixel of the result takes from the pixels of a row.

    Raises:
      ValueError: if there is no such kind.
    """
    if kind in ("pil_bicubic", "pil_bicubic_8bit"):
        return _pillow(size, out)
    if kind == "tf1_bilinear":
        # In float32, as the kernel of TensorFlow computes it.
        at = np.arange(out, dtype=np.float32) * np.float32(size / out)
    elif kind == "torch_bilinear":
        at = np.maximum((np.arange(out) + 0.5) * (size / out) - 0.5, 0)
    else:
        raise ValueError(f"resize {kind!r} is none of {', '.join(KINDS)}.")
    low = np.minimum(np.floor(at).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((out, size), np.float32)
    np.add.at(weights, (np.arange(out), low), 1 - (at - low))
    np.add.at(weights, (np.arange(out), high), at - low)
    return weights


def _pillow(size, out):
    """The cubic of Keys 1981 with a = -1/2, as wide as a pixel of the result."""
    scale = size / out
    wide = max(scale, 1.0)
    weights = np.zeros((out, size))
    for i in range(out):
        centre = (i + 0.5) * scale
        first = max(0, int(centre - 2 * wide + 0.5))
        last = min(size, int(centre + 2 * wide + 0.5))
        x = np.abs((np.arange(first, last) - centre + 0.5) / wide)
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        row = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights[i, first:last] = row / row.sum()
    return weights.astype(np.float32)
