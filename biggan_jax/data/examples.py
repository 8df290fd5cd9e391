"""What a TFDS record holds for us: a serialised `tf.train.Example` with an image and a label."""

from collections.abc import Callable

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.preprocess import CENTRED, Crop, Recipe

Where = Callable[[], str]  # Makes a record's name; called only where something is wrong with it.


class Examples:
    """Reads images and labels from records, without TensorFlow.

    Decoded here and not by TFDS, which takes OpenCV where it is installed, and else Pillow: pixels
    must not depend on that.
    """

    def __init__(
        self,
        image_key: str,
        label_key: str,
        num_classes: int,
        pixels: int | None,
        recipe: Recipe,
    ):
        """Takes the names of the features.

        Args:
          image_key: of the image.
          label_key: of the class label.
          num_classes: what labels must be below.
          pixels: a side of the images if they are stored as bare RGB bytes (a set that
            `biggan prepare` made); None if as encoded pictures.
          recipe: how pictures become images; bare ones of its resolution are taken as they are.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        self.recipe = recipe
        self._parse = tf_example_pb2.Example.FromString
        self._image_key, self._label_key = image_key, label_key
        self._num_classes = num_classes
        self._pixels = pixels

    def fill(self, record: bytes, image: np.ndarray, crop: Crop, where: Where) -> int:
        """Decodes one record.

        Args:
          record: the serialised example.
          image: `[R, R, 3]` uint8, filled in.
          crop: which square.
          where: what to call the record.

        Returns:
          The label.

        Raises:
          ConfigError: naming the record, if it is no example, holds no picture or another number
            of bytes than it must, or its label is no class.
        """
        # Whatever protobuf raises (DecodeError, RuntimeError, ...), it means the same.
        try:
            feature = self._parse(record).features.feature
            label = feature[self._label_key].int64_list.value[0]
            data = feature[self._image_key].bytes_list.value[0]
        except Exception as e:
            raise ConfigError(
                f"{where()} is damaged: it is no tf.train.Example with {self._image_key!r} and"
                f" {self._label_key!r}."
            ) from e
        if not 0 <= label < self._num_classes:
            raise ConfigError(
                f"{where()} has the label {label}, but the classes are 0 to"
                f" {self._num_classes - 1}; set data.split to a labelled split."
            )
        if self._pixels is None:
            image[...] = preprocess.decode(data, where(), self.recipe, crop)
            return label
        side = self._pixels
        if len(data) != side * side * 3:
            raise ConfigError(
                f"{where()} is damaged: its image has {len(data)} bytes and must have"
                f" {side} x {side} x 3 = {side * side * 3}."
            )
        bare = np.frombuffer(data, np.uint8).reshape(side, side, 3)
        if side != self.recipe.resolution or crop != CENTRED:
            bare = preprocess.to_square(bare, self.recipe, crop)
        image[...] = bare
        return label

    def label(self, record: bytes, where: Where) -> int:
        """Returns the label, which may be one that is no class (-1 where TFDS knows none).

        Raises:
          ConfigError: naming the record, if it is no example or holds no label.
        """
        try:
            return self._parse(record).features.feature[self._label_key].int64_list.value[0]
        except Exception as e:
            raise ConfigError(
                f"{where()} is damaged: it is no tf.train.Example with {self._label_key!r}."
            ) from e
