"""Top singular values of every raw weight and how different the fakes are: what collapse shows in.

Brock et al. 2018, section 4: a few of G's singular values explode at collapse. They watch the raw
weights: those divided by sigma have 1 for the largest by construction.

Singular values come from block power iteration. A block of `BLOCK` orthonormal vectors a weight is
multiplied by W^T W and made orthonormal again; the Ritz values in their span are the answer. The
block is wider than the three values that are wanted: the error falls by the fourth power of the
ratio of the first value left out to the wanted one an iteration, and the first values of a weight
may lie close together. Weights move little between two looks, so a warm start needs few iterations.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.gan.state import GanState
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib

BLOCK = 8
ITERATIONS = 2  # A look.
FIRST_LOOKS = 10  # From random vectors, until the values are right to about 1 %.
_TOP = 3

Vectors = list[jax.Array]


def names(config: Mapping[str, Any]) -> list[str]:
    """Returns the weights' names, "G/block0/conv1" or "D/embed", in the order of all results."""
    shapes = jax.eval_shape(lambda: state_lib.init(config))
    paths = [path for path, _ in _leaves(shapes)]
    return ["/".join([net, *(key.key for key in path[:-1])]) for net, path in paths]


def start(config: Mapping[str, Any], mesh: Mesh) -> Vectors:
    """Returns random orthonormal vectors, [shorter side, at most BLOCK] a weight, on the mesh."""
    shapes = jax.eval_shape(lambda: state_lib.init(config))

    def make():
        vectors = []
        for i, (_, leaf) in enumerate(_leaves(shapes)):
            side = min(_matrix_shape(leaf.shape))
            block = jax.random.normal(jax.random.key(i), (side, min(BLOCK, side)))
            vectors.append(jnp.linalg.qr(block)[0])
        return vectors

    return jax.jit(make, out_shardings=mesh_lib.replicated(mesh))()


def make_look(config: Mapping[str, Any], mesh: Mesh) -> Callable:
    """Returns the jitted `(state, vectors) -> (numbers, vectors)`; nothing is donated.

    Numbers are:
      sigma: [weights, 3] float32, the largest first; 0 where a weight has fewer.
      g_diversity: see `diversity`.

    Args:
      config: resolved.
      mesh: where state and vectors are.
    """
    generate = _generator(config, mesh)

    def look(state: GanState, vectors: Vectors) -> tuple[dict[str, jax.Array], Vectors]:
        sigmas, moved = [], []
        for (_, leaf), block in zip(_leaves(state), vectors, strict=True):
            sigma, block = top_singular_values(leaf, block)
            sigmas.append(sigma)
            moved.append(block)
        images = generate(state)
        return {"sigma": jnp.stack(sigmas), "g_diversity": diversity(images)}, moved

    whole, held = mesh_lib.replicated(mesh), state_lib.shardings(config, mesh)
    return jax.jit(look, in_shardings=(held, whole), out_shardings=(whole, whole))


def top_singular_values(weight: jax.Array, block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A few block power iterations and what they find.

    Args:
      weight: [..., out]; its matrix is [rest, out], as spectral norm has it.
      block: [shorter side, b] orthonormal columns.

    Returns:
      the three largest Ritz values, descending, [3] float32 (0 where b is less), each at most the
      singular value of its rank but for rounding, and the Ritz vectors, [shorter side, b].
    """
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    matrix = weight.reshape(_matrix_shape(weight.shape)).astype(jnp.float32)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    for _ in range(ITERATIONS):
        block = jnp.linalg.qr(dot(matrix.T, dot(matrix, block)))[0]
    # eigh of the small Gram matrix and not svd of the tall product, which costs more. Squares
    # in float32: a value below 3e-4 of the first drowns in rounding.
    tall = dot(matrix, block)
    squares, turn = jnp.linalg.eigh(dot(tall.T, tall))
    sigma = jnp.sqrt(jnp.maximum(squares[::-1], 0))[:_TOP]
    return jnp.pad(sigma, (0, _TOP - len(sigma))), dot(block, turn[:, ::-1])


def diversity(images: jax.Array) -> jax.Array:
    """How far two fakes of one class lie apart: the root mean square over pixels, mean over pairs.

    0 where G makes one image, also where it makes one a class; 2 is the most.

    Args:
      images: [2 n, H, W, 3] in [-1, 1]; 2 i and 2 i + 1 are of one class.
    """
    apart = images[0::2] - images[1::2]
    return jnp.sqrt(jnp.mean(jnp.square(apart), axis=(1, 2, 3))).mean()


def real_diversity(sheet: np.ndarray, classes: int) -> float | None:
    """The diversity of reals, to compare with that of fakes.

    Args:
      sheet: uint8 [rows * classes, H, W, 3], a column a class, as the sheet of reals has it.
      classes: columns.

    Returns:
      As `diversity`, over pairs of rows; None where no pair differs, as in classes of one picture.
    """
    rows = len(sheet) // classes // 2 * 2
    images = np.float64(sheet[: rows * classes]) / 127.5 - 1
    pairs = images.reshape(rows // 2, 2, classes, sheet[0].size)
    apart = np.sqrt(np.mean(np.square(pairs[:, 0] - pairs[:, 1]), axis=-1))
    apart = apart[apart > 0]
    return float(apart.mean()) if apart.size else None


def _generator(config, mesh):
    """Returns `state -> images`, from latents and labels that stay the same through a run."""
    generator, _ = networks.build(config, mesh.devices.flat[0].platform)
    # As many as one pass of training makes, so that batch norm has the batch it is used to.
    size, m = config_lib.micro_batch_size(config), config["model"]
    cut = mesh_lib.batch_sharding(mesh, 0)

    def generate(state: GanState) -> jax.Array:
        # Training's keys are of the steps, which stay below.
        key = jax.random.fold_in(jax.random.key(config["seed"]), 2**32 - 1)
        z = jax.random.normal(key, (size, m["z_dim"]))
        labels = jnp.arange(size) // 2 % m["num_classes"]
        z, labels = (jax.lax.with_sharding_constraint(x, cut) for x in (z, labels))
        variables = {
            "params": state.g_params,
            "batch_stats": state.g_batch_stats,
            "spectral": state.g_spectral,
        }
        images, _ = generator.apply(
            variables, z, labels, train=True, mutable=["batch_stats", "spectral"]
        )
        return images

    return generate


def _leaves(state):
    """((network, path), leaf) of all weights that are matrices, G's first."""
    found = []
    for net, tree in (("G", state.g_params), ("D", state.d_params)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if leaf.ndim > 1:
                found.append(((net, path), leaf))
    return found


def _matrix_shape(shape):
    rest = 1
    for side in shape[:-1]:
        rest *= side
    return rest, shape[-1]
