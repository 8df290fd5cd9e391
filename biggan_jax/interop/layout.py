"""Between the tensors of a foreign file and ours: names and layouts, checked one by one.

A format is a list of `Entry`, each a tensor of ours, its name there and the `kind` of layout it has
there (spec section 18.1). The same list reads and writes.
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.models import networks

Arrays = dict[str, np.ndarray]
SEED = 4  # Pixels along an edge of what G's first linear makes.


class Entry(NamedTuple):
    """One tensor.

    ours: its place in our trees, as in "params/block0/conv1/kernel".
    theirs: its name there.
    kind: a key of `KINDS`.
    """

    ours: str
    theirs: str
    kind: str


class Kind(NamedTuple):
    """A layout: how an array of theirs becomes one of ours and back.

    Both take the array and, as a hint, the shape that the result must have.
    """

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _channel_last(x, axis):
    """Outputs of the first linear from (channel, row, column) to (row, column, channel)."""
    x = np.moveaxis(x, axis, 0)
    x = x.reshape(-1, SEED, SEED, *x.shape[1:])
    return np.moveaxis(np.moveaxis(x, 0, 2).reshape(-1, *x.shape[3:]), 0, axis)


def _channel_first(x, axis):
    x = np.moveaxis(x, axis, 0)
    x = x.reshape(SEED, SEED, -1, *x.shape[1:])
    return np.moveaxis(np.moveaxis(x, 2, 0).reshape(-1, *x.shape[3:]), 0, axis)


KINDS: dict[str, Kind] = {
    # The very same shape.
    "exact": Kind(lambda x, s: x, lambda x, s: x),
    # The same, or with axes of length 1 that one side has and the other has not.
    "same": Kind(lambda x, s: x.reshape(s), lambda x, s: x.reshape(s)),
    # torch: convolutions OIHW, linears [out, in].
    "conv": Kind(lambda x, s: x.transpose(2, 3, 1, 0), lambda x, s: x.transpose(3, 2, 0, 1)),
    "dense": Kind(lambda x, s: x.T, lambda x, s: x.T),
    # The right vector of a torch 3x3 convolution, over (in, row, column); ours is over (row,
    # column, in). That of a 1x1 is "same".
    "conv_v": Kind(
        lambda x, s: x.reshape(-1, 3, 3).transpose(1, 2, 0).reshape(s),
        lambda x, s: x.reshape(3, 3, -1).transpose(2, 0, 1).reshape(s),
    ),
    # The author's first linear, whose outputs are (channel, row, column).
    "first_kernel": Kind(
        lambda x, s: _channel_last(x, 0).T,
        lambda x, s: _channel_first(x, 1).T,
    ),
    "first_vector": Kind(
        lambda x, s: _channel_last(x.reshape(-1), 0).reshape(s),
        lambda x, s: _channel_first(x.reshape(-1), 0).reshape(s),
    ),
}


def shape_there(ours: tuple[int, ...], kind: str) -> tuple[int, ...] | None:
    """Returns the shape that a tensor of ours has there; None where axes of 1 are free."""
    if kind == "exact":
        return ours
    if kind in ("conv", "dense", "first_kernel"):
        return {4: lambda s: (s[3], s[2], s[0], s[1]), 2: lambda s: (s[1], s[0])}[len(ours)](ours)
    return None


def abstract(model: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of both networks of a resolved `config.model`, as `{place: ShapeDtypeStruct}`.

    Places are those of `flatten`: "params/...", "batch_stats/...", "spectral/...".
    """
    return _abstract(json.dumps(model, sort_keys=True))


@functools.lru_cache(maxsize=8)
def _abstract(text):
    """Tracing a whole network takes seconds, and an import asks for the same one several times."""
    model = json.loads(text)
    g, d = networks.build({"model": model})
    labels = jnp.zeros((1,), jnp.int32)
    z = jnp.zeros((1, model["z_dim"]), jnp.float32)
    image = jnp.zeros((1, model["resolution"], model["resolution"], 3), jnp.float32)
    key = jax.random.key(0)
    return (
        flatten(jax.eval_shape(lambda: g.init(key, z, labels, train=False))),
        flatten(jax.eval_shape(lambda: d.init(key, image, labels))),
    )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns `{"a/b/c": leaf}` of nested dicts."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}/{key}" if prefix else key)
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for place, value in flat.items():
        *parents, leaf = place.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def read(
    where: str,
    theirs: Mapping[str, Any],
    entries: Iterable[Entry],
    shapes: Mapping[str, Any],
    ignored: Callable[[str], bool] = lambda name: False,
) -> Arrays:
    """Reads one network.

    Args:
      where: the file, for messages.
      theirs: its tensors by name.
      entries: of the format; every place of `shapes` exactly once.
      shapes: of `abstract`.
      ignored: says which of their names may be left over.

    Returns:
      `{place: float32 array}`.

    Raises:
      ConfigError: naming the first tensor that is missing, of another shape, not finite, or not
        known.
    """
    ours: Arrays = {}
    used = set()
    for entry in entries:
        if entry.theirs not in theirs:
            raise ConfigError(f"{where}: the tensor {entry.theirs!r} is missing.")
        array = theirs[entry.theirs]
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            raise ConfigError(f"{where}: {entry.theirs!r} is not a tensor of numbers.")
        want = shapes[entry.ours].shape
        there = shape_there(want, entry.kind)
        # Axes of length 1 come and go; others do not.
        bare = lambda shape: tuple(n for n in shape if n != 1)  # noqa: E731
        fits = array.shape == there if there else bare(array.shape) == bare(want)
        if not fits:
            raise ConfigError(
                f"{where}: {entry.theirs!r} is of shape {list(array.shape)} and must be"
                f" {list(there or want)}."
            )
        converted = KINDS[entry.kind].read(array, want)
        ours[entry.ours] = np.ascontiguousarray(converted, dtype=np.float32).reshape(want)
        if not np.isfinite(ours[entry.ours]).all():
            raise ConfigError(f"{where}: {entry.theirs!r} holds values that are not finite.")
        used.add(entry.theirs)
    extra = sorted(name for name in theirs if name not in used and not ignored(name))
    if extra:
        raise ConfigError(f"{where}: the tensor {extra[0]!r} belongs to no part of this model.")
    missing = sorted(shapes.keys() - ours.keys())
    if missing:
        raise AssertionError(f"the format's table lacks {missing[0]}")
    return ours


def write(
    ours: Mapping[str, np.ndarray],
    entries: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Arrays:
    """Returns their tensors, float32; `shapes` says which shape a "same" or vector has there."""
    theirs: Arrays = {}
    for entry in entries:
        array = ours[entry.ours]
        shape = (shapes or {}).get(entry.theirs, array.shape)
        theirs[entry.theirs] = np.asarray(KINDS[entry.kind].write(array, shape), order="C")
    return theirs
