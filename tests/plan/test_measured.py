import json

import pytest

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.plan import measured

HARDWARE = {"device_kind": "TPU v3", "devices": 8, "processes": 1, "slices": 1}


@pytest.fixture
def run(tmp_path):
    """A run on a v3-8 that took 150 ms a step."""
    c = config_lib.default()
    c.update(batch_size=64, parallel="zero1", preset="")
    c.model.dtype = "float32"
    resolved = config_lib.resolve(c, HARDWARE["devices"])
    (tmp_path / "config.json").write_text(config_lib.to_json(resolved))

    said = {"step_seconds": 0.15, "reports": 3} | HARDWARE
    (tmp_path / "step_time.json").write_text(json.dumps(said))
    return tmp_path


def test_truth_stands_beside_the_plan(run, compiled, capsys):
    assert cli.main(["plan", f"--run={run}"]) == 0
    said = capsys.readouterr().out
    assert "measured on 8 x TPU v3 in 1 process(es): 150.00 ms a step (median of 3" in said
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
    assert measured._name("run", HARDWARE | hardware) == name


def test_a_run_without_an_answer_is_one_sentence(run, compiled, capsys):
    times = run / "step_time.json"
    times.write_text(times.read_text().replace("TPU v3", "cpu"))
    with pytest.raises(ConfigError, match="it ran on 'cpu', for which there are no plans"):
        measured.compare(str(run))
    times.unlink()
    with pytest.raises(ConfigError, match="has not measured how fast it is"):
        measured.compare(str(run))
    assert cli.main(["plan", f"--run={run}", "--slice=v3-8"]) == 2
    assert "leave out slice" in capsys.readouterr().err
    assert cli.main(["plan", "--slice=v3-8"]) == 2
    assert "--config: name a config, or a run" in capsys.readouterr().err
    assert not (run / "plan.json").exists() and not compiled
