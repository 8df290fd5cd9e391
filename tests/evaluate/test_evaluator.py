"""Whole evaluations, with a network small enough to be checked by hand."""

import dataclasses
import functools
import io
import json
import os

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from biggan_jax import api, cli
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import (
    evaluator,
    extractors,
    frechet,
    images,
    metrics,
    neighbours,
    progress,
    sweep,
)
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.train import runs
from tests.evaluate import made
from tests.test_api import make_bundle

NUM = 300  # No multiple of a batch, on one device or on eight.


class Means(nn.Module):
    """Features are the means of a picture's 4x4 quarters."""

    @nn.compact
    def __call__(self, x):
        features = nn.avg_pool(x, (4, 4), (4, 4)).reshape(len(x), -1)
        return {"features": features, "logits": 20 * features}


def extractor(name="means", sha256="0" * 64):
    return extractors.Extractor(name, sha256, Means(), {}, "pil_bicubic", 8, 0.0, 255.0)


@pytest.fixture(autouse=True)
def small_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "no-cache"))
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(name))


@pytest.fixture(scope="module", autouse=True)
def models_are_loaded_once():
    """What a model has compiled is compiled for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "load", functools.cache(api.load))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model") / "bundle")
    bundle_lib.write(make_bundle(), folder)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A `.npz` of pictures of another size than the model's."""
    path = tmp_path_factory.mktemp("real") / "real.npz"
    draws = np.random.default_rng(0)
    pictures = np.concatenate([made.squares(40, 24)] * 5).astype(int)
    pictures += draws.integers(-30, 30, pictures.shape)
    np.savez(path, arr_0=pictures.clip(0, 255).astype(np.uint8))
    return str(path)


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """A `.npz` of pictures as a model of 16 pixels may give them."""
    path = tmp_path_factory.mktemp("fake") / "fake.npz"
    pictures = np.concatenate([made.squares(60, 16)] * 5)
    noise = np.random.default_rng(1).integers(-50, 50, pictures.shape)
    np.savez(path, arr_0=(pictures + noise).clip(0, 255).astype(np.uint8))
    return str(path)


def score(path, reference, **changes):
    request = {"features": "means", "metrics": "fd,is,prdc", "num": NUM, "devices": 1} | changes
    return evaluator.evaluate(evaluator.Request(path=path, reference=reference, **request))


def features(pictures):
    one = extractor()
    return np.asarray(jax.jit(lambda x: one({}, x))(pictures)["features"])


def gaussian(x):
    return frechet.Gaussian(x.mean(axis=0), np.cov(x, rowvar=False), len(x))


def test_scores_are_those_of_the_images_that_sample_gives(model, real):
    (result,) = score(model, real, truncations=(0.7,), seed=3)
    labels = np.random.default_rng([images._LABELS, 3]).integers(3, size=NUM)
    fake = features(api.load(model, None, 1).sample(labels, 0.7, seed=3))
    true = features(images.read_npz(real)["arr_0"]).astype(np.float64)
    found = result["metrics"]
    expected = frechet.distance(gaussian(fake.astype(np.float64)), gaussian(true))
    assert found["fd_means"] == pytest.approx(expected, rel=1e-5)
    improved, prdc = neighbours.compare(true, fake, [neighbours.IMPROVED, neighbours.PRDC])
    assert found["precision_k3_means"] == pytest.approx(improved.precision, abs=1 / 200)
    assert found["coverage_k5_means"] == pytest.approx(prdc.coverage, abs=1 / 200)
    assert set(found) == {
        *("fd_means", "is_means", "is_std_means", "precision_k3_means", "recall_k3_means"),
        *("density_k5_means", "coverage_k5_means"),
    }
    protocol = result["protocol"]
    assert protocol["images"]["num"] == NUM and protocol["images"]["seed"] == 3
    assert protocol["images"]["truncation"] == 0.7 and protocol["images"]["mode"] == "threshold"
    assert protocol["images"]["statistics"] == "standing, 2 passes of 64"
    assert protocol["images"]["weights"] == "averaged"
    assert "127.5" in protocol["images"]["rounding"]
    assert protocol["extractor"]["resize"] == "pil_bicubic to 8"
    assert protocol["settings"]["reference_features"] == 200


