import json
import re

import numpy as np
import pytest
from PIL import Image

from biggan_jax import cli, config
from biggan_jax.train import loop
from tests.train.conftest import data_dir, tiny  # noqa: F401


def run(capsys, *argv):
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


BIGGAN128 = ("train", "--config=configs/biggan128.py", "--dry-run")


def test_dry_run_prints_config_and_counts(capsys, tmp_path):
    code, out, _ = run(capsys, *BIGGAN128, f"--workdir={tmp_path / 'run'}")
    assert code == 0 and not (tmp_path / "run").exists()
    assert '"resolution": 128' in out
    assert re.search(r"^G 70,433,988$", out, re.M) and re.search(r"^D 87,982,370$", out, re.M)
    assert "block0/conv1/kernel" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*BIGGAN128, "--config.batch_sise=1"), "did you mean 'batch_size'?"),
        ((*BIGGAN128, "--config.batch_size"), "write --config.batch_size=VALUE"),
        ((*BIGGAN128, "--wrokdir=x"), "did you mean --workdir?"),
        ((*BIGGAN128, "--config.device_count=3"), "batch_size=2048: must be a multiple"),
        (("train", "--config=configs/biggan12.py", "--dry-run"), "did you mean 'configs/"),
        (("train", "--config=configs/digits.py"), "--workdir"),
        (("train", "--config=configs/digits.py", "--workdir=README.md"), "is a file, not a folder"),
        (("train", "--config=configs/digits.py", "--workdir=gs://b/run"), "not an address"),
        (("sample", "configs", "--num=0"), "--num=0: must be at least 1"),
        (("sample", "configs", "--npz=a.zip"), "--npz=a.zip: must end in .npz"),
        (("sample", "configs", "--images=docs"), "--images=docs: is there already and not empty"),
        (("sample", "configs", "--out=docs.png/x.gif"), "must end in .png"),
        (("sample", "configs", "--devices=0"), "--devices=0: must be at least 1"),
        (("walk", "configs", "--out=a.avi"), "--out=a.avi: must end in .png, .gif or .mp4"),
        (("walk", "configs", "--fps=0"), "--fps=0: must be from 1 to 50"),
        (("walk", "configs", "--points=1"), "--points=1: must be at least 2"),
        (("walk", "configs", "--lock-z", "--chunks=1"), "--lock-z: leaves nothing"),
        (("walk", "configs"), "'configs' is not a run folder"),
        (("sample", "configs"), "'configs' is not a run folder"),
        (("sample", "configs", "--config.batch_size=1"), "unknown argument"),
        (("inspect", "nowhere"), "'nowhere' is not a run folder"),
        (("inspect", "nowhere", "--checkpoints"), "'nowhere' is not a run folder"),
        (("inspect", "nowhere", "--verify"), "--verify: goes with --checkpoints."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert code == 2 and out == ""
    assert message in err and err.count("\n") == 1


def test_usage_errors_are_exit_code_2(capsys):
    for argv in ([], ["trian"], ["sample"]):
        with pytest.raises(SystemExit) as e:
            cli.main(argv)
        assert e.value.code == 2


def test_a_run_that_diverges_is_exit_code_3(capsys, monkeypatch, tmp_path):
    def diverge(*_):
        raise loop.Diverged("step 3: d_loss is nan")

    monkeypatch.setattr(loop, "train", diverge)
    code, _, err = run(capsys, "train", "--config=configs/digits.py", f"--workdir={tmp_path}")
    assert code == 3 and "d_loss is nan" in err


def test_train_sample_inspect(capsys, tmp_path, tiny):  # noqa: F811
    workdir, sheet = str(tmp_path / "run"), tmp_path / "deep" / "sheet.png"
    changes = {k: v for k, v in config.flatten(tiny).items() if v is not None}
    overrides = [f"--config.{k}={v}" for k, v in changes.items()]
    code, out, _ = run(
        capsys, "train", "--config=configs/digits.py", f"--workdir={workdir}", *overrides
    )
    assert code == 0 and "samples are in" in out
    base = ("sample", workdir, "--out", str(sheet), "--num", "2")
    code, out, _ = run(capsys, *base, "--classes", "3,7", "--truncation", "0.5", "--seed", "1")
    assert code == 0 and str(sheet) in out
    first = np.asarray(Image.open(sheet))
    run(capsys, *base, "--classes", "3,7", "--truncation", "0.5", "--seed", "1")
    np.testing.assert_array_equal(np.asarray(Image.open(sheet)), first)
    run(capsys, *base, "--classes", "3,7", "--truncation", "0.5", "--seed", "2")
    assert not np.array_equal(np.asarray(Image.open(sheet)), first)
    for extra, message in (
        (("--classes", "3,eleven"), "'eleven' is no class"),
        (("--classes", "10"), "'10' is no class"),
        (("--truncation", "0"), "--truncation=0.0: must be a number above 0"),
        (("--num", "0"), "--num=0: must be at least 1"),
        (("--step", "3"), "there is no checkpoint of step 3"),
        (("--out", "sheet.jpg"), "must end in .png"),
        (("--out", "README.md/sheet.png"), "is a file, not a folder"),
        (("--seed", "-1"), "--seed=-1"),
    ):
        code, _, err = run(capsys, *base, *extra)
        assert code == 2 and message in err and err.count("\n") == 1
    code, out, _ = run(capsys, "inspect", workdir, "--digest", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["step"] == 4 and re.fullmatch(r"[0-9a-f]{64}", facts["digest"])
    code, out, _ = run(capsys, "inspect", workdir)
    assert code == 0 and "checkpoints: 2, 4 of 4 steps" in out
