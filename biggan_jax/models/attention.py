"""Self-attention, the non-local block of SAGAN as BigGAN uses it (spec section 5)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.config import ConfigError
from biggan_jax.models import attend


class Attention(nn.Module):
    """`gamma * o(softmax(theta phi^T) g) + x`, keys and values max-pooled 2x2, gamma 0 at first.

    Attributes:
      conv: makes a spectrally normalised convolution.
      backend: of the devices that will run it, as in `ops.SpectralConv`.
    """

    conv: Callable[..., nn.Module]
    backend: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape and dtype; C is a multiple of 8, H and W are even."""
        b, h, w, c = x.shape
        if c % 8:
            raise ConfigError(
                f"attention at {h} px: needs a multiple of 8 channels, and there are {c};"
                " change model.g_ch or model.d_ch, or the attention sizes."
            )
        project = lambda n, name: self.conv(n, size=1, bias=False, name=name)(x)  # noqa: E731
        pool = lambda y: nn.max_pool(y, (2, 2), (2, 2))  # noqa: E731
        theta = project(c // 8, "theta").reshape(b, h * w, c // 8)
        phi = pool(project(c // 8, "phi")).reshape(b, h * w // 4, c // 8)
        g = pool(project(c // 2, "g")).reshape(b, h * w // 4, c // 2)
        mixed = attend.attend(theta, phi, g, side=min(h, w), backend=self.backend)
        mixed = mixed.reshape(b, h, w, c // 2)
        o = self.conv(c, size=1, bias=False, name="o")(mixed)
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        return gamma.astype(x.dtype) * o + x
