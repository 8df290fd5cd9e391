import json
import pathlib
import re
import subprocess
import sys

import flax
import jax
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import flops
from biggan_jax.train import report
from biggan_jax.train.report import Reporter, parameter_table
from biggan_jax.train.speed import Speed
from biggan_jax.train.step_time import StepTime
from tests.gan.test_state import small_config


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_scalars_go_to_the_file_at_once_and_to_tensorboard(tmp_path):
    with Reporter(tmp_path / "run", num_steps=100, images_per_step=500) as reporter:
        reporter.start(0)
        reporter.scalars(1, {"d_loss": np.float32(1.5), "g_loss": 2})
        assert lines(tmp_path / "run") == [{"step": 1, "kimg": 0.5, "d_loss": 1.5, "g_loss": 2.0}]
        reporter.scalars(3, {"d_loss": float("nan"), "g_loss": float("-inf")})
        reporter.image(3, "samples", np.zeros((4, 6, 3), np.uint8))
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert text.splitlines()[1] == '{"step": 3, "kimg": 1.5, "d_loss": null, "g_loss": null}'

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run")).Reload()
    scalars = {
        name: [(e.step, float(tensor(e))) for e in events.Tensors(name)]
        for name in ("d_loss", "kimg")
    }
    assert scalars["kimg"] == [(1, 0.5), (3, 1.5)]
    assert scalars["d_loss"][0] == (1, 1.5)
    assert np.isnan(scalars["d_loss"][1][1])
    assert [e.step for e in events.Tensors("samples")] == [3]


def tensor(event):
    import tensorflow as tf

    return tf.make_ndarray(event.tensor_proto)


def test_a_step_is_reported_once(tmp_path):
    with Reporter(tmp_path, 100, 10) as reporter:
        reporter.start(0)
        reporter.scalars(5, {"a": 1})
        for step in (5, 4):
            with pytest.raises(ValueError, match=f"step {step} after step 5"):
                reporter.scalars(step, {"a": 2})
    assert [line["step"] for line in lines(tmp_path)] == [5]


@pytest.mark.parametrize(("resumed", "kept"), [(0, []), (4, [2, 4]), (5, [2, 4]), (9, [2, 4, 6])])
def test_resume_forgets_later_steps_and_half_lines(tmp_path, resumed, kept):
    with Reporter(tmp_path, 100, 10) as reporter:
        reporter.start(0)
        for step in (2, 4, 6):
            reporter.scalars(step, {"run": 1})
    with open(tmp_path / "metrics.jsonl", "a") as f:
        f.write('{"step": 7, "kimg"')  # What kill -9 leaves.
    with Reporter(tmp_path, 100, 10) as reporter:
        reporter.start(resumed)
        reporter.scalars(resumed + 1, {"run": 2})
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [*kept, resumed + 1]
    assert [line["run"] for line in found] == [1] * len(kept) + [2]
    assert not list(tmp_path.glob("*.tmp*"))


