"""Batch normalisation over the global batch, plain and conditional.

Under `jit` with a batch-sharded array a mean over the batch axis is the mean over all devices, so
cross-replica statistics need no axis names. Groups smaller than the batch are a reshape.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import ops


class BatchNorm(nn.Module):
    """Normalises per channel, then applies a gain and a bias that may differ by image.

    Without a condition the affine part is a learned vector (the generator's head). With one, both
    come from it: `gain = 1 + c Wg`, `bias = c Wb` with spectrally normalised projections, or, where
    the condition is a label, from a table a class (spec section 7.1).

    Running statistics are the biased variance; torch stores it times n / (n - 1).

    Attributes:
      eps: added to the variance.
      momentum: weight of the old running value.
      sn_eps: spectral norm's eps for the projections.
      sigma_rule: how spectral norm finds their sigma.
      gain_offset: what is added to a conditional gain; 0 only for weights of compare_gan, which
        lacks the 1.
      group_size: images that share statistics, at most the batch; larger means the batch.
      woven: how many batches the images are of, image i of batch i % woven. Each batch is
        normalised by itself, and the running statistics move as if they came one by one. (One
        batch after the other in one array would move images between devices.)
      kernel_init: initialiser of the projections.
      dtype: of the result.
    """

    eps: float = 1e-4
    momentum: float = 0.9
    sn_eps: float = 1e-4
    sigma_rule: str = "fresh"
    gain_offset: float = 1.0
    group_size: int = 1 << 30
    kernel_init: ops.Init = ops.INITS["orthogonal"]
    num_classes: int = 0
    woven: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None, train: bool) -> jax.Array:
        """Normalises x.

        Args:
          x: [B, H, W, C].
          condition: None, a vector an image [B, D] or a label an image [B] (integers).
          train: whether to use the batch's own statistics (and move the running ones, where
            `batch_stats` is mutable) or the stored ones.

        Returns:
          [B, H, W, C] in `dtype`.
        """
        channels = x.shape[-1]
        gain, bias = self._affine(condition, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            batches = x.reshape(-1, self.woven, *x.shape[1:])
            moments = [batch_moments(batches[:, i], self.group_size) for i in range(self.woven)]
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                keep = self.momentum
                for mean, var in moments:
                    running_mean.value = keep * running_mean.value + (1 - keep) * mean.mean(0)
                    running_var.value = keep * running_var.value + (1 - keep) * var.mean(0)
            mean, var = (_weave(statistic, len(x)) for statistic in zip(*moments, strict=True))
        else:
            mean, var = running_mean.value[None], running_var.value[None]
        scale = _per_image(jax.lax.rsqrt(var + self.eps), len(x)) * gain
        return ((x - _per_image(mean, len(x))) * scale + bias).astype(self.dtype)

    def _affine(self, condition, channels):
        """Gain and bias, each broadcastable to [B, 1, 1, C]."""
        if condition is None:
            gain = self.param("gain", nn.initializers.ones, (channels,), jnp.float32)
            return gain, self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        if condition.ndim == 1:
            table = lambda name: ops.Embed(  # noqa: E731
                self.num_classes, channels, kernel_init=self.kernel_init, name=name
            )
            gain, bias = table("gain")(condition), table("bias")(condition)
        else:
            dense = lambda name: ops.SpectralDense(  # noqa: E731
                channels,
                bias=False,
                eps=self.sn_eps,
                rule=self.sigma_rule,
                kernel_init=self.kernel_init,
                name=name,
            )
            gain, bias = dense("gain")(condition), dense("bias")(condition)
        return (self.gain_offset + gain)[:, None, None, :], bias[:, None, None, :]


def batch_moments(x: jax.Array, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each group of consecutive images, per channel.

    The variance is the mean of squared differences from the mean: E[x^2] - E[x]^2 cancels badly
    where the mean is large.

    Args:
      x: [B, H, W, C], float32.
      group_size: must divide B where it is smaller than B.

    Returns:
      Two arrays [B / group_size, C].
    """
    groups = max(1, len(x) // group_size)
    grouped = x.reshape(groups, -1, *x.shape[1:]) if groups > 1 else x[None]
    mean = grouped.mean((1, 2, 3))
    var = jnp.square(grouped - mean[:, None, None, None]).mean((1, 2, 3))
    return mean, var


def _weave(statistics, images):
    """Those of all batches for images that are woven: [groups, C] each to [images, C]."""
    if len(statistics) == 1:
        return statistics[0]
    groups, each = len(statistics[0]), images // len(statistics)
    by_image = jnp.repeat(jnp.stack(statistics, 1), each // groups, axis=0)
    return by_image.reshape(images, -1)


def _per_image(statistic, batch):
    """[groups, C] to [B, 1, 1, C], or [1, 1, 1, C] for one group."""
    groups = len(statistic)
    if groups > 1:
        statistic = jnp.repeat(statistic, batch // groups, axis=0)
    return statistic[:, None, None, :]
