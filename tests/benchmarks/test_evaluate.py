import json

import numpy as np
import pytest

from benchmarks import evaluate


def test_the_line_says_how_fast_and_how_far_apart(monkeypatch, capsys):
    """With stand-ins for both programs, which the benchmark itself compares."""
    calls = []

    def ours(path, devices):
        def call(pictures):
            calls.append("ours")
            assert len(pictures) == 6
            return np.full(3, 2.0), np.eye(3)

        return call, 32

    def theirs(path, threads):
        def call(pictures, batch):
            calls.append("theirs")
            assert pictures.shape == (6, 16, 16, 3) and batch == 32
            return np.array([2.0, 2.0, 1.0]), np.eye(3)

        return call

    monkeypatch.setattr(evaluate, "make_ours", ours)
    monkeypatch.setattr(evaluate, "make_theirs", theirs)
    monkeypatch.setattr(evaluate.pth, "write", lambda path, state: None)
    monkeypatch.setattr(evaluate.made, "inception_state", dict)
    evaluate.main(["--num=6", "--size=16", "--warmup=1", "--steps=3", "--json"])
    assert calls == ["ours", "theirs"] * 4
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["difference"] == pytest.approx(0.5)
    assert len(result["seconds"]["ours"]) == 3 and result["weights"] == "random"
    assert result["ratio_to_torch_fidelity"] > 0 and result["ratio_of_cpu_seconds"] > 0
