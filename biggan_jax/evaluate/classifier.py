"""Which class does a picture show? A support vector machine, for data sets of few classes.

It sees grey pixels alone, at the resolution of the model. For digits that is nearly all there is to
see; for photos it is little, which its accuracy on real images says.
"""

from typing import Any

import numpy as np

from biggan_jax.config import ConfigError

NAME = "svm"
MOST_CLASSES = 100
MOST_IMAGES = 20_000  # Training takes time by the square of their number.
FOLDS = 5
_C = 10


def grey(images: np.ndarray) -> np.ndarray:
    """Returns uint8 `[N, R, R, 3]` as float `[N, R * R]` in 0..1, the mean of the channels."""
    return images.astype(np.float64).mean(axis=-1).reshape(len(images), -1) / 255


def fit(x: np.ndarray, y: np.ndarray) -> Any:
    """Returns scikit-learn's SVC with an RBF kernel and C = 10, trained.

    Args:
      x: float `[N, D]`, of `grey`.
      y: int `[N]`, at least two different ones.
    """
    from sklearn.svm import SVC

    return SVC(C=_C).fit(x, y)


def accuracy_real(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of real images that it sees the class of, trained on the other folds.

    Fold i of the five is every fifth image from the i-th on.

    Args:
      x: float `[N, D]`, of `grey`.
      y: int `[N]`, their classes.
    """
    fold = np.arange(len(x)) % FOLDS
    right = 0
    for i in range(FOLDS):
        out = fold == i
        right += (fit(x[~out], y[~out]).predict(x[out]) == y[out]).sum()
    return float(right / len(x))


def check(labels: np.ndarray) -> None:
    """Checks that a classifier can be trained on images of these classes.

    Raises:
      ConfigError: if there are too many of either, or too few.
    """
    classes = len(np.unique(labels))
    if not 2 <= classes <= MOST_CLASSES or not 10 <= len(labels) <= MOST_IMAGES:
        raise ConfigError(
            f"--metrics=label_accuracy: the reference has {len(labels):,} images of {classes:,}"
            f" classes; its classifier is for 10 to {MOST_IMAGES:,} of 2 to {MOST_CLASSES}."
        )


def about(classes: int, images: int) -> dict[str, Any]:
    """Returns what names the classifier, for JSON."""
    return {
        "classifier": f"SVC, RBF kernel, C = {_C}, on grey pixels",
        "trained_on": f"the reference, {images} images of {classes} classes",
        "real": f"{FOLDS}-fold cross-validation",
    }
