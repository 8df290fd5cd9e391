"""Orthogonal regularisation of the generator (paper section 3.1, equation 3; spec section 12)."""

from typing import Any

import jax
import jax.numpy as jnp


def ortho_gradient(kernel: jax.Array, beta: float) -> jax.Array:
    """Gradient of `beta * ||W^T W * (1 - I)||_F^2`, W [rest, out] with filters as columns.

    It is `4 beta (W W^T W - W diag(|w_o|^2))`. The product is taken through the smaller of
    `W^T W` and `W W^T`, so nothing larger than min(rest, out)^2 is held: 20 x 20 for the first
    linear layer of BigGAN-128, whose `W^T W` would be 2.25 GiB.

    Args:
      kernel: [..., out], a raw (not spectrally normalised) weight.
      beta: strength.

    Returns:
      An array of the kernel's shape.
    """
    w = kernel.reshape(-1, kernel.shape[-1])
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    rest, out = w.shape
    product = dot(w, dot(w.T, w)) if out <= rest else dot(dot(w, w.T), w)
    return (4 * beta * (product - w * jnp.sum(w * w, axis=0))).reshape(kernel.shape)


def add_ortho_gradient(grads: Any, params: Any, beta: float) -> Any:
    """Adds the gradient of equation 3 to every kernel's; class tables are left alone.

    Args:
      grads: a tree like `params`.
      params: a tree whose weights of convolutions and dense layers are leaves named `kernel`.
      beta: strength; 0 returns `grads` as they are.
    """
    if not beta:
        return grads

    def add(path, grad, param):
        is_kernel = path[-1].key == "kernel"
        return grad + ortho_gradient(param, beta) if is_kernel else grad

    return jax.tree_util.tree_map_with_path(add, grads, params)
