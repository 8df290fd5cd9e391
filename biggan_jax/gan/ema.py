"""Exponential moving average of the generator (spec section 13)."""

from typing import Any

import jax
import jax.numpy as jnp


def update(average: Any, current: Any, step: jax.Array, decay: float, start: int) -> Any:
    """Returns `decay * average + (1 - decay) * current`, or `current` before step `start`.

    Args:
      average: tree of the averages so far.
      current: tree of the same structure.
      step: number of finished updates before this one.
      decay: weight of the old average.
      start: first step that averages.
    """
    d = jnp.where(step < start, 0.0, decay)
    return jax.tree.map(lambda a, c: d * a + (1 - d) * c, average, current)
