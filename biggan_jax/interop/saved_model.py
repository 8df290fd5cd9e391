"""TensorFlow's SavedModel with the signature of the BigGAN modules on TF-Hub.

The graph is made of TensorFlow's own operations, not of a JAX program wrapped in one: so any
TensorFlow reads it, on any device, and converters to other formats know every operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.interop import graph
from biggan_jax.interop.frozen import Frozen

NAME = "saved-model"
PACKAGES = ("tensorflow",)
SIGNATURE, OUTPUT = "default", "default"  # As on TF-Hub.
USE = """import tensorflow as tf

generate = tf.saved_model.load("THIS_FOLDER").signatures["default"]
images = generate(z=tf.constant(z), y=tf.constant(y), truncation=tf.constant(truncation))["default"]
"""


class TfOps:
    """`graph.Ops` in TensorFlow; maps are NHWC."""

    def __init__(self, tf: Any, variables: dict[str, Any]):
        """Takes the module and the variables by the frozen arrays' names."""
        self._tf, self._variables = tf, variables
        self.constant = tf.constant
        self.relu, self.rsqrt = tf.nn.relu, tf.math.rsqrt
        self.softmax, self.images = tf.nn.softmax, tf.tanh

    def weight(self, name: str) -> Any:
        """Returns a frozen array."""
        return self._variables[name]

    def matmul(self, a: Any, b: Any, transpose_b: bool = False) -> Any:
        """Multiplies."""
        return self._tf.matmul(a, b, transpose_b=transpose_b)

    def join(self, parts: Sequence[Any]) -> Any:
        """Puts columns beside each other."""
        return self._tf.concat(parts, axis=1)

    def columns(self, x: Any, start: int, stop: int) -> Any:
        """Returns some columns."""
        return x[:, start:stop]

    def unit(self, x: Any) -> Any:
        """Limits to [0, 1]."""
        return self._tf.clip_by_value(x, 0.0, 1.0)

    def first_map(self, x: Any, channels: int) -> Any:
        """Makes the map that the blocks start from."""
        return self._tf.reshape(x, [-1, 4, 4, channels])

    def spread(self, x: Any, channels: int) -> Any:
        """Makes numbers a channel fit a map."""
        return self._tf.reshape(x, [-1, 1, 1, channels])

    def conv(self, x: Any, place: str) -> Any:
        """Convolves."""
        y = self._tf.nn.conv2d(x, self.weight(f"{place}/kernel"), 1, "SAME")
        return y + self.weight(f"{place}/bias") if f"{place}/bias" in self._variables else y

    def up(self, x: Any) -> Any:
        """Repeats each pixel 2x2."""
        return self._tf.repeat(self._tf.repeat(x, 2, axis=1), 2, axis=2)

    def unpool(self, x: Any) -> Any:
        """Puts zeros between pixels."""
        _, h, w, c = x.shape
        y = self._tf.reshape(x, [-1, h, 1, w, 1, c])
        y = self._tf.pad(y, [[0, 0], [0, 0], [0, 1], [0, 0], [0, 1], [0, 0]])
        return self._tf.reshape(y, [-1, 2 * h, 2 * w, c])

    def first_channels(self, x: Any, count: int) -> Any:
        """Drops the other channels."""
        return x[..., :count]

    def max_pool(self, x: Any) -> Any:
        """Takes the largest of 2x2 pixels."""
        return self._tf.nn.max_pool2d(x, 2, 2, "VALID")

    def pixels(self, x: Any) -> Any:
        """Makes a row of pixels."""
        return self._tf.reshape(x, [-1, x.shape[1] * x.shape[2], x.shape[3]])

    def as_map(self, x: Any, size: int) -> Any:
        """The inverse of `pixels`."""
        return self._tf.reshape(x, [-1, size, size, x.shape[-1]])


def write(frozen: Frozen, folder: str) -> None:
    """Writes the model.

    Args:
      frozen: the generator.
      folder: is there and empty.
    """
    tf = host_tensorflow.load()
    module = tf.Module()
    with tf.device("CPU"):
        module.weights = {
            name: tf.Variable(array, name=name, trainable=False)
            for name, array in frozen.arrays.items()
        }
    inputs = {
        "z": tf.TensorSpec([None, frozen.model["z_dim"]], tf.float32, name="z"),
        "y": tf.TensorSpec([None, frozen.model["num_classes"]], tf.float32, name="y"),
        "truncation": tf.TensorSpec([], tf.float32, name="truncation"),
    }

    @tf.function(input_signature=list(inputs.values()), autograph=False)
    def generate(z, y, truncation):
        ops = TfOps(tf, module.weights)
        return {OUTPUT: graph.generator(ops, frozen, z, y, truncation)}

    module.generate = generate
    tf.saved_model.save(module, folder, signatures={SIGNATURE: generate})


def load(folder: str) -> Callable[..., np.ndarray]:
    """Returns `generate(z, y, truncation)` of a saved model."""
    tf = host_tensorflow.load()
    call = tf.saved_model.load(folder).signatures[SIGNATURE]

    def generate(z, y, truncation):
        inputs = {"z": z, "y": y, "truncation": truncation}
        fed = {name: tf.constant(value, tf.float32) for name, value in inputs.items()}
        return call(**fed)[OUTPUT].numpy()

    return generate
