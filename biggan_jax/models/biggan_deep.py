"""The BigGAN-deep generator and discriminator (Brock et al. 2018, appendix B; spec section 6)."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import biggan, ops, resample

# BigGAN's tables, with a stage of two blocks where BigGAN has a block: in G the channels before and
# after each, in D those after the stem and after each, for BigGAN's first block is a stem here.
G_CHANNELS = biggan.G_CHANNELS
D_CHANNELS = biggan.D_CHANNELS
COMPARE_GAN_D_CHANNELS = D_CHANNELS | {64: ((2, 4, 8, 16, 16), 4)}
BOTTLENECK = 4  # The 3x3 convolutions run on a quarter of the channels.


class GBlock(nn.Module):
    """A bottleneck of four BN-ReLU-convs beside an identity (spec section 6.1).

    Attributes:
      features: output channels, at most the input's: the shortcut drops the last ones.
      up: None or how the size is doubled, a `resample` of `SpectralConv`.
      conv: makes a spectrally normalised convolution.
      bn: makes a batch normalisation.
      backend: as in `ops.SpectralConv`.
    """

    features: int
    up: str | None
    conv: Callable[..., nn.Module]
    bn: Callable[..., nn.Module]
    backend: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, A] to [B, H', W', features] under a condition [B, D]."""
        middle = x.shape[-1] // BOTTLENECK
        h = nn.relu(self.bn(name="bn1")(x, condition, train))
        h = self.conv(middle, size=1, name="conv1")(h)
        h = nn.relu(self.bn(name="bn2")(h, condition, train))
        h = self.conv(middle, resample=self.up, name="conv2")(h)
        h = nn.relu(self.bn(name="bn3")(h, condition, train))
        h = self.conv(middle, name="conv3")(h)
        h = nn.relu(self.bn(name="bn4")(h, condition, train))
        h = self.conv(self.features, size=1, name="conv4")(h)
        shortcut = x[..., : self.features]
        if self.up == "up":
            shortcut = resample.nearest_up2(shortcut, backend=self.backend)
        elif self.up == "unpool":
            shortcut = resample.unpool2(shortcut)
        return h + shortcut


class Generator(nn.Module):
    """G(z, y): the whole of z and the class embedding condition every block.

    Attributes:
      resolution: of the images, pixels; a key of `G_CHANNELS`.
      ch: width multiplier.
      z_dim: length of z.
      num_classes: K.
      shared_dim: length of the class embedding.
      z_first: whether the condition is [z, embedding] and not [embedding, z].
      rgb_channels: of the last convolution; the first three are the image.
      up: how sizes are doubled, a `resample` of `SpectralConv`.
      attention: sizes after whose last block attention stands.
      attend: makes an attention.
      conv: makes a spectrally normalised convolution.
      dense: makes a spectrally normalised dense layer.
      bn: makes a batch normalisation.
      out_bn: makes the last, unconditional one.
      kernel_init: initialiser of the class table.
      remat: recompute the blocks' activations in the backward pass.
      backend: as in `ops.SpectralConv`.
    """

    resolution: int
    ch: int
    z_dim: int
    num_classes: int
    shared_dim: int
    z_first: bool
    rgb_channels: int
    up: str
    attention: tuple[int, ...]
    attend: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    bn: Callable[..., nn.Module]
    out_bn: Callable[..., nn.Module]
    kernel_init: ops.Init
    remat: bool = False
    backend: str | None = None

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """Generates images.

        Args:
          z: [B, z_dim] latents.
          labels: [B] integers in [0, num_classes).
          train: batch statistics (True) or stored ones in the BNs.

        Returns:
          [B, resolution, resolution, 3] in [-1, 1], float32.
        """
        widths = [m * self.ch for m in G_CHANNELS[self.resolution]]
        shared = ops.Embed(self.num_classes, self.shared_dim, self.kernel_init, name="shared")(
            labels
        )
        condition = jnp.concatenate([z, shared] if self.z_first else [shared, z], axis=1)
        h = self.dense(widths[0] * 16, name="linear")(condition).reshape(-1, 4, 4, widths[0])
        block = nn.remat(GBlock, static_argnums=(3,)) if self.remat else GBlock
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            parts = self.conv, self.bn, self.backend
            h = block(before, None, *parts, name=f"block{2 * i}")(h, condition, train)
            h = block(after, self.up, *parts, name=f"block{2 * i + 1}")(h, condition, train)
            if h.shape[1] in self.attention:
                h = self.attend(name=f"attention{h.shape[1]}")(h)
        h = nn.relu(self.out_bn(name="out_bn")(h, None, train))
        h = self.conv(self.rgb_channels, keep=3, name="out_conv")(h)
        return jnp.tanh(h.astype(jnp.float32))


class DBlock(nn.Module):
    """ReLU-conv four times beside an identity (spec section 6.2).

    Attributes:
      features: output channels, at least the input's: a 1x1 convolution makes the new ones.
      down: whether to halve the size.
      conv: makes a spectrally normalised convolution.
      backend: as in `ops.SpectralConv`.
    """

    features: int
    down: bool
    conv: Callable[..., nn.Module]
    backend: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, A] to [B, H', W', features]."""
        middle, missing = self.features // BOTTLENECK, self.features - x.shape[-1]
        h = self.conv(middle, size=1, name="conv1")(nn.relu(x))
        h = self.conv(middle, name="conv2")(nn.relu(h))
        h = self.conv(middle, name="conv3")(nn.relu(h))
        # The mean is taken before the last 1x1.
        by = "down" if self.down else None
        h = self.conv(self.features, size=1, resample=by, name="conv4")(nn.relu(h))
        shortcut = resample.avg_pool2(x, backend=self.backend) if self.down else x
        if missing:
            new = self.conv(missing, size=1, name="conv_sc")(shortcut)
            shortcut = jnp.concatenate([shortcut, new], axis=-1)
        return h + shortcut


class Discriminator(nn.Module):
    """D(x, y), a raw logit an image; the head is BigGAN's.

    Attributes:
      resolution: of the images, pixels.
      ch: width multiplier.
      num_classes: K.
      channels: `D_CHANNELS[resolution]` or another table's entry.
      unit_range: whether the network wants images in [0, 1].
      attention: sizes after whose second block attention stands.
      attend: makes an attention.
      conv: makes a spectrally normalised convolution.
      dense: makes a spectrally normalised dense layer.
      embed: makes a spectrally normalised class table.
      remat: recompute the blocks' activations in the backward pass.
      backend: as in `ops.SpectralConv`.
    """

    resolution: int
    ch: int
    num_classes: int
    channels: tuple[tuple[int, ...], int]
    unit_range: bool
    attention: tuple[int, ...]
    attend: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    embed: Callable[..., nn.Module]
    remat: bool = False
    backend: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Maps images [B, R, R, 3] in [-1, 1] and labels [B] to logits [B], float32."""
        (stem, *multiples), halvings = self.channels
        block = nn.remat(DBlock) if self.remat else DBlock
        x = (x + 1) / 2 if self.unit_range else x
        h = self.conv(stem * self.ch, name="in_conv")(x)
        for i, multiple in enumerate(multiples):
            width = multiple * self.ch
            parts = self.conv, self.backend
            h = block(width, i < halvings, *parts, name=f"block{2 * i}")(h)
            h = block(width, False, *parts, name=f"block{2 * i + 1}")(h)
            if i < halvings and h.shape[1] in self.attention:
                h = self.attend(name=f"attention{h.shape[1]}")(h)
        return biggan.judge(h, labels, self.num_classes, self.dense, self.embed)
