"""Training by two processes, which hold weights in parts: equal to one, and not lost with one."""

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]
GLOO = re.compile(
    r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    r"|\d+|\s"
)
CONFIG = """
from biggan_jax import config

def get_config(variant=""):
    c = config.shrink(config.load({digits!r}))
    c.update(num_steps=40, checkpoint_every=10, sample_every=20, heartbeat_seconds=10)
    c.watch_every = 10
    # As pods have it; the larger kernels are wide enough to be cut up.
    c.parallel = "fsdp"
    c.model.update(g_ch=12, d_ch=12)
    c.data.dir = {data_dir!r}
    return c
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory, data_dir):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(digits=str(ROOT / "configs" / "digits.py"), data_dir=data_dir))
    return path


def train(config_file, run, *overrides):
    return [
        *(sys.executable, "-m", "biggan_jax.cli", "train"),
        *(f"--config={config_file}", f"--workdir={run}", *overrides),
    ]


def pod(command, *options, **more):
    launcher = [sys.executable, "launch/local_pod.py", "--processes=2", "--devices=2", *options]
    return subprocess.Popen(
        [*launcher, "--", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, **more
    )


def digest(run):
    command = [sys.executable, "-m", "biggan_jax.cli", "inspect", str(run), "--digest", "--json"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return json.loads(out)["digest"]


def names(run):
    found = {str(p.relative_to(run)) for p in run.rglob("*") if "checkpoints/" not in str(p)}
    return {re.sub(r"(events\.out).*", r"\1", name) for name in found}


@pytest.fixture(scope="module")
def two(config_file, tmp_path_factory):
    """The run that nothing disturbs, and what was printed."""
    run = tmp_path_factory.mktemp("two") / "run"
    process = pod(train(config_file, run), stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return run, out


def test_two_processes_are_one_run(two, config_file, tmp_path):
    run, out = two
    one = tmp_path / "run"
    # The first steps: later, rounding has grown, as in any two runs of a GAN.
    changes = ("num_steps=20", "device_count=4", "parallel=data")
    command = train(config_file, one, *(f"--config.{change}" for change in changes))
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=300)
    lines = [(r / "metrics.jsonl").read_text().splitlines() for r in (run, one)]
    assert len(lines[0]) == 40 and len(lines[1]) == 20
    for mine, theirs in zip(*lines, strict=False):
        mine, theirs = json.loads(mine), json.loads(theirs)
        assert mine.keys() == theirs.keys() and mine["step"] == theirs["step"]
        for name, value in mine.items():
            # Gradients jump where rounding turns a ReLU over, as tests/gan/test_step.py has it.
            limit = 1e-2 if name.endswith("grad_norm") else 1e-4
            np.testing.assert_allclose(value, theirs[name], atol=limit, rtol=limit, err_msg=name)
    sheets = [np.asarray(Image.open(r / "samples" / "fakes_000000.png"), int) for r in (run, one)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1  # Rounded to whole levels.
    reals = [(r / "samples" / "reals.png").read_bytes() for r in (run, one)]
    assert reals[0] == reals[1]
    assert names(run) - {"samples/fakes_000040.png"} == names(one)
    assert len(re.findall(r"^\[0\] step ", out, re.MULTILINE)) == 40
    # Gloo tells of its connections, piece by piece and in several threads at once, and TFDS that
    # the digits had to be prepared.
    by_other = [s[len("[1] ") :] for s in out.splitlines() if s.startswith("[1] ")]
    left = "".join(GLOO.sub("", line) for line in by_other if "ataset" not in line)
    assert not left, out


@pytest.mark.parametrize(("lost", "number"), [(1, signal.SIGKILL), (0, signal.SIGSTOP)])
def test_a_lost_process_costs_a_restart_and_nothing_else(two, config_file, tmp_path, lost, number):
    run, pids = tmp_path / "run", tmp_path / "pids"
    with pod(
        train(config_file, run),
        *("--restart=1", f"--pids={pids}", "--grace=30"),
        stderr=subprocess.STDOUT,
    ) as process:
        lines, times = [], {}
        for line in process.stdout:
            lines.append(line)
            if line.startswith("[0] step 15/") and not times:
                times["lost"] = time.monotonic()
                os.kill(int(pids.read_text().split()[lost]), number)
            if "leaving with code 69" in line and "end" not in times:
                times["end"] = time.monotonic()
    out = "".join(lines)
    assert process.returncode == 0, out
    assert times["end"] - times["lost"] < 20, out
    assert re.search(rf"\[{1 - lost}\] process {lost} .* since .*leaving with code 69", out), out
    assert out.count("starting all of it again, 0 left") == 1
    assert "[0] going on from the checkpoint of step 10" in out
    assert digest(run) == digest(two[0])


def test_a_config_that_cannot_be_shared_ends_all_with_code_2_and_no_restart(config_file, tmp_path):
    command = train(config_file, tmp_path / "run", "--config.device_count=3")
    process = pod(command, "--restart=3", stderr=subprocess.STDOUT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 2, out
    for i in range(2):
        assert f"[{i}] biggan train: device_count=3: must be a multiple of the 2 processes" in out
    assert "again" not in out and "coordination" not in out


def test_the_launcher_is_a_function_too(tmp_path):
    spec = importlib.util.spec_from_file_location("local_pod", ROOT / "launch" / "local_pod.py")
    local_pod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(local_pod)
    code = f"import os; open({str(tmp_path)!r} + '/' + os.environ['JAX_PROCESS_ID'], 'w'); exit(75)"
    assert local_pod.run_pod([sys.executable, "-c", code], processes=2) == 75
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]
