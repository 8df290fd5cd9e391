"""`data.name="fake"`: noise instead of a data set, for benchmarks and for trying things out."""

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.crops import CENTRED, Crop
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.source import Source

IMAGES = 1_281_167  # As many as ImageNet has.


class FakeSource(Source):
    """Images of uniform noise, each a function of its number; the label is that modulo classes."""

    worth_caching = False  # Looking an image up costs as much as making it.

    def __init__(self, num_classes: int, split: str, recipe: Recipe):
        """Raises ConfigError if another split than "train" is asked for."""
        if split != "train":
            raise ConfigError(
                f"data.split={split!r}: fake data have no splits; leave it at 'train'."
            )
        names = [str(k) for k in range(num_classes)]
        super().__init__("fake", split, "memory", names, recipe)

    def __len__(self) -> int:
        return IMAGES

    def get(self, i: int, crop: Crop) -> tuple[np.ndarray, int]:
        """Returns image and label of record `i`; see `Source.get`."""
        shape = (self.resolution, self.resolution, 3)
        # The resolutions are multiples of 16, so whole numbers of 64 bits fill an image.
        noise = np.random.Philox(key=i).random_raw(self.resolution**2 * 3 // 8)
        image = noise.view(np.uint8).reshape(shape)
        if crop != CENTRED:
            image = preprocess.to_square(image, self.recipe, crop)
        return image, self.label(i)

    def label(self, i: int) -> int:
        """Returns the label of record `i`."""
        return i % self.num_classes

    def labels(self) -> np.ndarray:
        """Returns the labels of all records, `[len]` int32."""
        return np.arange(IMAGES, dtype=np.int32) % self.num_classes
