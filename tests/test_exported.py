"""What `biggan export` wrote, sampled by `biggan sample` and `walk`, against the model itself."""

import importlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from biggan_jax import api, cli, exported
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import exporting, formats
from tests.test_api import make_bundle

FORMATS = {
    "npz": {},
    "onnx": {},
    "saved-model": {},
    "stablehlo": {},
    "stablehlo apart": {"parameters": "apart"},
}


@pytest.fixture(scope="module")
def model():
    bundle = make_bundle()
    bundle.standing_images = 32
    bundle.class_names = ("cat", "dog", "emu")
    return api.Model(bundle)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Makes an export; each once."""
    place = tmp_path_factory.mktemp("exports")
    source = str(place / "bundle")
    bundle_lib.write(model.bundle, source)
    made = {}

    def make(name):
        form = name.partition(" ")[0]
        module = importlib.import_module(f"biggan_jax.interop.{formats.PROGRAMS[form]}")
        for package in module.PACKAGES:
            pytest.importorskip(package)
        if name not in made:
            made[name] = str(place / name.replace(" ", "-"))
            options = {"truncations": "0.5,1,4", **FORMATS[name]}
            api.export(source, made[name], form, **options)
        return made[name]

    return make


def off_by_rounding(got, want):
    """8 bits of floats that differ in their last places."""
    apart = np.abs(got.astype(int) - want.astype(int))
    return apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("name", FORMATS)
def test_the_images_are_the_models(name, folder, model, tmp_path, capsys):
    path = folder(name)
    out = str(tmp_path / "a.npz")
    argv = ["sample", path, f"--npz={out}", "--classes=emu,0", "--num=9", "--truncation=0.5"]
    assert cli.main([*argv, "--seed=4", "--batch=7"]) == 0
    with np.load(out) as saved:
        want = model.sample([2, 0] * 9, truncation=0.5, seed=4)
        assert off_by_rounding(saved["arr_0"], want)
    opened = api.open_any(path)
    assert isinstance(opened, exported.Exported) and opened.devices == 1
    np.testing.assert_array_equal(opened.latents(20, 0.5, 4), model.latents(20, 0.5, 4))
    # The place in the series settles the bytes, as of a model.
    np.testing.assert_array_equal(
        opened.sample([2, 0] * 3, 0.5, 4, first=12), opened.sample([2, 0] * 9, 0.5, 4)[12:]
    )
    walked = str(tmp_path / "w.png")
    argv = ["walk", path, f"--out={walked}", "--classes=cat,emu", "--frames=3", "--truncation=1"]
    assert cli.main(argv) == 0
    with Image.open(walked) as picture:
        assert picture.width > 3 * 16
    assert "walk of 4 frames" in capsys.readouterr().out


def test_no_truncation_is_the_widest(folder, model):
    opened = exported.Exported(folder("npz"))
    z = model.latents(4, None, 3)
    np.testing.assert_array_equal(opened.latents(4, None, 3), z)
    want = exported.Exported(folder("npz")).render(z, [0, 1, 2, 0], 4.0)
    np.testing.assert_array_equal(opened.sample([0, 1, 2, 0], None, 3), want)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--truncation=0.2"], "--truncation=0.2: must be from 0.5 to 4, for which this export"),
        (["--truncation=0.5", "--mode=std"], "--mode=std: this export has BN statistics for thr"),
        (["--step=3"], "is an export, which has no checkpoints"),
        (["--devices=2"], "is an export, which runs on one"),
        (["--classes=yak"], "--classes"),
    ],
)
def test_what_an_export_cannot_do_is_said(argv, sentence, folder, tmp_path, capsys):
    out = tmp_path / "s.png"
    assert cli.main(["sample", folder("npz"), f"--out={out}", *argv]) == 2
    assert sentence in capsys.readouterr().err and not out.exists()


def test_without_statistics_for_the_plain_normal(model, tmp_path):
    source, out = str(tmp_path / "bundle"), str(tmp_path / "export")
    bundle_lib.write(model.bundle, source)
    api.export(source, out, "npz", truncations="0.5,1")
    with pytest.raises(ConfigError, match=r"for the plain normal; it has those for 0.5 to 1\."):
        exported.Exported(out).sample([0])


def test_damage_is_named(folder, tmp_path, capsys):
    path = tmp_path / "copy"
    shutil.copytree(folder("npz"), path)
    data = bytearray((path / "generator.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "generator.npz").write_bytes(data)
    assert cli.main(["sample", str(path)]) == 2
    assert "generator.npz' is damaged or missing" in capsys.readouterr().err
    (path / "export.json").write_text('{"format": "other"')
    assert cli.main(["sample", str(path)]) == 2
    assert "export.json' cannot be read" in capsys.readouterr().err


def test_an_export_is_no_model(folder, tmp_path, capsys):
    path = folder("npz")
    with pytest.raises(ConfigError, match="is an export, which only makes images"):
        api.load(path)
    assert cli.main(["export", path, str(tmp_path / "x"), "--format=onnx"]) == 2
    assert "is an export, which only makes images" in capsys.readouterr().err


def test_its_python_is_not_run(folder, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(folder("stablehlo"), path)
    about = json.loads((path / "export.json").read_text())
    (path / "load.py").write_text("raise SystemExit('this must not run')")
    about["files"]["load.py"]["sha256"] = bundle_lib.sha256(str(path / "load.py"))
    (path / "export.json").write_text(json.dumps(about))
    assert exported.Exported(str(path)).sample([0]).shape == (1, 16, 16, 3)


def test_statistics_made_by_default_serve_the_plain_normal():
    assert exporting.TRUNCATIONS["threshold"][-1] >= exported._NO_BOUND