@pytest.mark.slow
def test_a_repeat_gives_the_same_bits_and_eight_devices_the_same_numbers(model, real, monkeypatch):
    once = json.dumps(score(model, real))
    with monkeypatch.context() as patch:
        patch.setattr(api, "load", api.load.__wrapped__)
        assert json.dumps(score(model, real)) == once
    (eight,) = score(model, real, devices=8)
    one = json.loads(once)[0]["metrics"]
    assert eight["metrics"] == pytest.approx(one, rel=1e-5, abs=1e-5)
    (other,) = score(model, real, seed=1)
    assert other["metrics"]["fd_means"] != one["fd_means"]


def test_images_in_a_folder_and_in_a_npz_score_alike(model, real, tmp_path):
    labels = np.random.default_rng([images._LABELS, 0]).integers(3, size=NUM)
    pictures = api.load(model, None, 1).sample(labels)
    np.savez(tmp_path / "samples.npz", arr_0=pictures, arr_1=labels)
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{i:05d}.png")
    found = [
        score(path, real)[0]["metrics"]
        for path in (model, str(tmp_path / "samples.npz"), str(tmp_path / "folder"))
    ]
    assert found[0] == found[1] == found[2]
    (fewer,) = score(str(tmp_path / "folder"), real, num=50)
    assert fewer["protocol"]["images"]["num"] == 50
    assert fewer["metrics"]["fd_means"] != found[2]["fd_means"]
    Image.fromarray(pictures[0][:8]).save(folder / "00007.png")
    with pytest.raises(ConfigError, match=r"00007.png' is of 16x8 pixels .* of 16x16"):
        score(str(tmp_path / "folder"), real)


