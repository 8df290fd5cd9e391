"""Photos, and weights for networks whose own are not at hand."""

import functools
import glob
import importlib.util
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.photos import photos


def squares(count, size):
    """Returns photos, `[count, size, size, 3]` uint8."""
    return np.stack(
        [np.asarray(p.resize((size, size), Image.Resampling.LANCZOS)) for p in photos(count)]
    )


def imagenet_photos():
    """Returns the 20 photos that foolbox ships and their classes, or skips the test."""
    found = importlib.util.find_spec("foolbox")
    if found is None:
        pytest.skip("foolbox is not installed")
    folder = os.path.join(next(iter(found.submodule_search_locations)), "data")
    paths = sorted(glob.glob(os.path.join(folder, "imagenet_*.jpg")))
    assert len(paths) == 20
    labels = [int(path.rsplit("_", 1)[1].removesuffix(".jpg")) for path in paths]
    return [Image.open(path).convert("RGB") for path in paths], np.array(labels)


@functools.cache
def inception_shapes():
    import jax
    import jax.numpy as jnp

    from biggan_jax.evaluate import inception

    images = jnp.zeros((1, inception.SIZE, inception.SIZE, 3))
    return jax.eval_shape(lambda: inception.InceptionV3().init(jax.random.key(0), images))["params"]


def inception_state(seed=0):
    """Returns random tensors in the layout of FID's weight file; activations keep their size."""
    draws = np.random.default_rng(seed)
    state = {}
    for name, shapes in inception_shapes().items():
        if name == "fc":
            continue
        rows, columns, channels, features = shapes["kernel"].shape
        kernel = draws.standard_normal((features, channels, rows, columns), np.float32)
        state[f"{name}.conv.weight"] = kernel * np.float32(np.sqrt(2 / (rows * columns * channels)))
        scale = lambda low, high, n=features: draws.uniform(low, high, n).astype(np.float32)  # noqa: E731
        state[f"{name}.bn.weight"], state[f"{name}.bn.bias"] = scale(0.9, 1.1), scale(-0.1, 0.1)
        state[f"{name}.bn.running_mean"] = scale(-0.1, 0.1)
        state[f"{name}.bn.running_var"] = scale(0.8, 1.2)
        state[f"{name}.bn.num_batches_tracked"] = np.array(0)
    state["fc.weight"] = draws.standard_normal((1008, 2048), np.float32) * np.float32(0.05)
    state["fc.bias"] = draws.standard_normal(1008, np.float32)
    return state
