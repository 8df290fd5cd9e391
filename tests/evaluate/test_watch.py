"""Checkpoints are scored while a run goes on, and the best of them stay."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from biggan_jax import cli
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import evaluator, extractors, watch
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import runs, watch_scores
from biggan_jax.train.checkpoint import Checkpoints
from biggan_jax.train.keep import Keep
from tests.evaluate.test_evaluator import extractor

NAME = "fd40_watch/means"


def test_names_say_what_they_are():
    fid, clean, other = (extractor(n) for n in ("inception", "inception_clean", "effnetlite0"))
    assert watch.name_of("fid", 5000, fid) == "fid5k_watch/inception"
    assert watch.name_of("fid_clean", 5000, clean) == "fid5k_watch/inception_clean"
    assert watch.name_of("fd_effnetlite0", 5000, other) == "fd5k_watch/effnetlite0"
    assert watch.name_of("fd_effnetlite0", 500, other) == "fd500_watch/effnetlite0"
    assert watch.name_of("recall_k3_effnetlite0", 2000, other) == "recall_k3_2k_watch/effnetlite0"
    assert watch.name_of("label_accuracy_svm", 5000, fid) == "label_accuracy5k_watch/svm"


def test_the_best_of_the_scored_stay(tmp_path):
    """Scores come from another process, after the save; those of before a rollback do not count."""
    scores = {1: 9.0, 2: 3.0, 3: 5.0, 4: 1.0, 5: 8.0}
    run = str(tmp_path)
    known = lambda manifests: watch_scores.of_checkpoints(run, manifests)  # noqa: E731
    keep = Keep(1, best=1, metric=NAME)
    with Checkpoints(tmp_path / runs.CHECKPOINTS, keep, known=known) as saved:
        for step, score in scores.items():
            saved.save(step, {"x": jnp.float32(step)}, {"rollbacks": 1})
            saved.wait()
            line = {"step": step, "rollbacks": int(step != 4), "scores": {NAME: score}}
            watch_scores.append(run, line)
        saved.save(6, {"x": jnp.float32(6)}, {"rollbacks": 1})
        saved.wait()
        assert saved.steps() == [2, 6]
        assert watch_scores.of_checkpoints(run, saved.manifests()) == {2: {NAME: 3.0}, 6: {}}


def make_run(run):
    """A finished run of two checkpoints and one half-way, of weights that were never trained."""
    config = config_lib.shrink(config_lib.load("configs/digits.py"))
    config = config_lib.resolve(config, 1)
    assert (config.checkpoint_every, config.num_steps) == (2, 4)
    meta = {
        "config_sha256": config_lib.fingerprint(config),
        "config": json.loads(config_lib.to_json(config)),
    }
    mesh = mesh_lib.make_mesh(1)
    with Checkpoints(os.path.join(run, runs.CHECKPOINTS), keep=3) as saved:
        for step in (2, 3, 4):
            seeded = config_lib.ml_collections.ConfigDict(config)
            seeded.seed = step
            saved.save(step, step_lib.init_state(seeded, mesh), meta)
    with open(os.path.join(run, runs.CONFIG), "w") as f:
        f.write(config_lib.to_json(config))
    with open(os.path.join(run, runs.DATA), "w") as f:
        json.dump({"class_names": [str(i) for i in range(10)]}, f)
    with open(os.path.join(run, runs.STATUS), "w") as f:
        json.dump({"phase": "done"}, f)


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(name))
    run = str(tmp_path / "run")
    make_run(run)
    argv = ["evaluate", run, "--watch", "--reference=data", "--features=means", "--num=40"]
    argv += ["--devices=1", "--metrics=fd,prdc"]
    assert cli.main([*argv, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["step"] for line in lines] == [2, 4]
    assert set(lines[0]["scores"]) == {
        *(NAME, "precision_k3_40_watch/means", "recall_k3_40_watch/means"),
        *("density_k5_40_watch/means", "coverage_k5_40_watch/means"),
    }
    assert lines == watch_scores.read(run)
    # The same images as those of the score under its own name, so the same number.
    (whole,) = evaluator.evaluate(
        evaluator.Request(run, "data", "fd", 40, "means", step=4, devices=1)
    )
    assert whole["metrics"]["fd_means"] == lines[1]["scores"][NAME]
    with Image.open(os.path.join(run, watch.PNG)) as picture:
        assert picture.size[1] > 5 * 200
    assert any("tfevents" in name for name in os.listdir(os.path.join(run, watch.EVENTS)))
    # What has scores gets none again.
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == "" and len(watch_scores.read(run)) == 2
    # Another number of images is another score.
    assert cli.main([*argv[:5], "--num=30", *argv[6:]]) == 0
    assert "fd30_watch/means" in capsys.readouterr().out
    assert len(watch_scores.read(run)) == 4
    assert cli.main([*argv, "--step=4"]) == 2
    assert "--step: does not apply to --watch" in capsys.readouterr().err


def test_only_runs_are_watched(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder with checkpoints"):
        watch.watch(evaluator.Request(str(tmp_path), "data"), print)


def test_a_cut_line_is_no_score(tmp_path):
    (tmp_path / watch_scores.NAME).write_text(
        '{"step": 1, "rollbacks": 0, "scores": {"a": 1}}\n{"s'
    )
    assert [line["step"] for line in watch_scores.read(str(tmp_path))] == [1]
    watch_scores.append(str(tmp_path), {"step": 2, "rollbacks": 0, "scores": {"a": np.pi}})
    assert [line["scores"]["a"] for line in watch_scores.read(str(tmp_path))] == [1, np.pi]
