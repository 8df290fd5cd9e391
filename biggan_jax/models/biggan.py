"""The BigGAN generator and discriminator (Brock et al. 2018, appendix B; spec sections 3 and 4)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import ops

# Channels after the first linear and after each block, in multiples of ch. Each block doubles the
# size, from 4x4. 16 px is ours, for the demo: the 32-px table with a block less.
G_CHANNELS: dict[int, tuple[int, ...]] = {
    16: (4, 4, 4),
    32: (4, 4, 4, 4),
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
# Channels after each block, in multiples of ch, and how many of the first blocks halve the size.
D_CHANNELS: dict[int, tuple[tuple[int, ...], int]] = {
    16: ((4, 4, 4), 2),
    32: ((4, 4, 4, 4), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
    512: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
# At 32 px compare_gan's source halves in all blocks but the last; spec 4.1 has it otherwise.
COMPARE_GAN_D_CHANNELS = D_CHANNELS | {32: ((2, 2, 2, 2), 3), 64: ((2, 4, 8, 16, 16), 4)}


class GBlock(nn.Module):
    """BN-ReLU-up-conv-BN-ReLU-conv beside an up-sampled 1x1 shortcut (spec section 3.4).

    Attributes:
      features: output channels.
      up: how the size is doubled, a `resample` of `SpectralConv`.
      conv: makes a spectrally normalised convolution.
      bn: makes a batch normalisation.
    """

    features: int
    up: str
    conv: Callable[..., nn.Module]
    bn: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        """Maps [B, H, W, A] to [B, 2H, 2W, features] under a condition [B, D] or labels [B]."""
        h = nn.relu(self.bn(name="bn1")(x, condition, train))
        h = self.conv(self.features, resample=self.up, name="conv1")(h)
        h = nn.relu(self.bn(name="bn2")(h, condition, train))
        h = self.conv(self.features, name="conv2")(h)
        return h + self.conv(self.features, size=1, resample=self.up, name="conv_sc")(x)


class Generator(nn.Module):
    """G(z, y).

    Attributes:
      resolution: of the images, pixels; a key of `G_CHANNELS`.
      ch: width multiplier.
      z_dim: length of z; a multiple of the slots where `hierarchical_z`.
      num_classes: K.
      shared_dim: length of the shared class embedding.
      shared_embedding: one class table for all BNs, or a gain and a bias table a BN.
      hierarchical_z: slot 0 of z feeds the first linear and slot i conditions block i, or the
        whole of z feeds the first linear alone. Needs `shared_embedding`.
      z_first: whether the condition is [slot, embedding] and not [embedding, slot].
      rgb_channels: of the last convolution; the first three are the image.
      up: how sizes are doubled, a `resample` of `SpectralConv`.
      attention: sizes after whose block attention stands.
      attend: makes an attention.
      conv: makes a spectrally normalised convolution.
      dense: makes a spectrally normalised dense layer.
      bn: makes a batch normalisation.
      out_bn: makes the last, unconditional one.
      kernel_init: initialiser of the shared table.
      remat: recompute the blocks' activations in the backward pass.
    """

    resolution: int
    ch: int
    z_dim: int
    num_classes: int
    shared_dim: int
    shared_embedding: bool
    hierarchical_z: bool
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
        first, *widths = (m * self.ch for m in G_CHANNELS[self.resolution])
        chunks = jnp.split(z, len(widths) + 1, axis=1) if self.hierarchical_z else [z]
        if self.shared_embedding:
            shared = ops.Embed(self.num_classes, self.shared_dim, self.kernel_init, name="shared")(
                labels
            )
        h = self.dense(first * 16, name="linear")(chunks[0]).reshape(-1, 4, 4, first)
        block = nn.remat(GBlock, static_argnums=(3,)) if self.remat else GBlock
        for i, width in enumerate(widths):
            if self.hierarchical_z:
                parts = [shared, chunks[i + 1]]
                condition = jnp.concatenate(parts[::-1] if self.z_first else parts, axis=1)
            else:
                condition = shared if self.shared_embedding else labels
            h = block(width, self.up, self.conv, self.bn, name=f"block{i}")(h, condition, train)
            if h.shape[1] in self.attention:
                h = self.attend(name=f"attention{h.shape[1]}")(h)
        h = nn.relu(self.out_bn(name="out_bn")(h, None, train))
        h = self.conv(self.rgb_channels, keep=3, name="out_conv")(h)
        return jnp.tanh(h.astype(jnp.float32))


class DBlock(nn.Module):
    """[ReLU]-conv-ReLU-conv-pool beside a shortcut (spec section 4.2).

    Attributes:
      features: output channels, also of the hidden layer.
      down: whether to halve the size.
      first: whether this is the block on the image: no activation before its first convolution.
      same_width_shortcut: whether a block that halves the size at equal width has a shortcut;
        compare_gan has none there.
      conv: makes a spectrally normalised convolution.
    """

    features: int
    down: bool
    first: bool
    same_width_shortcut: bool
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, A] to [B, H', W', features]."""
        resample = "down" if self.down else None
        h = self.conv(self.features, name="conv1")(x if self.first else nn.relu(x))
        h = self.conv(self.features, resample=resample, name="conv2")(nn.relu(h))
        if x.shape[-1] == self.features and not self.same_width_shortcut:
            return h
        if self.down or x.shape[-1] != self.features:
            # The shortcut takes the raw x. Its 1x1 and the mean commute, so one order serves the
            # first block (pool, then 1x1) and the others (1x1, then pool).
            x = self.conv(self.features, size=1, resample=resample, name="conv_sc")(x)
        return h + x


