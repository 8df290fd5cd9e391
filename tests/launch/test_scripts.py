"""Every shell script passes shellcheck, and sky.yaml is a task."""

import ast
import subprocess
import sys
import sysconfig

import pytest
import yaml

from launch import local_pod
from tests.launch.conftest import ROOT

SHELLCHECK = f"{sysconfig.get_path('scripts')}/shellcheck"
SCRIPTS = sorted(
    path
    for path in ROOT.glob("launch/**/*")
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash\n")
)
PROGRAMS = sorted(ROOT.glob("launch/**/*.py"))
SKY = ROOT / "launch" / "sky.yaml"


def shellcheck(*words, text=None):
    command = [SHELLCHECK, "--norc", *words]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_there_are_scripts():
    names = {str(path.relative_to(ROOT / "launch")) for path in SCRIPTS}
    assert names == {"tpu_vm/worker.sh", "slurm/train.sbatch"}
    assert set(ROOT.glob("launch/**/*.sh")) <= set(SCRIPTS)  # None without that first line.


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path):
    assert shellcheck(path) == (0, "")


def test_shellcheck_finds_mistakes():
    code, out = shellcheck("--shell=bash", "-", text="cd $1\n")
    assert code == 1 and "SC2086" in out


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_programs_need_python_alone(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            assert name.split(".")[0] in {"launch", *sys.stdlib_module_names}, name


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_scripts_in_sky_yaml(part):
    assert shellcheck("--shell=bash", "-", text=yaml.safe_load(SKY.read_text())[part]) == (0, "")


def test_sky_yaml():
    task = yaml.safe_load(SKY.read_text())
    # As SkyPilot 0.14 knows them.
    assert set(task) <= {"name", "resources", "num_nodes", "envs", "file_mounts", "setup", "run"}
    recovery = task["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [75] and recovery["max_restarts_on_errors"] > 0
    assert 75 not in local_pod.NOT_AGAIN
    for target, source in task["file_mounts"].items():
        assert (ROOT / source).is_file() and target in task["setup"]
    for name in task["envs"]:
        assert f"${name}" in task["setup"] + task["run"]
    assert '--workdir="$MOUNT/' in task["run"]


@pytest.mark.multiprocess
def test_sky_trains_by_the_same_words(tmp_path):
    """The run part, with a biggan that writes down what it is given."""
    home = tmp_path / "home"
    (home / ".biggan-launch/code").mkdir(parents=True)
    (home / ".biggan-launch/env/bin").mkdir(parents=True)
    biggan = home / ".biggan-launch/env/bin/biggan"
    biggan.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:],"
        " {k: v for k, v in os.environ.items() if k.startswith('JAX_')}]))\nsys.exit(75)\n"
    )
    biggan.chmod(0o755)
    task = yaml.safe_load(SKY.read_text())
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "MOUNT": "/mnt/it's here"}
    gpus = {
        "EXTRA": "cuda",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
    }
    told = []
    for extra in ({"EXTRA": "tpu", "SKYPILOT_NUM_NODES": "16"}, gpus):
        done = subprocess.run(
            ["bash", "-c", task["run"]], env=env | extra, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 75, done.stderr
        told.append(yaml.safe_load(done.stdout))
    assert told[0][0] == told[1][0]
    assert told[0][0][0] == "train" and told[0][0][-1] == "--workdir=/mnt/it's here/runs/biggan128"
    assert told[0][1] == {}
    assert told[1][1] == {
        "JAX_COORDINATOR_ADDRESS": "10.0.0.7:8476",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
