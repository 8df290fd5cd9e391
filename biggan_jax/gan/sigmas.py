"""The sigmas of a whole network at once, every device working on its part of each weight.

Inside the layers (`models.ops`) every device does every power iteration whole, which on a pod is a
quarter of the step. Here device `i` of `n` takes the `i`-th part of a matrix' rows, and one
all-reduce of a few hundred thousand numbers serves all layers. The result is that of the layers, to
rounding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from biggan_jax.models import ops

# Numbers in a network's weights from which on devices share. Reading as many twice takes a TPU v3
# core 0.2 ms, about what an all-reduce over a pod waits for the links.
_WORTH_SHARING = 10**7


def worth_sharing(params: Any, mesh: Mesh) -> bool:
    """Returns whether the devices of a mesh find the sigmas of a network faster together."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return mesh.size > 1 and size >= _WORTH_SHARING


@jax.named_scope("sigmas")
def find(
    params: Any, spectral: Any, mesh: Mesh, model: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One power iteration for every spectrally normalised layer (spec section 8.1).

    Sigma is differentiable in `params`, as it is in the layers.

    Args:
      params: of a network.
      spectral: its collection of that name: a `u` a layer.
      mesh: whose devices share the work; all of them hold both trees whole.
      model: `config.model`.

    Returns:
      The collection `sigma` for `apply`, which then leaves `u` alone, and the moved `spectral`.
    """
    places = [p[:-1] for p in _leaves(spectral) if p[-1] == "u"]
    matrices, us = [], []
    for place in places:
        layer = _at(params, place)
        name = "kernel" if "kernel" in layer else "embedding"
        rule = model["sigma_rule"]
        matrices.append(ops.as_matrix(layer[name], rule, name == "embedding"))
        us.append(_at(spectral, place)["u"])
    found = _sigmas(matrices, us, mesh, model["sn_eps"], model["sigma_rule"] == "hub")
    sigma: dict[str, Any] = {}
    moved: dict[str, Any] = {}
    for place, value, u, v in zip(places, *found, strict=True):
        _put(sigma, place, {"sigma": value})
        _put(moved, place, {"u": u} | ({"v": v} if "v" in _at(spectral, place) else {}))
    return sigma, moved


def _sigmas(matrices, us, mesh, eps, additive):
    """Sigmas, new us and vs, a list each, of matrices [rest, out]."""

    @jax.custom_vjp
    def run(matrices):
        return _iterate(matrices, us, mesh, eps, additive)

    def forward(matrices):
        found = run(matrices)
        return found, found[1:]

    def backward(saved, cotangents):
        # u and v are constants: d sigma / d W is v^T u.
        new_us, vs = saved
        slopes = zip(cotangents[0], vs, new_us, matrices, strict=True)
        return ([(d * v.T * u).astype(w.dtype) for d, v, u, w in slopes],)

    run.defvjp(forward, backward)
    return run(matrices)


def _iterate(matrices, us, mesh, eps, additive):
    def run(matrices, us):
        """On one device: its share of every u W^T, of its square and of u W^T W; then all sums."""
        device, pieces, ends = jax.lax.axis_index("data"), [], []
        for w, u in zip(matrices, us, strict=True):
            rest, out = w.shape
            size = -(-rest // mesh.size)
            # The slice of a last device may reach back into its neighbour's rows: not twice.
            start = jnp.minimum(device * size, rest - size)
            rows = jax.lax.dynamic_slice_in_dim(w, start, size).astype(jnp.float32)
            own = start + jnp.arange(size) >= device * size
            v = jnp.where(own, _dot(u, rows.T), 0)
            whole = jax.lax.dynamic_update_slice(jnp.zeros((1, rest)), v, (0, start))
            pieces += [jnp.sum(v * v)[None], _dot(v, rows)[0], whole[0]]
            ends += [1, out, rest]
        # One array: an all-reduce for each would wait for the links each time.
        summed = jax.lax.psum(jnp.concatenate(pieces), "data")
        parts = iter(jnp.split(summed, np.cumsum(ends)[:-1]))
        return [finish(*three) for three in zip(parts, parts, parts, strict=True)]

    def finish(square, right, v):
        length = ops.norm_or_eps(jnp.sqrt(square[0]), eps, additive)
        right = right[None] / length
        new_u = right / ops.norm_or_eps(jnp.linalg.norm(right), eps, additive)
        return jnp.sum(right * new_u), new_u, v[None] / length

    # Within, so that the compiler does not cut the results up again.
    whole = PartitionSpec()
    run = jax.shard_map(run, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    found = run(*jax.lax.stop_gradient((matrices, us)))
    return tuple(list(values) for values in zip(*found, strict=True))


def _dot(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _leaves(tree):
    """Paths of names to the leaves."""
    return [
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _at(tree, place):
    for name in place:
        tree = tree[name]
    return tree


def _put(tree, place, value):
    for name in place:
        tree = tree.setdefault(name, {})
    tree.update(value)
