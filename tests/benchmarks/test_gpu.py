"""What `benchmarks.gpu` runs, and how it takes what does not fit."""

import json
import pathlib
import subprocess

import pytest

from benchmarks import gpu

ROOT = pathlib.Path(__file__).parents[2]


def test_commands_are_of_benchmarks_and_configs_there_are():
    entries = list(gpu.commands(3))
    names = [name for name, _, _ in entries]
    assert len(set(names)) == len(names)
    assert {"biggan128 bfloat16 batch 256", "biggan256 float32 beside PyTorch"} <= set(names)
    for _, benchmark, alternatives in entries:
        assert (ROOT / "benchmarks" / f"{benchmark}.py").is_file()
        for arguments in alternatives:
            configs = [a.split("=")[1] for a in arguments if a.startswith("--config=")]
            assert all((ROOT / path).is_file() for path in configs)


def answers(monkeypatch, *done):
    """Has the processes end with these (code, stdout, stderr), in turn; returns their commands."""
    left, seen = list(done), []

    def run(command, **_):
        seen.append(command)
        return subprocess.CompletedProcess(command, *left.pop(0))

    monkeypatch.setattr(subprocess, "run", run)
    return seen


FULL = (1, "", "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory")


def test_the_first_that_fits_counts(monkeypatch):
    seen = answers(monkeypatch, FULL, (0, 'compiling\n{"mfu": 0.5}\n', ""))
    assert gpu.run("train_step", [["--batch=3"], ["--batch=2"], ["--batch=1"]], print) == {
        "mfu": 0.5
    }
    assert [command[3] for command in seen] == ["--batch=3", "--batch=2"]


@pytest.mark.parametrize("last", [FULL, (2, "", "no such argument")])
def test_what_does_not_work_is_a_result(monkeypatch, capsys, last):
    answers(monkeypatch, FULL, last)
    entry = ("one", "train_step", [["--batch=2"], ["--batch=1"]])
    monkeypatch.setattr(gpu, "commands", lambda steps: [entry])
    gpu.main(["--json"])
    got = json.loads(capsys.readouterr().out)["one"]
    assert got == {"error": last[2], "arguments": ["--batch=1"]}


def test_dry_run_starts_nothing(monkeypatch, capsys):
    assert not answers(monkeypatch)
    gpu.main(["--dry-run", "--only=PyTorch"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("benchmarks.torch_step" in line for line in lines)
