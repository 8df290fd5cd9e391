"""Orthogonal regularisation of the generator (paper section 3.1, equation 3; spec section 12)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from biggan_jax.parallel import mesh as mesh_lib

# Multiplications of a kernel from which on devices share its product. For less, an all-gather costs
# more than it saves.
_WORTH_SHARING = 1e9


def ortho_gradient(
    kernel: jax.Array, beta: float, mesh: Mesh | None = None, parallel: str = "data"
) -> jax.Array:
    """Gradient of `beta * ||W^T W * (1 - I)||_F^2`, W [rest, out] with filters as columns.

    It is `4 beta (W W^T W - W diag(|w_o|^2))`. The product is taken through the smaller of
    `W^T W` and `W W^T`, so nothing larger than min(rest, out)^2 is held: 20 x 20 for the first
    linear layer of BigGAN-128, whose `W^T W` would be 2.25 GiB.

    Args:
      kernel: [..., out], a raw (not spectrally normalised) weight.
      beta: strength.
      mesh: whose devices share the product, if it is worth it; each holds the kernel whole.
      parallel: as in the config: whether each device then has the whole result, or its part of it.

    Returns:
      An array of the kernel's shape.
    """
    w = kernel.reshape(-1, kernel.shape[-1])
    rest, out = w.shape
    squares = jnp.sum(w * w, axis=0)
    # With the longer side first.
    tall = w if out <= rest else w.T
    shared = mesh is not None and mesh.size > 1 and 2 * tall.size * tall.shape[1] >= _WORTH_SHARING
    product = _shared_product(tall, mesh) if shared else _dot(tall, _dot(tall.T, tall))
    product = product if out <= rest else product.T
    gradient = (4 * beta * (product - w * squares)).reshape(kernel.shape)
    return mesh_lib.placed(gradient, mesh, parallel) if mesh is not None else gradient


def _shared_product(tall, mesh):
    """W (W^T W), every device of a slice working on its rows; W^T W is a sum over all of them."""
    rows, where = len(tall), mesh_lib.rows_in_slice(mesh)
    cut = lambda x: jax.lax.with_sharding_constraint(x, where)  # noqa: E731
    padded = cut(jnp.pad(tall, ((0, -rows % where.num_devices), (0, 0))))
    return cut(_dot(padded, _dot(padded.T, padded)))[:rows]


def _dot(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def add_ortho_gradient(
    grads: Any, params: Any, beta: float, mesh: Mesh | None = None, parallel: str = "data"
) -> Any:
    """Adds the gradient of equation 3 to every kernel's; class tables are left alone.

    Args:
      grads: a tree like `params`.
      params: a tree whose weights of convolutions and dense layers are leaves named `kernel`.
      beta: strength; 0 returns `grads` as they are.
      mesh: see `ortho_gradient`.
      parallel: see `ortho_gradient`.
    """
    if not beta:
        return grads

    def add(path, grad, param):
        is_kernel = path[-1].key == "kernel"
        return grad + ortho_gradient(param, beta, mesh, parallel) if is_kernel else grad

    return jax.tree_util.tree_map_with_path(add, grads, params)
