"""The files that `biggan sample` and `biggan walk` write, against the model itself."""

import json

import numpy as np
import pytest
from PIL import Image

from biggan_jax import api, cli
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.sample import sheets, walk
from tests.test_api import make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    bundle = make_bundle()
    bundle.standing_images = 32
    bundle.class_names = ("cat", "dog", "emu")
    path = str(tmp_path_factory.mktemp("model") / "bundle")
    bundle_lib.write(bundle, path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return api.load(folder)


def call(capsys, *argv):
    code = cli.main([*argv, "--devices=1"])
    out, err = capsys.readouterr()
    return code, out, err


def test_one_set_of_images_in_every_form(folder, model, tmp_path, capsys):
    names = ("--out", "s.png"), ("--images", "f"), ("--npz", "a.npz")
    places = [part for option, name in names for part in (option, str(tmp_path / name))]
    options = ["--classes=emu,0", "--num=9", "--truncation=0.5", "--seed=4", "--batch=7", "--json"]
    code, out, _ = call(capsys, "sample", folder, *places, *options)
    assert code == 0
    facts = json.loads(out)
    assert facts["images"] == 18 and facts["outputs"] == places[1::2] and facts["devices"] == 1
    assert facts["images_per_second"] > 0 and facts["seconds"] > 0
    want = model.sample([2, 0] * 9, truncation=0.5, seed=4)
    with np.load(tmp_path / "a.npz") as saved:
        np.testing.assert_array_equal(saved["arr_0"], want)
        np.testing.assert_array_equal(saved["arr_1"], [2, 0] * 9)
    files = sorted((tmp_path / "f").iterdir())
    assert [f.name for f in files[:2]] == ["000000_class0002.png", "000001_class0000.png"]
    for file, image in zip(files, want, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    title = "toy, seed 4, threshold truncation 0.5"
    sheet = sheets.sheet(want, 2, ["emu", "cat"], title=title)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "s.png")), np.asarray(sheet))


def test_files_hold_all_classes_and_the_text_says_how_fast(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "sample", folder, "--npz=a.npz", "--num=6")
    assert code == 0 and "samples are in a.npz" in out
    assert "18 images in" in out and "on 1 device(s)" in out and "images/s after the first" in out
    with np.load("a.npz") as saved:
        np.testing.assert_array_equal(saved["arr_1"], [0, 1, 2] * 6)
    assert not (tmp_path / "samples.png").exists()


def read_gif(path):
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB"))


def test_a_walk_as_a_gif(folder, model, tmp_path, capsys):
    out = tmp_path / "w.gif"
    options = ["--classes=cat,emu", "--points=3", "--frames=4", "--loop", "--truncation=0.5"]
    code, text, _ = call(capsys, "walk", folder, f"--out={out}", *options)
    assert code == 0 and "a walk of 12 frames is in" in text
    z = model.latents(3, 0.5)
    want = model.walk(list(zip(z, [0, 2, 0], strict=True)), 4, 0.5, loop=True)
    # The points are the images that `sample` makes, give or take a rounding at a half.
    ends = model.sample([0, 2, 0], 0.5).astype(int)
    assert np.abs(want[::4] - ends).max() <= 1
    got = np.stack(list(read_gif(out)))[:, 8::16, 8::16]
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).mean() < 4  # A palette of 256.


def test_chunks_one_at_a_time_as_a_sheet(folder, model, tmp_path, capsys):
    out = tmp_path / "c.png"
    options = ["--chunks=each", "--points=2", "--frames=4", "--how=linear", "--json"]
    code, text, _ = call(capsys, "walk", folder, f"--out={out}", *options)
    assert code == 0 and json.loads(text)["frames"] == 15
    z = model.latents(2)
    assert model.slots == 3
    rows = []
    for i in range(3):
        end = z[0].copy()
        end[4 * i : 4 * i + 4] = z[1, 4 * i : 4 * i + 4]
        rows.append(model.walk([(z[0], 0), (end, 0)], 4, how="linear"))
        assert (rows[-1][0] != rows[-1][-1]).any()
    labels = ["chunk 0", "chunk 1", "chunk 2"]
    sheet = sheets.sheet(
        np.concatenate(rows), 5, row_labels=labels, title="toy, seed 0, no truncation"
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(sheet))


def test_a_locked_latent_moves_the_class_alone(folder, model, tmp_path, capsys):
    out = tmp_path / "l.png"
    options = ["--classes=all", "--lock-z", "--frames=2"]
    assert call(capsys, "walk", folder, f"--out={out}", *options)[0] == 0
    z = model.latents(1)
    mixes = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    frames = model.generate(np.tile(z, (5, 1)), np.float32(mixes), statistics="standing")
    assert np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).min() > 1e-3
    got = model.walk([(z[0], i) for i in range(3)], 2)
    sheet = sheets.sheet(got, 2, title="toy, seed 0, no truncation")
    np.testing.assert_array_equal(np.asarray(Image.open(out)), np.asarray(sheet))


def test_a_mix_is_a_label(model):
    mixed = model.mix({"dog": 3, 2: 1})
    np.testing.assert_allclose(mixed, [0, 0.75, 0.25])
    z = model.latents(2, seed=9)
    frames = model.walk([(z[0], 1), (z[1], mixed)], 2)
    np.testing.assert_array_equal(frames, model.walk([(z[0], [0, 1, 0]), (z[1], mixed)], 2))
    half, weights = walk.path(z, [[0, 1, 0], mixed], 2)
    np.testing.assert_allclose(weights[1], [0, 0.875, 0.125], atol=1e-6)
    alone = model.sample([1], seed=9)
    np.testing.assert_array_equal(model.sample([[0, 1, 0]], seed=9), alone)
    assert len(half) == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["walk", "--classes=cow"], "'cow' is no class"),
        (["walk", "--lock-z"], "--lock-z: needs two classes"),
        (["walk", "--chunks=3"], "3 is none of the chunks 0 to 2"),
        (["walk", "--chunks=a"], "--chunks=a: must be numbers"),
        (["walk", "--how=up"], "--how=up: must be one of spherical, linear"),
        (["walk", "--frames=0"], "--frames=0: must be at least 1"),
        (["walk", "--truncation=0"], "--truncation=0.0: must be a number above 0"),
        (["sample", "--num=2000"], "a sheet of 6,000 images is more than 5,000"),
        (["sample", "--batch=0", "--npz=a.npz"], "--batch=0: must be at least 1"),
    ],
)
def test_bad_requests_leave_nothing(folder, tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, argv[0], folder, *argv[1:])
    assert code == 2 and not out and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
