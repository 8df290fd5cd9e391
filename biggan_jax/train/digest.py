"""A fingerprint of a training state: two runs are the same if and only if their digests are."""

import hashlib
from typing import Any

import jax
import numpy as np


def digest(state: Any) -> str:
    """Returns the SHA-256, in hexadecimal, over every array of a pytree in a fixed order.

    Arrays are taken sorted by path, so that the kind of container and its insertion order do not
    count. Of each array the path, the dtype, the shape and the bytes are hashed; device and
    sharding are not. Empty nodes (`None`, `{}`) leave no trace.

    Args:
      state: a pytree of arrays; sharded ones are gathered one at a time.

    Raises:
      TypeError: if a leaf is not an array of plain numbers.
    """
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    hasher = hashlib.sha256()
    for name in sorted(leaves):
        array = np.asarray(leaves[name])
        if array.dtype == object:
            raise TypeError(f"{name}: {type(leaves[name]).__name__} is not an array of numbers.")
        # A line that ends in a newline keeps ("a", shape 12) apart from ("a1", shape 2).
        hasher.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def name_of(path: tuple[Any, ...]) -> str:
    """Returns a pytree path as text, such as `params/GBlock_0/conv1/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