def test_progress_line_and_status(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    config = config_lib.default()
    times = StepTime(tmp_path, config, {"devices": 1})
    opened = report.summary_writer

    def slow(workdir):
        now[0] += 7.0  # As TensorFlow's import is; no step takes it.
        return opened(workdir)

    monkeypatch.setattr(report, "summary_writer", slow)
    with Reporter(tmp_path, 20_000, images_per_step=512, step_time=times) as reporter:
        reporter.start(1000)
        reporter.status("train", last_checkpoint=1000)
        assert json.loads((tmp_path / "status.json").read_text()) == {
            "phase": "train",
            "step": 1000,
            "images_per_second": None,
            "step_seconds": None,
            "mfu": None,
            "eta_seconds": None,
            "last_checkpoint": 1000,
            "rollbacks": 0,
        }
        now[0] += 30.0  # The first step compiles: no rate yet.
        reporter.progress(1002, {})
        now[0] += 3.2
        reporter.progress(1010, {"d_loss": 1.23456, "g_loss": -0.5})
        reporter.status("train")
        # Only the time since the line before counts: 5 steps in 1 s.
        now[0] += 1.0
        reporter.progress(1015, {})
    start, first, second = capsys.readouterr().out.splitlines()
    assert "  - images/s  ETA -  " in start
    memory = r"process memory \d+\.\d\d GiB"
    assert re.fullmatch(
        r"step 1,010/20,000  517\.1 kimg  1,280\.0 images/s  400\.0 ms a step  ETA 2:06:36"
        r"  d_loss 1\.235  g_loss -0\.5  " + memory,
        first,
    )
    assert "  2,560.0 images/s  200.0 ms a step  ETA 1:03:17  " in second
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["images_per_second"] == pytest.approx(1280)
    assert status["eta_seconds"] == pytest.approx(7596)
    assert (status["step"], status["last_checkpoint"]) == (1010, 1000)
    # Steps of 0.4 and 0.2 s.
    assert json.loads((tmp_path / "step_time.json").read_text()) == {
        "step_seconds": pytest.approx(0.3),
        "reports": 2,
        "devices": 1,
        "config_sha256": config_lib.fingerprint(config),
    }
    assert not list(tmp_path.glob("*.tmp*"))


def test_device_memory_is_told_where_the_device_tells_it(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 3 << 29, "peak_bytes_in_use": 1 << 31}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert report._memory() == "device memory 1.50 GiB (peak 2.00)"


def test_utilisation_where_the_hardware_is_known(tmp_path, capsys, monkeypatch):
    config = small_config(model__dtype="bfloat16")
    assert "'cpu'" in Speed(config).why_not and Speed(config).mfu(1.0) is None
    speed = Speed(config, "NVIDIA H100 80GB HBM3")
    want = flops.step(config).needed / 989e12 / 1e-6
    assert not speed.why_not and speed.mfu(1e-6) == pytest.approx(want)
    now = [0.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    with Reporter(tmp_path, 100, 8, speed=speed) as reporter:
        reporter.start(0)
        reporter.progress(1, {})
        now[0] += 1e-6
        reporter.progress(2, {})
        reporter.status("train")
    assert f"MFU {100 * want:.1f} %" in capsys.readouterr().out
    assert json.loads((tmp_path / "status.json").read_text())["mfu"] == pytest.approx(want)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert float(tensor(events.Tensors("speed/mfu")[0])) == pytest.approx(want)
    assert float(tensor(events.Tensors("speed/step_seconds")[0])) == pytest.approx(1e-6)


def test_other_processes_write_nothing(tmp_path, capsys):
    with Reporter(tmp_path / "run", 10, 10, is_main=False) as reporter:
        reporter.start(0)
        reporter.scalars(1, {"a": 1})
        reporter.progress(1, {"a": 1})
        reporter.image(1, "a", np.zeros((4, 4, 3), np.uint8))
        reporter.status("train")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_parameter_table_counts_exactly():
    tree = {
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 64, 96), np.float32)},
        "gamma": jax.ShapeDtypeStruct((), np.float32),
    }
    for params in (tree, flax.core.freeze(tree)):
        table = parameter_table(params)
        assert re.search(r"\| conv/kernel +\| \(3, 3, 64, 96\) +\| 55,296 +\|", table)
        assert re.search(r"\| gamma +\| \(\) +\| 1 +\|", table)
        assert table.endswith("\nTotal: 55,297 parameters")


QUIET = """
import sys
from biggan_jax.train.report import Reporter, parameter_table
import numpy as np
parameter_table({"x": np.zeros(3)})
assert "tensorflow" not in sys.modules
with Reporter(sys.argv[1], 2, 1) as reporter:
    reporter.start(0)
    assert "tensorflow" not in sys.modules
    reporter.scalars(1, {"a": 1.0})
"""


@pytest.mark.multiprocess
def test_tensorflow_is_imported_late_and_says_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET, str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(lines(tmp_path)) == 1
