"""What a run does when the watchdog raises an alarm."""

import json
import os
import shutil

import numpy as np
import pytest

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.train import digest, loop, overview, rollback, watchdog
from biggan_jax.train.checkpoint import Checkpoints


@pytest.fixture
def poisoned(monkeypatch):
    """Makes G NaN in the given steps, the n-th of them after n - 1 rollbacks."""

    def poison(*steps):
        def broken(config, mesh):
            step = real(config, mesh)

            def wrapped(state, batch, control):
                count = int(control.noise)
                if count < len(steps) and int(state.step) + 1 == steps[count]:
                    control = control._replace(g_lr_scale=np.float32(np.nan))
                return step(state, batch, control)

            return wrapped

        monkeypatch.setattr(step_lib, "make_train_step", broken)

    real = step_lib.make_train_step
    return poison


@pytest.fixture
def watched(tiny):
    tiny.update(num_steps=8, checkpoint_every=2, sample_every=8, watch_every=1)
    return tiny


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_nan_is_rolled_back_and_the_run_ends(watched, tmp_path, poisoned, capsys):
    undisturbed = loop.train(watched, str(tmp_path / "undisturbed"))
    poisoned(6)
    watched.watch.g_lr_factor, watched.keep_checkpoints = 0.5, 9
    run = tmp_path / "run"
    state = loop.train(watched, str(run))
    out = capsys.readouterr().out
    assert "alarm: rule 'nan': step 6: not a finite number: G's parameters" in out
    assert "rollback 1 of at most 3: from step 6 to 4, with other random numbers" in out
    assert "going on from the checkpoint of step 4\n" in out
    assert int(state.step) == 8 and digest.digest(state) != digest.digest(undisturbed)
    lines = read(run / "metrics.jsonl")
    back = lines.pop(4)
    assert {k: back[k] for k in ("step", "rollback", "from", "to", "rule")} == {
        **{"step": 6, "rollback": 1, "from": 6, "to": 4, "rule": "nan"}
    }
    assert [line["step"] for line in lines] == list(range(1, 9))
    # Before the rollback the numbers are those of the undisturbed run, after it they are not.
    before = read(tmp_path / "undisturbed" / "metrics.jsonl")
    assert lines[:4] == before[:4]
    assert all(a["d_loss"] != b["d_loss"] for a, b in zip(lines[4:], before[4:], strict=True))
    assert [line["step"] for line in read(run / "spectra.jsonl")] == list(range(1, 9))
    status = json.loads((run / "status.json").read_text())
    assert status["phase"] == "done" and status["rollbacks"] == 1
    evidence = run / "evidence" / "1-nan-6"
    alarm = json.loads((evidence / "alarm.json").read_text())
    assert (alarm["rule"], alarm["step"]) == ("nan", 6) and "G's parameters" in alarm["where"]
    assert {"curves.png", "spectra.png", "metrics.jsonl", "spectra.jsonl"} <= set(
        os.listdir(evidence)
    )
    assert {"curves.png", "spectra.png"} <= set(os.listdir(run))
    with Checkpoints(run / "checkpoints", keep=None) as saved:
        content = saved.manifests()[8]
    assert content["meta"]["rollbacks"] == 1
    # Going on after all of it gives what one run gives.
    poisoned(6)
    parts = tmp_path / "parts"
    first = config_lib.ml_collections.ConfigDict(watched)
    first.num_steps = 6
    loop.train(first, str(parts))
    again = loop.train(watched, str(parts))
    assert digest.digest(again) == digest.digest(state)
    # So does going on from before the step that was gone back to: to that step by the first draws.
    for step in (4, 6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    lines = (run / "metrics.jsonl").read_text()
    again = loop.train(watched, str(run))
    assert "going on from the checkpoint of step 2\n" in capsys.readouterr().out
    assert digest.digest(again) == digest.digest(state)
    assert (run / "metrics.jsonl").read_text() == lines
    with Checkpoints(run / "checkpoints", keep=None) as saved:
        made = {step: content["meta"]["rollbacks"] for step, content in saved.manifests().items()}
    assert made == {2: 0, 4: 0, 6: 1, 8: 1}


def test_three_in_a_row_stop_the_run_with_code_3(watched, tmp_path, poisoned, capsys, data_dir):
    poisoned(5, 6, 5)
    run = tmp_path / "run"
    keys = {k: v for k, v in config_lib.flatten(watched).items() if v is not None}
    argv = ["train", "--config=configs/digits.py", f"--workdir={run}"]
    del keys["watch.max_rollbacks"]
    argv += [f"--config.{k}={v}" for k, v in (keys | {"watch.max_rollbacks": 2}).items()]
    assert cli.main(argv) == 3
    err = capsys.readouterr().err
    assert (
        "biggan train: stopped: rule 'nan': step 5: not a finite number: G's parameters" in err
        and "2 rollbacks have not helped (watch.max_rollbacks)" in err
        and f"is in {run}/evidence/3-nan-5." in err
    )
    entries = json.loads((run / "rollbacks.json").read_text())
    assert [(e["number"], e["at"], e["to"]) for e in entries] == [(1, 5, 4), (2, 6, 4)]
    assert json.loads((run / "status.json").read_text())["phase"] == "stopped"
    assert sorted(os.listdir(run / "evidence")) == ["1-nan-5", "2-nan-6", "3-nan-5"]
    # The second time steps 5 and 6 were made; of 5 there is a checkpoint half-way.
    assert sorted(os.listdir(run / "checkpoints")) == ["2", "4", "rolled-back-2-5"]
    # The same command with more rollbacks allowed goes on.
    argv[-1] = "--config.watch.max_rollbacks=9"
    assert not any("max_rollbacks=2" in a for a in argv)
    poisoned(5, 6)
    assert cli.main(argv) == 0
    assert overview.inspect(str(run))["checkpoints"][-1] == 8


def test_a_rollback_before_the_first_checkpoint_starts_anew(watched, tmp_path, poisoned):
    poisoned(1)
    run = tmp_path / "run"
    loop.train(watched, str(run))
    assert [line["step"] for line in read(run / "metrics.jsonl")] == [1, *range(1, 9)]
    assert json.loads((run / "rollbacks.json").read_text())[0]["to"] == 0


def test_a_rollback_finds_the_last_regular_checkpoint_behind_a_half_way_one(
    watched, tmp_path, poisoned
):
    watched.update(checkpoint_every=4, keep_checkpoints=1)
    poisoned(7)
    run = tmp_path / "run"
    loop.train(watched, str(run))
    (entry,) = json.loads((run / "rollbacks.json").read_text())
    assert (entry["at"], entry["to"]) == (7, 4)
    assert sorted(os.listdir(run / "checkpoints")) == ["8", "rolled-back-1-6"]


@pytest.mark.parametrize("policy", ["stop", "ignore"])
def test_policies(watched, tmp_path, monkeypatch, capsys, policy):
    def see(self, step, metrics):
        if step == 3:
            return watchdog.Alarm("d_won", 3, 1, "d_loss", "step 3: D has won.")
        return None

    monkeypatch.setattr(watchdog.Watchdog, "see", see)
    watched.watch.policy = policy
    run = tmp_path / "run"
    if policy == "ignore":
        assert int(loop.train(watched, str(run)).step) == 8
        said = "alarm, ignored as watch.policy says: rule 'd_won': step 3: D has won."
        assert capsys.readouterr().out.count(said) == 1
        assert not (run / "evidence").exists()
        return
    with pytest.raises(loop.Diverged, match=r"D has won; watch.policy is 'stop'"):
        loop.train(watched, str(run))
    assert sorted(os.listdir(run / "evidence" / "1-d_won-3")) == [
        *("alarm.json", "curves.png", "fakes.png", "metrics.jsonl", "spectra.jsonl"),
        "spectra.png",
    ]
    assert overview.inspect(str(run))["checkpoints"] == [2]


def test_nan_is_never_ignored(watched, tmp_path, poisoned):
    poisoned(3)
    watched.watch.policy = "ignore"
    with pytest.raises(loop.Diverged, match="not a finite number"):
        loop.train(watched, str(tmp_path / "run"))


def test_a_collapse_goes_back_by_the_margin(watched, tmp_path, monkeypatch):
    real = watchdog.Watchdog.see

    def see(self, step, metrics):
        if step == 8 and not os.path.exists(tmp_path / "run" / "rollbacks.json"):
            return watchdog.Alarm("d_flat", 8, 7, "d_real - d_fake", "step 8: flat.")
        return real(self, step, metrics)

    monkeypatch.setattr(watchdog.Watchdog, "see", see)
    watched.watch.margin = 3
    loop.train(watched, str(tmp_path / "run"))
    [entry] = json.loads((tmp_path / "run" / "rollbacks.json").read_text())
    assert (entry["at"], entry["to"]) == (8, 4)
    # What later checkpoints hold is kept, and does not count.
    assert "rolled-back-1-6" in os.listdir(tmp_path / "run" / "checkpoints")


def test_which_rollbacks_hold(tmp_path):
    """The run went to 80 and on, then from 95 to 40, then from 200 to 160."""
    ledger = rollback.Ledger(str(tmp_path), is_main=True)
    assert ledger.until(7) == [] and ledger.next_after(7) is None
    for number, (at, to) in enumerate([(91, 80), (95, 40), (200, 160)], 1):
        ledger.add(rollback.Rollback(number, at, to, "nan", ""))
    again = rollback.Ledger(str(tmp_path), is_main=False)
    held = {step: len(again.until(step)) for step in (0, 39, 40, 79, 80, 159, 160, 999)}
    assert held == {0: 0, 39: 0, 40: 2, 79: 2, 80: 2, 159: 2, 160: 3, 999: 3}
    borders = {step: again.next_after(step) for step in (0, 39, 40, 80, 159, 160)}
    assert borders == {0: 40, 39: 40, 40: 160, 80: 160, 159: 160, 160: None}
