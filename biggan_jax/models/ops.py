"""Spectrally normalised convolution, dense layer and embedding.

The left vector `u` of the power iteration is state, not a parameter: it lives in the collection
`spectral`, apart from BN statistics. A call moves it if and only if that collection is mutable, so
evaluation does one fresh iteration and stores nothing (spec section 8.1).

Foreign weights bring other rules (spec section 8.2), kept by `rule`:
  fresh: the above, the author's PyTorch port and ours.
  stored: evaluation takes sigma from stored u and v (torch's legacy spectral norm, Hugging Face).
  hub: as fresh, with |x| + eps where a norm is divided by (the interim port of the TF-Hub modules).
  shorter_side: as fresh, with u on the shorter side of the matrix (compare_gan).
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from biggan_jax.models import conv, resample

Init = Callable[..., jax.Array]

INITS: dict[str, Init] = {
    "orthogonal": nn.initializers.orthogonal(column_axis=-1),
    "n02": nn.initializers.normal(0.02),
    "xavier": nn.initializers.glorot_uniform(),
}


def as_matrix(kernel: jax.Array, rule: str, rows_are_outputs: bool = False) -> jax.Array:
    """Returns the matrix [rest, out] whose sigma divides a weight [..., features]."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    rows, columns = matrix.shape
    turned = rows <= columns if rule == "shorter_side" else rows_are_outputs
    return matrix.T if turned else matrix


def norm_or_eps(norm: jax.Array, eps: float, additive: bool) -> jax.Array:
    """Returns what to divide by: at least `eps`, or with `eps` added."""
    return norm + eps if additive else jnp.maximum(norm, eps)


