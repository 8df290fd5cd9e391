"""The SLURM job, with stand-ins for srun, scancel, squeue and scontrol."""

import itertools
import os
import pathlib
import signal
import subprocess
import time

import pytest

from launch import local_pod
from tests.launch.conftest import ROOT

pytestmark = pytest.mark.multiprocess
SCRIPT = ROOT / "launch" / "slurm" / "train.sbatch"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "slurm.txt"
# Each task in a session of its own, as on another node; srun gives the highest code.
SRUN = """
[[ $1 == --kill-on-bad-exit=0 ]] || exit 99
shift
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i setsid "$@" &
  echo $! >>"$FAKE/tasks"
done
highest=0
for pid in $(cat "$FAKE/tasks"); do
  code=0
  wait "$pid" || code=$?
  ((code <= highest)) || highest=$code
done
exit "$highest"
"""
SCANCEL = """
[[ $* == "--signal=TERM $SLURM_JOB_ID" ]] || exit 99
for pid in $(cat "$FAKE/tasks"); do kill -TERM -- "-$pid"; done
"""
CODES = 'codes=($CODES); exit "${codes[$SLURM_PROCID]}"'
# Counts signals; ends with 75 after the first, as biggan does, unless a second one comes.
SAVES = """
trap 'echo TERM >>"$FAKE/signals-$SLURM_PROCID"' TERM
touch "$FAKE/ready-$SLURM_PROCID"
until [[ -e $FAKE/signals-$SLURM_PROCID ]]; do sleep 0.05; done
sleep 0.5
exit 75
"""


@pytest.fixture
def job(tmp_path):
    """Starts the script as SLURM would; `job(command, **env)` gives the process."""
    tools = {
        "srun": SRUN,
        "scancel": SCANCEL,
        "squeue": 'echo "$STATE"',
        "scontrol": 'echo "$*" >>"$FAKE/asked"',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    folder = tmp_path / "it's a folder"
    folder.mkdir()

    def start(*command, **env):
        known = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "STATE": "RUNNING"}
        path = f"{tmp_path}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", SCRIPT, *command],
            cwd=folder,
            env=dict(os.environ, PATH=path, FAKE=str(tmp_path)) | known | env,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _end(process, tmp_path):
    _, err = process.communicate(timeout=300)
    path = tmp_path / "asked"
    assert not list((tmp_path / "it's a folder").iterdir())  # Its own files are gone.
    return process.returncode, path.read_text() if path.exists() else "", err


@pytest.mark.parametrize(
    ("codes", "want", "again"),
    [
        ("0 0", 0, False),
        ("2 69", 2, False),
        ("69 3", 3, False),
        ("75 75", 75, True),
        ("75 69", 69, True),
        ("0 75", 75, True),
        ("137 70", 137, True),
        ("1 0", 1, True),
    ],
)
def test_exit_codes(job, tmp_path, codes, want, again):
    code, asked, err = _end(job("bash", "-c", CODES, CODES=codes), tmp_path)
    assert code == want
    assert asked == ("requeue 42\n" if again else "")
    assert f"exit codes: {codes}; together {want}" in err


def test_together_is_what_it_is_on_one_machine():
    text = SCRIPT.read_text()
    function = text[text.index("common_code() {") : text.index("# Each task writes")]
    cases = list(itertools.product([0, 1, 2, 3, 69, 75, 143], repeat=3))
    calls = "".join(f"common_code {a} {b} {c}\n" for a, b, c in cases)
    done = subprocess.run(["bash", "-euc", function + calls], capture_output=True, text=True)
    assert [int(line) for line in done.stdout.split()] == list(map(local_pod.common_code, cases))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_comes_to_each_task_once(job, tmp_path, number):
    process = job("bash", "-c", SAVES)
    end = time.monotonic() + 300
    while not all((tmp_path / f"ready-{i}").exists() for i in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.02)
    if number == signal.SIGTERM:  # From SLURM itself, to all that is of the job.
        for pid in (tmp_path / "tasks").read_text().split():
            os.killpg(int(pid), number)
    process.send_signal(number)
    code, asked, err = _end(process, tmp_path)
    assert (code, asked) == (75, "requeue 42\n"), err
    for i in (0, 1):
        assert (tmp_path / f"signals-{i}").read_text() == "TERM\n"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STATE": "CANCELLED"}, "the job is CANCELLED, so it is left to SLURM"),
        ({"STATE": ""}, "the job is gone, so it is left to SLURM"),
        ({"SLURM_RESTART_COUNT": "49"}, "gave up: this was start 50 of 50"),
        ({"BIGGAN_TRIES": "1"}, "gave up: this was start 1 of 1"),
    ],
)
def test_not_for_ever_and_not_against_anybodys_will(job, tmp_path, env, message):
    code, asked, err = _end(job("bash", "-c", CODES, CODES="75 75", **env), tmp_path)
    assert (code, asked) == (75, "") and message in err


def test_a_task_that_leaves_no_code_is_lost(job, tmp_path):
    vanish = '[[ $SLURM_PROCID == 0 ]] || kill -9 "$PPID"; exit 75'
    code, asked, err = _end(job("bash", "-c", vanish), tmp_path)
    assert (code, asked) == (69, "requeue 42\n")
    assert "exit codes: 75 69; together 69" in err


def test_dry_run_and_bad_arguments():
    def run(*words, **env):
        known = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        done = subprocess.run(
            ["bash", SCRIPT, *words], env=known | env, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = run("--dry-run", "biggan", "train", '--workdir=/a b/it\'s "here"')
    assert (code, err) == (0, "")
    assert out == GOLDEN.read_text()
    for words in ([], ["--dry-run"], ["--config=x"]):
        code, out, err = run(*words)
        assert code == 2 and not out and "what is to be run?" in err
    code, _, err = run("biggan", "train")
    assert code == 2 and "is for sbatch; --dry-run shows what it does" in err
    code, _, err = run("biggan", "train", BIGGAN_TRIES="many")
    assert code == 2 and "BIGGAN_TRIES='many': must be a number from 1" in err


def test_what_sbatch_is_asked():
    lines = SCRIPT.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert "--requeue" in options and "--signal=B:USR1@180" in options
    values = dict(option.split("=", 1) for option in options if "=" in option)
    assert values["--gpus-per-node"] == values["--ntasks-per-node"]  # One task a GPU.
    assert values["--open-mode"] == "append"  # The log of the start before is kept.
    # sbatch reads no further than the first line that is no comment.
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])
