import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from biggan_jax import api
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.sample import tiles
from tests.test_api import make_bundle

COUNT = 70


@functools.cache
def model(devices):
    bundle = make_bundle(g_ch=16)
    bundle.standing_images = 192  # Three passes: fewer than eight devices, and odd for two.
    return api.Model(bundle, devices)


@functools.cache
def images_of_one_device():
    return model(1).sample(np.arange(COUNT) % 3, 0.7, seed=3)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_bytes_depend_on_neither_devices_nor_batch(devices):
    labels = np.arange(COUNT) % 3
    want = images_of_one_device()
    assert want.std() > 10 and len({image.tobytes() for image in want}) == COUNT
    for batch in (1, 7, 64):
        blocks = list(model(devices).stream(labels, 0.7, seed=3, batch=batch))
        assert [start for start, _ in blocks] == list(
            np.cumsum([0, *(len(images) for _, images in blocks[:-1])])
        )
        np.testing.assert_array_equal(np.concatenate([images for _, images in blocks]), want)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_bytes_depend_on_no_neighbours(size):
    """One call after the other, of so many images each."""
    labels = np.arange(COUNT) % 3
    want = images_of_one_device()
    for start in range(0, COUNT, size):
        part = model(2).sample(labels[start : start + size], 0.7, seed=3, first=start)
        np.testing.assert_array_equal(part, want[start : start + size])


def test_standing_statistics_do_not_depend_on_devices():
    first, *others = (model(n)._tiles.standing_statistics(0.7, "threshold") for n in (1, 2, 8))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_tiles_are_a_matter_of_the_model_and_the_kind_of_device():
    shape = {"g_attention": (), "d_attention": ()}
    for resolution, on_cpu, elsewhere in ((16, 16, 64), (64, 16, 64), (128, 4, 64), (512, 1, 4)):
        assert tiles.tile_size(shape | {"resolution": resolution}, "cpu") == on_cpu
        assert tiles.tile_size(shape | {"resolution": resolution}, "gpu") == elsewhere
    huge = {"resolution": 256, "g_attention": (128,), "d_attention": ()}
    assert tiles.tile_size(huge, "gpu") == 4


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_with_1_2_and_8_devices_write_the_same_file(tmp_path):
    bundle_lib.write(make_bundle(g_ch=16), str(tmp_path / "bundle"))
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    written = set()
    for devices, batch in ((1, 64), (2, 7), (8, 1)):
        out = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-m", "biggan_jax.cli", "sample", str(tmp_path / "bundle")]
        command += [f"--npz={out}", "--num=9", f"--devices={devices}", f"--batch={batch}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stderr
        assert f"on {devices} device(s)" in done.stdout
        written.add(out.read_bytes())
    assert len(written) == 1
