"""Convolutions of networks that are only run: batch norm lies in their kernel and bias."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.config import ConfigError

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Conv(nn.Module):
    """A convolution with bias.

    features: channels of the result; None for a depthwise one, a filter a channel.
    size: rows and columns of the kernel.
    stride: pixels between two outputs.
    padding: "SAME", as TensorFlow has it, or "VALID".
    form: of depthwise ones, "plain" or "shifted": the sum of shifted products, which XLA on CPUs
      runs 3 to 12 times as fast as its own grouped convolution.
    """

    features: int | None
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    form: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [N, H', W', features] of x [N, H, W, C], in its dtype."""
        channels = x.shape[-1]
        depthwise = self.features is None
        features = channels if self.features is None else self.features
        shape = (*self.size, 1 if depthwise else channels, features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,)).astype(x.dtype)
        if depthwise and self.form == "shifted":
            return _shifted(x, kernel, self.stride) + bias
        if self.size == (1, 1) and self.stride == 1:
            return x @ kernel[0, 0] + bias
        groups = channels if depthwise else 1
        return bias + jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=_DIMENSIONS,
            feature_group_count=groups,
        )


def _shifted(x, kernel, stride):
    """A depthwise convolution with padding SAME."""
    size = kernel.shape[0]
    outs = [-(-n // stride) for n in x.shape[1:3]]
    lacks = [
        max(0, (out - 1) * stride + size - n) for out, n in zip(outs, x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *[(n // 2, n - n // 2) for n in lacks], (0, 0)))
    total = jnp.zeros((), x.dtype)
    for i in range(size):
        for j in range(size):
            rows = slice(i, i + (outs[0] - 1) * stride + 1, stride)
            columns = slice(j, j + (outs[1] - 1) * stride + 1, stride)
            total = total + x[:, rows, columns] * kernel[i, j, 0]
    return total


def fold(state: Mapping[str, Any], conv: str, bn: str, eps: float) -> dict[str, np.ndarray]:
    """Returns kernel and bias of a torch convolution without bias and its batch norm.

    Args:
      state: torch's tensors by name.
      conv: name of the convolution; its kernel is OIHW.
      bn: name of the batch norm.
      eps: of the batch norm.

    Raises:
      ConfigError: if a tensor is missing or its shape does not fit.
    """
    kernel = tensor(state, f"{conv}.weight").astype(np.float64)
    mean, variance, gain, bias = (
        tensor(state, f"{bn}.{name}", kernel.shape[:1]).astype(np.float64)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    gain = gain / np.sqrt(variance + eps)
    kernel = kernel.transpose(2, 3, 1, 0) * gain
    return {"kernel": kernel.astype(np.float32), "bias": (bias - mean * gain).astype(np.float32)}


def tensor(state: Mapping[str, Any], name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Returns one of torch's tensors.

    Raises:
      ConfigError: if it is missing, no tensor of floats, of another shape, or not finite.
    """
    if name not in state:
        raise ConfigError(f"the tensor {name!r} is missing.")
    array = state[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ConfigError(f"{name!r} is not a tensor of floats.")
    if shape is not None and array.shape != shape:
        raise ConfigError(f"{name!r} is of shape {list(array.shape)} and must be {list(shape)}.")
    if not np.isfinite(array).all():
        raise ConfigError(f"{name!r} holds values that are not finite.")
    return array


def check(params: Mapping[str, Any], network: nn.Module, size: int) -> None:
    """Checks parameters against a network called on images of `size` pixels.

    Raises:
      ConfigError: naming the first array that is missing or of another shape.
    """
    images = jnp.zeros((1, size, size, 3))
    wanted = jax.eval_shape(lambda: network.init(jax.random.key(0), images))["params"]
    for module in sorted(wanted.keys() | params.keys()):
        for name in ("kernel", "bias"):
            want = wanted.get(module, {}).get(name)
            have = params.get(module, {}).get(name)
            if want is None and have is None:
                continue
            if want is None or have is None or want.shape != have.shape:
                shapes = ["missing" if a is None else list(a.shape) for a in (have, want)]
                raise ConfigError(f"{module}/{name} is {shapes[0]} and must be {shapes[1]}.")
