import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.train import digest, loop, overview, runs
from biggan_jax.train.checkpoint import Checkpoints


def lines(workdir):
    with open(os.path.join(workdir, "metrics.jsonl")) as f:
        return [json.loads(line) for line in f]


def test_a_run_folder_holds_what_it_promises(tiny, tmp_path, capsys):
    workdir = str(tmp_path / "run")
    state = loop.train(tiny, workdir)
    assert int(state.step) == 4
    assert {
        "config.json",
        "data_report.json",
        "metrics.jsonl",
        "samples.png",
        "status.json",
    } <= set(os.listdir(workdir))
    assert any(name.startswith("events") for name in os.listdir(workdir))
    assert sorted(os.listdir(os.path.join(workdir, "samples"))) == [
        "fakes_000000.png",
        "fakes_000004.png",
        "reals.png",
    ]
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["d_loss"]) for line in lines(workdir))
    out = capsys.readouterr().out
    for word in ("1,437", "images per class", "step 4/4", "ETA", "samples.png"):
        assert word in out
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["phase"], status["step"], status["last_checkpoint"]) == ("done", 4, 4)
    facts = overview.inspect(workdir, digest=True)
    assert facts["checkpoints"] == [2, 4] and facts["digest"] == digest.digest(state)
    assert "digest of step 4" in overview.text(facts)
    config, _, restored = runs.load_state(workdir)
    assert config_lib.to_json(config) == (tmp_path / "run" / "config.json").read_text()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    # Done is done: the same call changes nothing.
    again = loop.train(tiny, workdir)
    assert digest.digest(again) == facts["digest"]
    assert [line["step"] for line in lines(workdir)] == [1, 2, 3, 4]


def test_stopping_and_going_on_ends_where_one_run_ends(tiny, tmp_path, capsys):
    whole = loop.train(tiny, str(tmp_path / "whole"))
    first = config_lib.ml_collections.ConfigDict(tiny)
    first.num_steps = 2
    loop.train(first, str(tmp_path / "parts"))
    parts = loop.train(tiny, str(tmp_path / "parts"))
    said = "changed since the last start, which moves no weight: num_steps=2, and now it is 4\n"
    assert said in capsys.readouterr().out
    assert digest.digest(parts) == digest.digest(whole)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_a_kill_costs_less_than_an_interval_however_slow_the_disk(tiny, tmp_path, monkeypatch):
    tiny.update(num_steps=12, checkpoint_every=4, sample_every=12)
    finish, make, costs = Checkpoints._finish, step_lib.make_train_step, []

    def slow(self, *args):
        time.sleep(2)  # Many steps, none of which is waited for by itself.
        finish(self, *args)

    def watched(config, mesh):
        step = make(config, mesh)

        def wrapped(state, *args):
            folder = tmp_path / "run" / "checkpoints"
            whole = [int(p.name) for p in folder.iterdir() if p.name.isdigit()]
            costs.append(int(state.step) + 1 - max(whole, default=0))
            return step(state, *args)

        return wrapped

    monkeypatch.setattr(Checkpoints, "_finish", slow)
    monkeypatch.setattr(step_lib, "make_train_step", watched)
    loop.train(tiny, str(tmp_path / "run"))
    assert len(costs) == 12 and max(costs) == 3, costs


def command(workdir, data_dir, **overrides):
    keys = {"data.dir": data_dir, "num_steps": 12, "log_every": 1, "checkpoint_every": 4}
    keys |= {"sample_every": 100, "batch_size": 8, "model.g_ch": 4, "model.d_ch": 4}
    keys |= {"sample.standing_passes": 1, "sample.rows": 1} | overrides
    pairs = [f"--config.{key}={value}" for key, value in keys.items()]
    train = [sys.executable, "-m", "biggan_jax.cli", "train", "--config=configs/digits.py"]
    return [*train, f"--workdir={workdir}", *pairs]