def spectral_sigma(
    matrix: jax.Array, u: jax.Array, eps: float, additive: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One power iteration, then the largest singular value as it sees it (spec section 8.1).

    `u` and `v` are constants for differentiation, sigma is not: its gradient in `matrix` is
    `v^T u`, which removes the radial part of the gradient of anything computed from
    `matrix / sigma`.

    Args:
      matrix: [rest, out], float32.
      u: [1, out], of any length other than zero.
      eps: lower bound for the norms that are divided by.
      additive: whether eps is added to those norms instead.

    Returns:
      sigma, a scalar, the new u [1, out] of length 1 and v [1, rest].
    """
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    unit = lambda x: x / norm_or_eps(jnp.linalg.norm(x), eps, additive)  # noqa: E731
    fixed = jax.lax.stop_gradient(matrix)
    v = unit(dot(jax.lax.stop_gradient(u), fixed.T))
    right = dot(v, matrix)
    new_u = jax.lax.stop_gradient(unit(right))
    return jnp.sum(right * new_u), new_u, v


# On a pod; see `SpectralConv._few_pixels`.
_IMAGES_A_DEVICE = 8


class _Spectral(nn.Module):
    """Base of the three layers: hands out the kernel divided by its sigma."""

    def normalized(
        self, kernel: jax.Array, eps: float, rule: str, rows_are_outputs: bool = False
    ) -> jax.Array:
        """Returns kernel / sigma, float32, and moves `u` where `spectral` is mutable."""
        if self.has_variable("sigma", "sigma"):  # Found for all layers at once, see `gan.sigmas`.
            return divided(kernel, self.get_variable("sigma", "sigma"))
        matrix = as_matrix(kernel, rule, rows_are_outputs)
        rest, size = matrix.shape
        normal = lambda n: jax.random.normal(self.make_rng("params"), (1, n))  # noqa: E731
        u = self.variable("spectral", "u", normal, size)
        sigma, new_u, new_v = spectral_sigma(matrix, u.value, eps, additive=rule == "hub")
        moving = self.is_mutable_collection("spectral") and not self.is_initializing()
        if rule == "stored":
            v = self.variable("spectral", "v", normal, rest)
            if not moving:
                right = jnp.matmul(v.value, matrix, precision=jax.lax.Precision.HIGHEST)
                sigma = jnp.sum(right * u.value)
            else:
                v.value = new_v
        if moving:
            u.value = new_u
        return divided(kernel, sigma)


def divided(x: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns `x / sigma` in the dtype of `x`, computed in float32."""
    # A kernel of zeros has sigma 0 and stays a kernel of zeros.
    sigma = jnp.where(jnp.abs(sigma) < 1e-12, 1e-12, sigma)
    return (x.astype(jnp.float32) / sigma).astype(x.dtype)


class SpectralConv(_Spectral):
    """Convolution with padding SAME and stride 1, fused with the resampling beside it.

    Attributes:
      features: output channels.
      size: kernel side, 1 or 3.
      resample: None, "up" (nearest x2 before the convolution), "unpool" (zeros between pixels
        before it, as compare_gan has it) or "down" (2x2 mean after it).
      bias: whether to add a bias, zero at the start.
      eps: spectral norm's lower bound for norms.
      rule: how sigma is found.
      keep: how many of the output channels are computed, the first ones; None for all. Sigma is
        that of the whole kernel.
      kernel_init: kernel initialiser.
      dtype: of the convolution.
      backend: of the devices that will run it, which decides on its form (`models/forms.py`);
        None for JAX's default one.
    """

    features: int
    size: int = 3
    resample: str | None = None
    bias: bool = True
    eps: float = 1e-4
    rule: str = "fresh"
    keep: int | None = None
    kernel_init: Init = INITS["orthogonal"]
    dtype: jnp.dtype = jnp.float32
    backend: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features or keep]; H' is H, 2H or H / 2."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        sigma: jax.Array | None = None
        if self.has_variable("sigma", "sigma") and self._few_pixels(x, kernel):
            sigma = self.get_variable("sigma", "sigma")
        w = self.normalized(kernel, self.eps, self.rule) if sigma is None else kernel
        w = w[..., : self.keep].astype(self.dtype)
        x = x.astype(self.dtype)
        b = None
        if self.bias:
            b = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            b = b[: self.keep].astype(self.dtype)
        if self.size == 1:
            # A 1x1 convolution and its bias commute with nearest x2 and with the 2x2 mean: do
            # them where there are fewer pixels.
            if self.resample == "down":
                x = resample.avg_pool2(x, backend=self.backend)
            y = conv.conv1x1(x, w, backend=self.backend)
            y = y if sigma is None else divided(y, sigma)
            if self.resample == "unpool":  # The bias reaches the zeros too.
                y = resample.unpool2(y)
            y = y if b is None else y + b
            if self.resample == "up":
                y = resample.nearest_up2(y, backend=self.backend)
            return y
        x = resample.unpool2(x) if self.resample == "unpool" else x
        convolve = {
            None: conv.conv3x3,
            "unpool": conv.conv3x3,
            "up": conv.up_conv3x3,
            "down": conv.conv3x3_down,
        }
        y = convolve[self.resample](x, w, backend=self.backend)
        y = y if sigma is None else divided(y, sigma)
        return y if b is None else y + b

    def _few_pixels(self, x, kernel):
        """Whether a device's part of the result is smaller than the kernel.

        Then the result is divided by sigma in the kernel's place. Going back, sigma's gradient is a
        sum over what was divided, and reading a large kernel for it takes longer than convolving.
        """
        side = {"up": 2, "unpool": 2, "down": 0.5}.get(self.resample or "", 1)
        pixels = x.shape[1] * x.shape[2] * side**2
        return kernel.size >= _IMAGES_A_DEVICE * pixels * self.features


class SpectralDense(_Spectral):
    """Dense layer, [B, I] to [B, features], computed in float32."""

    features: int
    bias: bool = True
    eps: float = 1e-4
    rule: str = "fresh"
    kernel_init: Init = INITS["orthogonal"]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, I] to [B, features], float32."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = x.astype(jnp.float32) @ self.normalized(kernel, self.eps, self.rule)
        if self.bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return y


class SpectralEmbed(_Spectral):
    """Class table [K, features] with one sigma; `u` has one entry a class, as in the port."""

    num_classes: int
    features: int
    eps: float = 1e-4
    rule: str = "fresh"
    kernel_init: Init = INITS["orthogonal"]

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Maps labels [B] to [B, features], float32."""
        shape = (self.num_classes, self.features)
        table = self.param("embedding", self.kernel_init, shape, jnp.float32)
        return self.normalized(table, self.eps, self.rule, rows_are_outputs=True)[labels]


class Embed(nn.Module):
    """Class table [K, features] without spectral norm (spec section 8.3)."""

    num_classes: int
    features: int
    kernel_init: Init = INITS["orthogonal"]

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        """Maps labels [B] to [B, features], float32."""
        shape = (self.num_classes, self.features)
        return self.param("embedding", self.kernel_init, shape, jnp.float32)[labels]
