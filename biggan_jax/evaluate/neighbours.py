"""Precision, recall, density and coverage: who lies in whose ball of nearest neighbours.

A ball is around an image of one set and reaches to its k-th nearest other image of that set.
Distances are float64 and made block by block, so memory grows with N, not with N^2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biggan_jax.config import ConfigError

_CELLS = 1 << 23  # Distances in memory at once: 64 MiB.


class Rule(NamedTuple):
    """Which neighbour a ball reaches to, and whether its surface belongs to it."""

    k: int
    closed: bool


# Kynkaanniemi et al. 2019 and torch-fidelity; Naeem et al. 2020 and their package prdc.
IMPROVED = Rule(3, True)
PRDC = Rule(5, False)


class Found(NamedTuple):
    """What one rule gives, each a share of images but for density.

    precision: of the fakes that lie in a ball of a real image.
    recall: of the reals that lie in a ball of a fake image.
    density: balls of reals a fake lies in, on average, divided by k.
    coverage: of the reals whose ball holds a fake.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def compare(real: np.ndarray, fake: np.ndarray, rules: Sequence[Rule]) -> list[Found]:
    """Compares two sets of features.

    Args:
      real: [N, D].
      fake: [M, D].
      rules: one `Found` is returned for each; distances are made once for all.

    Raises:
      ConfigError: if a set has no k-th neighbour for each of its images.
    """
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    of_real, of_fake = (radii(x, [rule.k for rule in rules]) for x in (real, fake))
    precise, inside = np.zeros(len(rules)), np.zeros(len(rules))
    recalled = np.zeros((len(rules), len(real)), bool)
    nearest = np.full(len(real), np.inf)
    for start in range(0, len(fake), _rows(real)):
        part = slice(start, start + _rows(real))
        squared = _squared(fake[part], real)
        nearest = np.minimum(nearest, squared.min(axis=0))
        for i, rule in enumerate(rules):
            held = _in(squared, of_real[i], rule)
            precise[i] += held.any(axis=1).sum()
            inside[i] += held.sum()
            recalled[i] |= _in(squared, of_fake[i][part, None], rule).any(axis=0)
    return [
        Found(
            float(precise[i] / len(fake)),
            float(recalled[i].mean()),
            # In this order the last bit is that of prdc.
            float(1.0 / rule.k * (inside[i] / len(fake))),
            float(_in(nearest, of_real[i], rule).mean()),
        )
        for i, rule in enumerate(rules)
    ]


def radii(points: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Returns squared distances to the k-th nearest other point, `[len(ks), N]`.

    Args:
      points: [N, D].
      ks: which neighbours.

    Raises:
      ConfigError: if there are not more points than the largest k.
    """
    points = np.asarray(points, np.float64)
    if len(points) <= max(ks):
        raise ConfigError(
            f"{max(ks)} nearest neighbours need more than {max(ks)} images; there are"
            f" {len(points)}."
        )
    found = np.empty((len(ks), len(points)))
    for start in range(0, len(points), _rows(points)):
        part = points[start : start + _rows(points)]
        squared = _squared(part, points)
        own = np.arange(len(part))
        squared[own, start + own] = 0  # Not what rounding leaves: a point is its own nearest.
        ordered = np.partition(squared, list(ks), axis=1)
        found[:, start : start + len(part)] = ordered[:, list(ks)].T
    return found


def nearest(points: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances to the nearest of `among` [M, D] and its place, both `[N]`."""
    points, among = np.asarray(points, np.float64), np.asarray(among, np.float64)
    places = np.empty(len(points), np.int64)
    squared = np.empty(len(points))
    for start in range(0, len(points), _rows(among)):
        part = slice(start, start + _rows(among))
        block = _squared(points[part], among)
        places[part] = block.argmin(axis=1)
        squared[part] = block.min(axis=1)
    return np.sqrt(squared), places


def _in(squared, radius, rule):
    return squared <= radius if rule.closed else squared < radius


def _rows(among):
    return max(1, _CELLS // len(among))


def _squared(x, y):
    squared = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * (x @ y.T)
    return np.maximum(squared, 0, out=squared)