def environment():
    return {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_eight_simulated_devices_give_the_losses_of_one(data_dir, tmp_path):
    losses = {}
    for devices in (1, 8):
        workdir = str(tmp_path / str(devices))
        extra = {"device_count": devices, "num_steps": 20, "checkpoint_every": 20}
        extra |= {"batch_size": 32, "model.g_ch": 16, "model.d_ch": 16}  # The demo as it is.
        done = subprocess.run(
            command(workdir, data_dir, **extra), env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        losses[devices] = [(line["d_loss"], line["g_loss"]) for line in lines(workdir)]
    assert len(losses[1]) == 20
    scale = np.maximum(1, np.abs(losses[1]))
    assert np.max(np.abs(np.array(losses[8]) - losses[1]) / scale) <= 1e-4


def test_another_model_in_the_same_folder_is_refused(tiny, tmp_path):
    workdir = str(tmp_path / "run")
    tiny.num_steps = 1
    loop.train(tiny, workdir)
    tiny.model.g_ch = 16
    tiny.optim.g_lr = 0.5
    tiny.num_steps = 2
    with pytest.raises(config_lib.ConfigError) as e:
        loop.train(tiny, workdir)
    assert str(e.value) == (
        f"--workdir: {workdir!r} holds a run with model.g_ch=8, and now it is 16;"
        " optim.g_lr=0.0012, and now it is 0.5; that moves weights, so use another folder or the"
        " values of before; changed too, but free: num_steps=1, and now it is 2."
    )
    # Nor does it help to edit what the folder says of itself: the checkpoints know better.
    path = tmp_path / "run" / "config.json"
    saved = path.read_text()
    path.write_text(saved.replace('"g_lr": 0.0012', '"g_lr": 0.5'))
    tiny.model.g_ch, tiny.num_steps = 8, 1
    with pytest.raises(config_lib.ConfigError, match=r"of step 1 in .* was made with optim\.g_lr="):
        loop.train(tiny, workdir)
    path.write_text(saved.replace('"sigma_rule": "fresh"', '"sigma_rule": "stored"'))
    with pytest.raises(config_lib.ConfigError) as e:
        runs.load_state(workdir)
    assert str(e.value) == (
        f"{str(path)!r} was changed after the checkpoint of step 1 had been made with"
        " model.sigma_rule='fresh', and now it is 'stored'."
    )


def test_a_metric_that_there_is_not_cannot_be_the_best(tiny, tmp_path):
    tiny.update(num_steps=1, keep_best=1, best_metric="fidd")
    with pytest.raises(
        config_lib.ConfigError, match=r"^best_metric='fidd': must be one of bad, d_fake,"
    ):
        loop.train(tiny, str(tmp_path / "run"))


def test_fewer_steps_than_there_are_or_other_classes_are_refused(tiny, tmp_path):
    workdir = str(tmp_path / "run")
    tiny.num_steps = 2
    loop.train(tiny, workdir)
    tiny.num_steps = 1
    with pytest.raises(config_lib.ConfigError, match="is at step 2 already"):
        loop.train(tiny, workdir)
    tiny.num_steps = 2
    path = tmp_path / "run" / "data_report.json"
    facts = json.loads(path.read_text())
    facts["class_names"][3:5] = facts["class_names"][4:2:-1]
    path.write_text(json.dumps(facts))
    with pytest.raises(config_lib.ConfigError, match="they differ from class 3 on"):
        loop.train(tiny, workdir)


def test_bad_data_stops_a_run_before_anything_is_written(tiny, tmp_path):
    folder = tmp_path / "images"
    for name, count in (("cat", 3), ("dog", 2)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (i * 20, 0, 0)).save(folder / name / f"{i}.png")
    tiny.data.update(name="folder", dir=str(folder))
    with pytest.raises(config_lib.ConfigError, match="num_classes"):
        loop.train(tiny, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    tiny.model.num_classes = 2
    tiny.num_steps = 1
    loop.train(tiny, str(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["images_per_class"] == [3, 2] and report["class_names"] == ["cat", "dog"]


def test_the_device_never_waits_for_the_host(tiny, tmp_path, monkeypatch):
    """Metrics of a step are read after the next was dispatched."""
    events = []
    real_step, real_report = step_lib.make_train_step, loop._report

    def make(config, mesh):
        step = real_step(config, mesh)

        def wrapped(*args):
            events.append("step")
            return step(*args)

        return wrapped

    def report(reporter, step, metrics):
        events.append(f"report {step}")
        real_report(reporter, step, metrics)

    monkeypatch.setattr(step_lib, "make_train_step", make)
    monkeypatch.setattr(loop, "_report", report)
    tiny.checkpoint_every = 100
    loop.train(tiny, str(tmp_path / "run"))
    assert events == [
        "step",
        "step",
        "report 1",
        "step",
        "report 2",
        "step",
        "report 3",
        "report 4",
    ]
