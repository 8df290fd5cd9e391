"""What a TFDS record holds for us: a serialised `tf.train.Example` with an image and a label."""

from collections.abc import Callable

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.crops import CENTRED, Crop
from biggan_jax.data.preprocess import Recipe

Where = Callable[[int], str]  # What to call a record in messages, given its number.


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
        from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

        self.recipe = recipe
        self._parse = tf_example_pb2.Example.FromString
        self._parse_entries = tf_feature_pb2.Features.FromString
        self._image_key, self._label_key = image_key, label_key
        self._num_classes = num_classes
        self._pixels = pixels
        self._size = 0 if pixels is None else pixels * pixels * 3
        self._head = _head(image_key.encode(), self._size)
        self._labels: dict[bytes, int] = {}  # By all that follows the image, if that is a label.

    @property
    def bare(self) -> bool:
        """Whether images are stored as bare RGB bytes."""
        return self._pixels is not None

    def fill(self, i: int, record: bytes, image: memoryview, crop: Crop, where: Where) -> int:
        """Decodes one record.

        Args:
          i: its number, for `where`.
          record: the serialised example.
          image: the bytes of `[R, R, 3]` uint8, filled in.
          crop: which square.
          where: what to call it.

        Returns:
          The label.

        Raises:
          ConfigError: naming the record, if it is no example, holds no picture or another number
            of bytes than it must, or its label is no class.
        """
        # Whatever protobuf raises (DecodeError, RuntimeError, ...), it means the same.
        try:
            label, data = self._content(record)
        except Exception as e:
            raise ConfigError(
                f"{where(i)} is damaged: it is no tf.train.Example with {self._image_key!r} and"
                f" {self._label_key!r}."
            ) from e
        if not 0 <= label < self._num_classes:
            raise ConfigError(
                f"{where(i)} has the label {label}, but the classes are 0 to"
                f" {self._num_classes - 1}; set data.split to a labelled split."
            )
        side = self._pixels
        if side is None:
            size = self.recipe.resolution
            out = np.frombuffer(image, np.uint8).reshape(size, size, 3)
            preprocess.decode(bytes(data), where(i), self.recipe, crop, out=out)
        elif len(data) != self._size:
            raise ConfigError(
                f"{where(i)} is damaged: its image has {len(data)} bytes and must have"
                f" {side} x {side} x 3 = {self._size}."
            )
        elif side == self.recipe.resolution and crop == CENTRED:
            image[:] = data
        else:
            bare = np.frombuffer(data, np.uint8).reshape(side, side, 3)
            image[:] = preprocess.to_square(bare, self.recipe, crop).reshape(-1).data
        return label

    def label(self, i: int, record: bytes, where: Where) -> int:
        """Returns the label, which may be one that is no class (-1 where TFDS knows none).

        Raises:
          ConfigError: naming the record, if it is no example or holds no label.
        """
        try:
            return self._parse(record).features.feature[self._label_key].int64_list.value[0]
        except Exception as e:
            raise ConfigError(
                f"{where(i)} is damaged: it is no tf.train.Example with {self._label_key!r}."
            ) from e

    def _content(self, record):
        """Label and image of an example, as bytes or a view into `record`."""
        start = record.find(self._head) if self._size else -1
        end = start + len(self._head) + self._size
        if start < 0 or end > len(record):
            feature = self._parse(record).features.feature
            data = feature[self._image_key].bytes_list.value[0]
            return feature[self._label_key].int64_list.value[0], data
        # Bare pixels are taken from where they lie, and what follows them is looked up: in sets
        # that `biggan prepare` wrote itself (not Beam) it is the label, and then what stands before
        # them is not looked at. Protobuf would copy the pixels twice and keep all other threads
        # waiting meanwhile.
        after = record[end:]
        label = self._labels.get(after)
        if label is None:
            label = self._label_around(record, start, after)
        return label, memoryview(record)[end - self._size : end]

    def _label_around(self, record, start, after):
        """The label in what stands before an image that begins at `start` and `after` it."""
        first = 2
        while record[first - 1] & 0x80:  # The size of all entries, in as many bytes as it needs.
            first += 1
        entries = self._parse_entries(record[first:start] + after).feature
        label = entries[self._label_key].int64_list.value[0]
        if list(self._parse_entries(after).feature) == [self._label_key]:
            self._labels[after] = label  # Of two values of a key the later one counts.
        return label


def _head(key, size):
    """What stands before `size` bytes that are the value of `key` in a serialised example.

    From the inside out: the bytes, the list they are alone in, the feature, the entry of the map.
    Each is a tag and a size (https://protobuf.dev/programming-guides/encoding).
    """
    head = b""
    for tag in (b"\n", b"\n", b"\x12"):
        head = tag + _varint(len(head) + size) + head
    head = b"\n" + _varint(len(key)) + key + head
    return b"\n" + _varint(len(head) + size) + head


def _varint(number):
    out = []
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
