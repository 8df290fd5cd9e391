"""Inception Score, kernel distance and MIND of features in memory.

Permutations and subsets are drawn as torch-fidelity draws them, directions by NumPy.
"""

import numpy as np

from biggan_jax.config import ConfigError

SEED = 2020  # Of the permutation and of the subsets: torch-fidelity's, so that scores equal its.
SPLITS = 10
SUBSETS = 100
SUBSET_SIZE = 1000
PROJECTIONS = 1000
_TOGETHER = 100  # Projections in memory at once.


def inception_score(
    logits: np.ndarray, splits: int = SPLITS, seed: int | None = SEED
) -> tuple[float, float]:
    """Returns mean and population standard deviation over splits (Salimans et al. 2016).

    Args:
      logits: [N, classes].
      splits: contiguous parts, each scored for itself.
      seed: of the permutation before; None for none.

    Raises:
      ConfigError: if there are fewer images than splits.
    """
    count = len(logits)
    if count < splits:
        raise ConfigError(f"an Inception Score of {splits} splits needs as many images: {count}.")
    logits = np.asarray(logits, np.float64)
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(count)]
    scores = []
    for i in range(splits):
        part = logits[i * count // splits : (i + 1) * count // splits]
        log_p = part - part.max(axis=1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        log_mean = np.log(p.mean(axis=0, keepdims=True))
        scores.append(np.exp((p * (log_p - log_mean)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    fake: np.ndarray,
    real: np.ndarray,
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = SEED,
) -> tuple[float, float]:
    """Returns mean and standard deviation of KID over random subsets (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3, the estimator of the squared MMD unbiased.

    Args:
      fake: [N, D], features of generated images.
      real: [M, D], features of real images.
      subsets: how many are drawn.
      size: images of each set in a subset, drawn without replacement.
      seed: of the draws; of each subset first the fakes are drawn.

    Raises:
      ConfigError: if a set is smaller than a subset.
    """
    if min(len(fake), len(real)) < size:
        raise ConfigError(
            f"KID with subsets of {size} needs as many images in both sets: there are {len(fake)}"
            f" generated and {len(real)} real ones."
        )
    draws = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        x = np.asarray(fake[draws.choice(len(fake), size, replace=False)], np.float64)
        y = np.asarray(real[draws.choice(len(real), size, replace=False)], np.float64)
        within = _off_diagonal(_kernel(x, x)) + _off_diagonal(_kernel(y, y))
        found.append(within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def mind(
    fake: np.ndarray, real: np.ndarray, projections: int = PROJECTIONS, seed: int = SEED
) -> float:
    """Returns the Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797).

    The squared 2-Wasserstein distance of projections to random directions, on average, times three
    times the number of dimensions. Of the larger set as many as the smaller has, evenly spaced.

    Args:
      fake: [N, D], features of generated images.
      real: [M, D], features of real images.
      projections: how many directions, uniform on the sphere.
      seed: of the directions.
    """
    count, dim = min(len(fake), len(real)), fake.shape[1]
    x, y = (np.asarray(z[np.arange(count) * len(z) // count], np.float64) for z in (fake, real))
    directions = np.random.RandomState(seed).standard_normal((projections, dim))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, projections, _TOGETHER):
        part = directions[start : start + _TOGETHER].T
        apart = np.sort(x @ part, axis=0) - np.sort(y @ part, axis=0)
        total += (apart**2).mean(axis=0).sum()
    return float(3 * dim * total / projections)


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal(matrix):
    return matrix.sum() - np.trace(matrix)