class Discriminator(nn.Module):
    """D(x, y), a raw logit an image: linear on summed features plus the class projection.

    Attributes:
      resolution: of the images, pixels.
      ch: width multiplier.
      num_classes: K.
      channels: `D_CHANNELS[resolution]` or another table's entry.
      same_width_shortcut: as in `DBlock`.
      unit_range: whether the network wants images in [0, 1].
      attention: sizes after whose block attention stands.
      attend: makes an attention.
      conv: makes a spectrally normalised convolution.
      dense: makes a spectrally normalised dense layer.
      embed: makes a spectrally normalised class table.
      remat: recompute the blocks' activations in the backward pass.
    """

    resolution: int
    ch: int
    num_classes: int
    channels: tuple[tuple[int, ...], int]
    same_width_shortcut: bool
    unit_range: bool
    attention: tuple[int, ...]
    attend: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]
    embed: Callable[..., nn.Module]
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array) -> jax.Array:
        """Maps images [B, R, R, 3] in [-1, 1] and labels [B] to logits [B], float32."""
        multiples, halvings = self.channels
        block = nn.remat(DBlock) if self.remat else DBlock
        h = (x + 1) / 2 if self.unit_range else x
        for i, multiple in enumerate(multiples):
            h = block(
                multiple * self.ch,
                i < halvings,
                i == 0,
                self.same_width_shortcut,
                self.conv,
                name=f"block{i}",
            )(h)
            if i < halvings and h.shape[1] in self.attention:
                h = self.attend(name=f"attention{h.shape[1]}")(h)
        return judge(h, labels, self.num_classes, self.dense, self.embed)


def judge(
    h: jax.Array,
    labels: jax.Array,
    num_classes: int,
    dense: Callable[..., nn.Module],
    embed: Callable[..., nn.Module],
) -> jax.Array:
    """D's head: linear on features summed over the pixels, and the class projection (spec 4.3).

    To be called where modules may be made; makes `linear` and `embed`.

    Args:
      h: [B, H, W, C] features.
      labels: [B] integers in [0, num_classes).
      num_classes: K.
      dense: makes a spectrally normalised dense layer.
      embed: makes a spectrally normalised class table.

    Returns:
      [B] logits, float32.
    """
    h = nn.relu(h).astype(jnp.float32).sum((1, 2))
    projection = embed(num_classes, h.shape[-1], name="embed")(labels)
    return dense(1, name="linear")(h)[:, 0] + jnp.sum(projection * h, axis=1)
