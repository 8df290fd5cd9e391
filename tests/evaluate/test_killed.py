"""An evaluation whose process is killed goes on in another."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from biggan_jax.evaluate import images

BATCH = 32
TIMEOUT = 900


def start(argv, cache, slow="0"):
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "SLOW": slow, "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evaluate.killed", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, re.findall(r"reads \d+ to \d+", err)  # Bars stand on the same lines.


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_json(tmp_path):
    draws = np.random.default_rng(0)
    for name, count in (("real", 200), ("fake", 300)):
        pictures = draws.integers(0, 256, (count, 16, 16, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures, arr_1=np.arange(count) % 5)
    argv = ["evaluate", str(tmp_path / "fake.npz"), "--reference", str(tmp_path / "real.npz")]
    argv += ["--features=means", "--metrics=fd,is,mind,prdc,label_accuracy", "--devices=1"]
    argv += ["--json"]
    expected, reads = finish(start(argv, str(tmp_path / "undisturbed")))
    # A look at the size, the reference, twice as a whole for the classifier, the images.
    assert reads.count("reads 0 to 31") == 2
    cache = tmp_path / "cache"
    process = start(argv, str(cache), slow="0.3")
    end = time.monotonic() + TIMEOUT
    try:
        # The reference has 200 images: beyond them it is the images that are being measured.
        seen = ""
        while "reads 96 to 127" not in seen.partition("reads 192 to 199")[2]:
            assert time.monotonic() < end and process.poll() is None, seen
            seen += process.stderr.readline()
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = cache.rglob("*.npz")
    count = int(images.read_npz(str(left))["count"])
    assert BATCH <= count < 300 and count % BATCH == 0
    found, reads = finish(start(argv, str(cache)))
    assert found == expected
    # The images before are not looked at again.
    assert f"reads {count} to {count + BATCH - 1}" in reads
    assert reads.count("reads 0 to 31") == 1  # Of the reference, which was done and is made again.
    assert not list(cache.rglob("*.npz"))
