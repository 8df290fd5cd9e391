import json

import pytest

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.plan import measured
from biggan_jax.train.step_time import StepTime

FILE = "step_time.json"
HARDWARE = {"device_kind": "TPU v3", "devices": 8, "processes": 1, "slices": 1}


@pytest.fixture
def run(tmp_path):
    """A run on a v3-8 that took 150 ms a step."""
    c = config_lib.default()
    c.update(batch_size=64, parallel="zero1", preset="")
    c.model.dtype = "float32"
    resolved = config_lib.resolve(c, HARDWARE["devices"])
    (tmp_path / "config.json").write_text(config_lib.to_json(resolved))

    StepTime(tmp_path, resolved, HARDWARE).add(0.15)
    return tmp_path


def test_truth_stands_beside_the_plan(run, compiled, capsys):
    assert cli.main(["plan", f"--run={run}"]) == 0
    said = capsys.readouterr().out
    assert "measured on 8 x TPU v3 in 1 process(es): 150.00 ms a step (median of 1" in said
    # 8e12 FLOPs on half of 123 TFLOP/s.
    assert "that is 1.15 times the bound that rules (FLOPs at the published peak, 130.08" in said
    assert "fits: needs 8.00" in said
    kept = json.loads((run / "plan.json").read_text())
    assert kept["ratio"] == pytest.approx(0.15 / (8e12 / 61.5e12))
    assert kept["measured"]["step_seconds"] == 0.15
    assert kept["plan"]["slice"]["name"] == "v3-8"
    assert compiled == [("v3-8", 64, 1, False)]


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ({}, "v3-8"),
        ({"device_kind": "TPU v4", "devices": 64}, "v4-128"),
        ({"device_kind": "TPU v4", "devices": 128, "slices": 2}, "v4-128x2"),
        ({"device_kind": "TPU v5 lite", "devices": 16}, "v5e-16"),
        ({"device_kind": "TPU7x", "devices": 64}, "tpu7x-64"),
        ({"device_kind": "NVIDIA H100 80GB HBM3", "devices": 8}, "gpu:h100x8"),
    ],
)
def test_what_a_run_ran_on(hardware, name):
    assert measured._where("run", HARDWARE | hardware).name == name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no step_time.json, so no step time was measured; it is written with"),
        ("{", "step_time.json is damaged (JSONDecodeError"),
        ("[]", "step_time.json is damaged (TypeError"),
        ('{"step_seconds": 1.0}', "step_time.json is damaged (KeyError: 'reports')"),
        ("TPU v3 to cpu", "it ran on 'cpu', for which there are no plans"),
        ('"devices": 8 to "devices": 4', "it ran on 4 devices 'TPU v3', which are no whole slices"),
        ('"config_sha256": " to "config_sha256": "0', "is of a start with another config, or on"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(run, compiled, capsys, content, said):
    path = run / FILE
    if content is None:
        path.unlink()
    elif " to " in content:
        before, after = content.split(" to ")
        path.write_text(path.read_text().replace(before, after))
    else:
        path.write_text(content)
    assert cli.main(["plan", f"--run={run}"]) == 2
    told = capsys.readouterr().err
    assert said in told and f"--run={run}: " in told and told.count("\n") == 1
    assert not (run / "plan.json").exists() and not compiled


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["v3-8"], "leave out SLICE"),
        (["--hbm-limit=3"], "leave out --hbm-limit"),
        (["--config.batch_size=8"], "leave out --config.KEY"),
    ],
)
def test_a_run_has_its_own_config_and_hardware(run, compiled, capsys, options, said):
    assert cli.main(["plan", f"--run={run}", *options]) == 2
    assert said in capsys.readouterr().err and not compiled
    assert cli.main(["plan", "--slice=v3-8"]) == 2
    assert "--config: name a config, or a run" in capsys.readouterr().err


def test_what_was_compiled_is_told_where_it_cannot_be_kept(run, compiled, capsys):
    (run / "plan.json").mkdir()
    assert cli.main(["plan", f"--run={run}"]) == 0
    out, err = capsys.readouterr()
    assert "that is 1.15 times the bound" in out and "plan.json was not written: " in err


def test_a_gpu_that_is_estimated_too_small_was_large_enough(run, capsys):
    c = config_lib.default()
    c.update(batch_size=2048, preset="")
    resolved = config_lib.resolve(c, 1)
    (run / "config.json").write_text(config_lib.to_json(resolved))
    gpu = HARDWARE | {"device_kind": "NVIDIA H100 80GB HBM3", "devices": 1}
    StepTime(run, resolved, gpu).add(2.0)
    assert cli.main(["plan", f"--run={run}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert not answer["plan"]["fits"] and answer["bound"] == "flops"
    assert answer["ratio"] == pytest.approx(2.0 / answer["bound_seconds"]) and answer["ratio"] > 1
