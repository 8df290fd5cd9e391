"""TensorFlow as we use it: to read and write files, without a word and without an accelerator."""

import contextlib
import os
from types import ModuleType


def silence() -> None:
    """Keeps TensorFlow from talking at import; to be called before its first import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # The note about oneDNN is printed before there is a log level; without oneDNN there is none.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def load() -> ModuleType:
    """Imports TensorFlow and returns it; it must not take the accelerators' memory from JAX."""
    silence()
    import tensorflow as tf

    # Raises RuntimeError if someone has used TensorFlow's devices before: then it is their choice.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
    return tf