def test_a_reference_is_made_once(fake, real, tmp_path, capsys):
    out = str(tmp_path / "reference.npz")
    argv = ["evaluate", "--reference", real, "--features=means", "--devices=1", "--json"]
    assert cli.main([*argv, f"--make-reference={out}"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["num"] == 200 and about["extractor"] == extractor().about()
    arrays = images.read_npz(out)
    assert set(arrays) == {"mu", "sigma", "features", "about"}
    assert score(fake, out)[0]["metrics"] == score(fake, real)[0]["metrics"]
    assert cli.main([*argv[:2], out, *argv[3:], fake, f"--num={NUM}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["protocol"]["reference"]["file_sha256"] == bundle_lib.sha256(out)
    assert set(shown["metrics"]) > {"fd_means", "precision_k3_means"}


def test_a_reference_of_another_network_is_refused(fake, real, tmp_path, monkeypatch):
    out = str(tmp_path / "reference.npz")
    evaluator.make_reference(out, real, features="means", devices=1)
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor(sha256="1" * 64))
    with pytest.raises(ConfigError, match="made with other features: sha256 is '0000"):
        score(fake, out)


def test_files_of_other_programs_are_read(fake, real, tmp_path, monkeypatch):
    fid = extractor("inception")
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: fid)
    true = features(images.read_npz(real)["arr_0"]).astype(np.float64)
    arrays = {"mu": true.mean(axis=0), "sigma": np.cov(true, rowvar=False)}
    np.savez(tmp_path / "pytorch_fid.npz", **arrays)
    np.savez(tmp_path / "adm.npz", **arrays, arr_0=images.read_npz(real)["arr_0"])
    (expected,) = score(fake, real)
    (moments,) = score(fake, str(tmp_path / "pytorch_fid.npz"), metrics="fid")
    (adm,) = score(fake, str(tmp_path / "adm.npz"), metrics="fid,prdc")
    for result in (moments, adm):
        found = result["metrics"]["fid"]
        assert found == pytest.approx(expected["metrics"]["fid"], rel=1e-6)
        assert result["protocol"]["reference"]["extractor"] == "not stated by the file"
    assert adm["metrics"]["recall_k3"] == expected["metrics"]["recall_k3"]
    with pytest.raises(ConfigError, match="moments alone"):
        score(fake, str(tmp_path / "pytorch_fid.npz"), metrics="prdc")
    monkeypatch.setattr(extractors, "load", lambda name, weights=None: extractor())
    with pytest.raises(ConfigError, match="does not say which network"):
        score(fake, str(tmp_path / "pytorch_fid.npz"), metrics="fd")


def test_a_data_set_is_read_at_the_models_resolution(fake, tmp_path):
    for name in ("cats", "dogs"):
        os.makedirs(tmp_path / name)
        for i, picture in enumerate(made.squares(6, 40)):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    (result,) = score(fake, "folder:train", data_dir=str(tmp_path), metrics="fd")
    about = result["protocol"]["reference"]
    assert (about["resolution"], about["resize"], about["num"]) == (16, "area", 12)


@pytest.fixture
def run_folder(model, tmp_path, monkeypatch):
    """A run as far as an evaluation looks into it; its checkpoint is the bundle."""
    loaded = api.load(model, None, 1)
    monkeypatch.setitem(loaded.bundle.source, "itr", 4)
    monkeypatch.setattr(api, "load", lambda path, step, devices: loaded)
    config = config_lib.resolve(config_lib.default(), 1)
    (tmp_path / runs.CONFIG).write_text(config_lib.to_json(config))
    (tmp_path / runs.CHECKPOINTS).mkdir()
    return str(tmp_path)


def test_a_run_keeps_its_scores_and_its_sweep(run_folder, real, capsys):
    argv = ["evaluate", run_folder, "--reference", real, "--features=means", "--devices=1"]
    argv += [f"--num={NUM}", "--metrics=fd,prdc"]
    assert cli.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert cli.main([*argv, "--truncation=0.5:1.0:0.25"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["truncation", "fd_means"]
    assert [line.split()[0] for line in table[1:]] == ["0.5", "0.75", "1"]
    with open(os.path.join(run_folder, "metric-fd_means.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    assert [line["protocol"]["images"]["truncation"] for line in lines] == [None, 0.5, 0.75, 1.0]
    assert lines[0]["fd_means"] == result["metrics"]["fd_means"] and lines[0]["step"] == 4
    assert len({line["fd_means"] for line in lines}) == 4
    with open(os.path.join(run_folder, "metric-prdc_means.jsonl")) as f:
        assert "recall_k3_means" in json.loads(f.readline())
    with open(os.path.join(run_folder, "truncation_sweep.json")) as f:
        assert [r["metrics"]["fd_means"] for r in json.load(f)] == [
            line["fd_means"] for line in lines[1:]
        ]
    with Image.open(os.path.join(run_folder, "truncation_sweep.png")) as picture:
        assert picture.size[0] > 800


def test_the_sweep_draws_what_was_measured():
    def results(*names):
        about = {"model": "toy", "num": 10, "mode": "std"}
        return [
            {
                "metrics": {name: t for name in names},
                "protocol": {
                    "images": about | {"truncation": t},
                    "extractor": {"name": "inception"},
                },
            }
            for t in (0.5, 1.0)
        ]

    widths = set()
    for names in (("fid", "is", "is_std"), ("fd_x", "precision_k3_x", "recall_k3_x"), ("fid",)):
        with Image.open(io.BytesIO(sweep.draw(results(*names)))) as picture:
            widths.add(picture.size)
    assert len(widths) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (None,)),
        ("0.5", (0.5,)),
        ("0.1:1.0:0.1", tuple(i / 10 for i in range(1, 11))),
        ("0.2:0.5:0.3", (0.2, 0.5)),
    ],
)
def test_truncations_are_parsed(text, expected):
    assert sweep.parse(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0.5:1", "1:0.5:0.1", "0.1:1:0", "0:1:0.1", "1:1:1:1"])
def test_bad_truncations_are_refused(text):
    with pytest.raises(ConfigError, match=r"FIRST:LAST:STEP, as in 0.1:1.0:0.1"):
        sweep.parse(text)


def test_metrics_are_parsed():
    fid, other = extractor("inception"), extractor("effnetlite0")
    parse = metrics.parse
    assert parse("kid,fid", fid) == (("fd", "kd"), None)
    assert parse("fid50k,is", fid) == (("fd", "is"), 50_000)
    assert parse("fd_effnetlite0, prdc", other) == (("fd", "prdc"), None)
    assert parse("fd10k_effnetlite0", other) == (("fd",), 10_000)
    clean = extractor("inception_clean")
    assert metrics.name_of("fd", fid) == "fid"
    assert metrics.name_of("fd", clean) == "fid_clean"
    assert metrics.name_of("kd_std", clean) == "kid_std_clean"
    assert metrics.name_of("fd", extractor("inception_0a1b2c3d")) == "fd_inception_0a1b2c3d"
    for text, one, message in (
        ("fid", other, "of effnetlite0 ask for fd"),
        ("kid", extractor("inception_0a1b2c3d"), "weights of 2015-12-05"),
        ("sfd", other, "no spatial features"),
        (
            "fiid",
            fid,
            "must be some of fid, sfid, ifid, kid, fd, .* prdc, copies, label_accuracy",
        ),
        ("fid50k,is10k", fid, "more than one number"),
        ("", fid, "must be some of"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(text, one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num": 1}, "must be at least 2"),
        ({"metrics": "kd"}, "--num=300: kd needs at least 1000"),
        ({"metrics": "fd10k"}, "--num=300: --metrics says 10000"),
        ({"num": 301}, "--num=301: .* holds 300 images"),
        ({"truncations": (0.5,)}, "is for models; these are images"),
        ({"devices": 9}, "device_count=9"),
        ({"devices": 0}, "--devices=0"),
        ({"reference": "nothing.npz"}, "there is no file"),
        ({"reference": "data"}, "only a run folder says"),
        ({"path": "nowhere"}, "no run folder, bundle, export, folder of pictures or .npz"),
    ],
)
def test_bad_requests_are_one_sentence(fake, real, changes, message):
    changes = {"path": fake, "reference": real} | changes
    with pytest.raises(ConfigError, match=message) as caught:
        score(changes.pop("path"), changes.pop("reference"), **changes)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncations": (0.5, -1.0)}, "must be a number above 0"),
        ({"mode": "odd", "truncations": (0.5,)}, "must be one of threshold"),
        ({"seed": -1}, "--seed=-1"),
        ({"step": 3}, "is a bundle"),
    ],
)
def test_bad_requests_of_a_model_cost_no_work(model, changes, message):
    with pytest.raises(ConfigError, match=message):
        score(model, "not looked at.npz", **changes)


def test_a_generator_of_nan_has_no_score(real, tmp_path):
    broken = make_bundle()
    name = "ema/params/out_conv/bias"
    assert name in broken.tensors
    broken.tensors[name] = np.full_like(broken.tensors[name], np.nan)
    bundle_lib.write(broken, str(tmp_path / "broken"))
    with pytest.raises(ConfigError, match="the generator makes NaN"):
        score(str(tmp_path / "broken"), real)


def test_the_verb_says_what_is_missing(fake, capsys):
    for argv, message in (
        ([fake], "--reference"),
        (["--reference=digits"], "PATH"),
        (["--reference=digits", "--make-reference=x.npz"], "--resolution"),
        (["--reference=digits", "--make-reference=x.txt"], "must end in .npz"),
        ([fake, "--reference=x.npz", "--truncation=0.1:1.0:0.1"], "--out"),
    ):
        assert cli.main(["evaluate", *argv, "--features=means", "--devices=1"]) == 2
        assert message in capsys.readouterr().err


def test_requests_are_plain():
    assert dataclasses.asdict(evaluator.Request("a", "b"))["num"] is None


class Killed(Exception):
    pass


def test_what_was_killed_goes_on_to_the_same_bits(fake, real, tmp_path, monkeypatch):
    reference = str(tmp_path / "made" / "reference.npz")
    os.makedirs(tmp_path / "made")
    evaluator.make_reference(reference, real, features="means", devices=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = score(fake, reference)
    assert not list((tmp_path / "cache").rglob("*.npz"))
    monkeypatch.setattr(progress, "EVERY", 0.0)
    read = images.FromArray.read

    def failing(self, index):
        if index[0] >= 192:
            raise Killed
        return read(self, index)

    monkeypatch.setattr(images.FromArray, "read", failing)
    with pytest.raises(Killed):
        score(fake, reference)
    (left,) = (tmp_path / "cache").rglob("*.npz")
    # The batch before the one that failed was still with the devices.
    assert int(images.read_npz(str(left))["count"]) == 160
    monkeypatch.setattr(images.FromArray, "read", read)
    # Other images do not go on from there.
    assert score(fake, reference, num=299) != expected
    assert left.exists()
    seen = []
    monkeypatch.setattr(
        images.FromArray, "read", lambda self, index: (seen.append(index[0]), read(self, index))[1]
    )
    assert score(fake, reference) == expected
    assert seen == [0, 160, 192, 224, 256, 288]  # The first is a look at the size.
    assert not list((tmp_path / "cache").rglob("*.npz"))
