"""BN statistics at a truncation, out of a table with a row for each of some truncations."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from biggan_jax.config import ConfigError

MODES = ("correct", "hf-compat")
_SAME = 1e-7  # Truncations that near each other are one: 0.14 is seldom 7 / 50 to the last bit.


def lookup(
    table: Mapping[str, np.ndarray],
    grid: Sequence[float],
    truncation: float,
    mode: str = "correct",
) -> dict[str, np.ndarray]:
    """Returns the statistics for one truncation (spec section 7.4).

    "correct" takes the row of a truncation of the grid, and between two of them blends their rows
    linearly. "hf-compat" repeats pytorch_pretrained_biggan bit for bit: it divides by the step in
    floating point, which misses the rows of 0.14, 0.28, 0.56, 0.58 and 0.94, and gives each of the
    two rows the other's weight.

    Args:
      table: `{place: [rows, C]}`, float32.
      grid: the truncations of the rows, one at least, ascending.
      truncation: above 0 and within the grid.
      mode: one of `MODES`.

    Returns:
      `{place: [C]}`, float32.

    Raises:
      ConfigError: if the truncation lies outside, or the mode is unknown or does not fit the grid.
    """
    truncation = float(truncation)  # In float32 the division below gives other bits.
    if mode not in MODES:
        raise ConfigError(f"the table's mode {mode!r}: must be one of {', '.join(MODES)}.")
    if not (truncation > 0 and grid[0] - _SAME <= truncation <= grid[-1] + _SAME):
        raise ConfigError(
            f"--truncation={truncation:g}: must be above 0 and from {grid[0]:g} to {grid[-1]:g},"
            " where this model has statistics."
        )
    rows = _rows(grid, truncation) if mode == "correct" else _hf_rows(grid, truncation)
    return {
        place: np.sum([values[row] * np.float32(weight) for row, weight in rows], axis=0)
        for place, values in table.items()
    }


def _rows(grid, truncation):
    """Pairs of a row and its weight."""
    nearest = int(np.argmin(np.abs(np.subtract(grid, truncation))))
    if abs(grid[nearest] - truncation) <= _SAME:
        return [(nearest, 1.0)]
    upper = int(np.searchsorted(grid, truncation))
    lower = upper - 1
    weight = (truncation - grid[lower]) / (grid[upper] - grid[lower])
    return [(lower, 1 - weight), (upper, weight)]


def _hf_rows(grid, truncation):
    last = len(grid) - 1
    if last < 1 or np.max(np.abs(np.subtract(grid, np.arange(last + 1) / last))) > _SAME:
        raise ConfigError(
            "the table's mode 'hf-compat': needs rows at equal steps from truncation 0 to 1."
        )
    weight, row = math.modf(truncation / (1.0 / last))
    lower = int(row)
    if not weight:
        return [(lower, 1.0)]
    if lower == last:  # With 50 rows, say, 1 / (1 / 49) is above 49.
        raise ConfigError(
            f"--truncation={truncation:g}: the table's mode 'hf-compat' would read beyond the last"
            f" of {len(grid)} rows, as the program it repeats does."
        )
    return [(lower, weight), (lower + 1, 1 - weight)]
