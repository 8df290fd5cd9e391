"""Benchmarks of the accelerator run on jax, flax, optax, ml_collections and numpy alone."""

import json
import pathlib
import subprocess
import sys

import pytest

from biggan_jax.models import forms

ROOT = pathlib.Path(__file__).parents[2]
# What setup.py asks for besides those five, and what the extras bring.
MISSING = (
    *(
        "array_record",
        "clu",
        "grain",
        "matplotlib",
        "numba",
        "orbax",
        "PIL",
        "safetensors",
    ),
    *("simplejpeg", "sklearn", "tensorboard", "tensorflow", "tensorflow_datasets", "tqdm", "torch"),
    "onnx",
)
RUN = """
import importlib, sys
for name in {missing!r}:
    sys.modules[name] = None  # An import of it fails.
sys.argv = sys.argv[1:]
importlib.import_module(sys.argv[0]).main(sys.argv[1:])
"""


def run(*args):
    code = RUN.format(missing=MISSING)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_training_step(tmp_path):
    got = run(
        "benchmarks.train_step",
        *("--resolution=16", "--ch=4", "--batch=8", "--classes=3", "--attention=8"),
        *("--warmup=1", "--steps=2", f"--profile={tmp_path / 'profile'}", "--json"),
    )
    assert got["real_images_per_second"] == pytest.approx(16 / got["step_seconds"])
    assert 0 < got["flops_needed"] < got["flops_as_written"]
    assert got["mfu"] == pytest.approx(got["flops_needed"] / got["step_seconds"] / got["peak"])
    assert got["peak_source"].endswith("measured here") and got["steps"] == 2
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.multiprocess
def test_attention(tmp_path):
    got = run(
        "benchmarks.attention", "--side=8", "--channels=16", "--batch=2", "--steps=1", "--json"
    )
    assert set(got["forms"]) == {"plain", "blocked", "whole"} and got["table"] == "plain"
    assert all(row["ms"] > 0 for row in got["forms"].values())


@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_table_is_written_by_one_command(tmp_path):
    """The part of this backend and dtype alone; what other machines measured stays."""
    path = tmp_path / "forms.json"
    other = {"about": "measured elsewhere", "float32": {"conv1x1": {"1": {"1": "matmul"}}}}
    path.write_text(json.dumps({"tpu": other, "cpu": {"bfloat16": {}}}))
    got = run(
        "benchmarks.conv_forms",
        *("--quick", "--gflop=0.001", "--repeats=1", f"--write={path}", "--json"),
    )
    table = json.loads(path.read_text())
    assert table["tpu"] == other and table["cpu"]["bfloat16"] == {}
    assert table["cpu"]["float32"] == got["part"]
    assert "GFLOP" in table["cpu"]["about"]
    # Whatever was measured.
    assert forms.look_up(table, "cpu", "float32", "attention", 1, 64) == "blocked"
    by_row = {(r["operation"], r["channels"], r["side"]): r for r in got["rows"]}
    assert {"plain", "winograd"} <= set(by_row["conv3x3", 96, 8]["ms"])
    assert {"plain", "window", "fused", "phases"} == set(by_row["up_conv3x3", 9, 4]["ms"])
    assert {"plain", "window"} == set(by_row["avg_pool2", 96, 8]["ms"])
