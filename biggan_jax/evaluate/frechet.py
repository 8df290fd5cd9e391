"""Mean and covariance of features that come in pieces, and the Fréchet distance between two.

Everything here is float64. Features are folded in blocks of one size, however they come, so the
result depends on the features and their order alone, not on batches or devices.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from biggan_jax.config import ConfigError

BLOCK = 1024  # Rows folded at once: large enough that the D x D sums cost little.


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """What a Fréchet distance needs of a set of features.

    mean: [D].
    covariance: [D, D], divided by N - 1.
    count: N; 0 where a file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class Moments:
    """Accumulates mean and covariance without keeping features (Chan, Golub and LeVeque 1979).

    Attributes:
      dim: D, the length of a feature.
    """

    def __init__(self, dim: int):
        """Starts with no features."""
        self.dim = dim
        self._count = 0
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))  # Sum of outer products around the mean.
        self._waiting = np.zeros((0, dim))

    @property
    def count(self) -> int:
        """How many features were added."""
        return self._count + len(self._waiting)

    def add(self, features: np.ndarray) -> None:
        """Adds features `[N, D]`.

        Raises:
          ValueError: if one is not finite or the shape is another.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features are of shape {features.shape}, not [N, {self.dim}].")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite.")
        waiting = np.concatenate([self._waiting, features])
        while len(waiting) >= BLOCK:
            self._fold(waiting[:BLOCK])
            waiting = waiting[BLOCK:]
        self._waiting = waiting.copy()  # Not a view that keeps a whole batch alive.

    def merge(self, other: "Moments") -> None:
        """Adds what another accumulator holds."""
        other = other._finished()
        self._become(self._finished())
        self._join(other._count, other._mean, other._scatter)

    def gaussian(self) -> Gaussian:
        """Returns mean and covariance.

        Raises:
          ConfigError: if there are fewer than two features.
        """
        if self.count < 2:
            raise ConfigError(f"a covariance needs at least 2 images; there are {self.count}.")
        done = self._finished()
        return Gaussian(done._mean, done._scatter / (done._count - 1), done._count)

    def state(self) -> dict[str, np.ndarray]:
        """Returns all of it as arrays, from which `restore` goes on to the same bits."""
        return {
            "count": np.array(self._count),
            "mean": self._mean,
            "scatter": self._scatter,
            "waiting": self._waiting,
        }

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray]) -> "Moments":
        """The inverse of `state`."""
        made = cls(len(state["mean"]))
        made._count = int(state["count"])
        made._mean, made._scatter = state["mean"], state["scatter"]
        made._waiting = state["waiting"]
        return made

    def _finished(self):
        """A copy in which nothing waits."""
        copy = Moments.restore(self.state())
        if len(copy._waiting):
            copy._fold(copy._waiting)
            copy._waiting = copy._waiting[:0]
        return copy

    def _become(self, other):
        self._count, self._mean, self._scatter = other._count, other._mean, other._scatter
        self._waiting = other._waiting

    def _fold(self, block):
        mean = block.mean(axis=0)
        centred = block - mean
        self._join(len(block), mean, centred.T @ centred)

    def _join(self, count, mean, scatter):
        total = self._count + count
        if not total:
            return
        apart = mean - self._mean
        weight = self._count * count / total
        self._scatter = self._scatter + scatter + np.outer(apart * weight, apart)
        self._mean = self._mean + apart * (count / total)
        self._count = total


def distance(a: Gaussian, b: Gaussian) -> float:
    """Returns |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017).

    The trace of the root is the sum of the singular values of A B^T with S = A^T A, which needs no
    root of a product and stays exact where there are fewer features than dimensions.

    Raises:
      ConfigError: if the two have features of different lengths.
    """
    if a.mean.shape != b.mean.shape:
        raise ConfigError(
            f"features of length {len(a.mean)} cannot be compared with a reference whose features"
            f" have length {len(b.mean)}."
        )
    apart = a.mean - b.mean
    cross = np.linalg.svd(_root(a.covariance) @ _root(b.covariance).T, compute_uv=False).sum()
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(apart @ apart + traces - 2 * cross)


def intra_class(
    fake: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray]
) -> tuple[float, int]:
    """Returns the mean of the Fréchet distances of each class, and of how many classes it is.

    As in projection discriminators' evaluation (Miyato and Koyama 2018). Classes of which one set
    has fewer than two images are left out.

    Args:
      fake: features [N, D] and the classes [N] that were asked for.
      real: features [M, D] and their classes [M].

    Raises:
      ConfigError: if no class is left.
    """
    found = []
    for label in np.unique(real[1]):
        pair = [_gaussian(x[np.asarray(y) == label]) for x, y in (fake, real)]
        if None not in pair:
            found.append(distance(*pair))
    if not found:
        raise ConfigError("no class has two images in both sets, so none has a distance.")
    return float(np.mean(found)), len(found)


def _gaussian(features):
    if len(features) < 2:
        return None
    moments = Moments(features.shape[1])
    moments.add(features)
    return moments.gaussian()


def _root(covariance):
    """Returns A [rank, D] with A^T A = covariance; directions below rounding are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(values[-1], 0) * len(values) * np.finfo(np.float64).eps
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T
