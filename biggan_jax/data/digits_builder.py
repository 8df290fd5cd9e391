"""The embedded data set as a TFDS builder; importing this module registers it as "digits".

1,797 handwritten digits of 8x8 pixels from the UCI repository (Alpaydin and Kaynak, 1998,
https://archive.ics.uci.edu/dataset/80), which ship inside scikit-learn.
"""

import numpy as np
import tensorflow_datasets as tfds

TEST_PER_CLASS = 36


def test_indices(labels: np.ndarray) -> np.ndarray:
    """Returns which records are held out: of every class 36, evenly spaced, always the same ones.

    Args:
      labels: `[N]`, of all records in scikit-learn's order.

    Returns:
      `[36 * classes]`, sorted.
    """
    held_out = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        middle_of_part = (2 * np.arange(TEST_PER_CLASS) + 1) * len(of_class)
        held_out.append(of_class[middle_of_part // (2 * TEST_PER_CLASS)])
    return np.sort(np.concatenate(held_out))


class Digits(tfds.core.GeneratorBasedBuilder):
    """Splits `train` (1,437) and `test` (360: 36 a class), both in scikit-learn's order."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Grey values 0..16 scaled to 0..255."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8 grey pixels, as shipped by scikit-learn.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        held_out = np.isin(np.arange(len(digits.target)), test_indices(digits.target))
        return {
            "train": self._generate_examples(digits, np.flatnonzero(~held_out)),
            "test": self._generate_examples(digits, np.flatnonzero(held_out)),
        }

    def _generate_examples(self, digits, indices):
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        for i in indices:
            yield int(i), {"image": pixels[i], "label": int(digits.target[i])}
