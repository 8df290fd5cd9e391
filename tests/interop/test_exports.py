"""`biggan export` for programs that only run a generator, each run without us."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from biggan_jax import api, cli
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import comparing, exporting, formats, frozen, graph, layout, stablehlo

TOLERANCE = 1e-5  # Of pixels in [-1, 1]: float32 through some ten layers.
MODELS = {
    "table": {"table": True, "g_attention": (8,), "condition_order": "z_first"},
    "compare_gan": {"compare_gan": True, "sigma_rule": "shorter_side", "bn_eps": 1e-3},
    "own tables": {"shared_embedding": False, "hierarchical_z": False},
    "deep": {
        "arch": "biggan_deep",
        "g_ch": 16,
        "table": True,
        "rgb_channels": 5,
        "g_attention": (16,),
    },
}
Z = np.random.default_rng(3).normal(size=(5, 12)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1, 0])


def make_bundle(table=False, **model):
    """Random weights, biases and statistics, at a size at which tanh is not saturated."""
    changes = {"resolution": 16, "num_classes": 3, "g_ch": 8, "d_ch": 8, "shared_dim": 8}
    changes |= {"z_dim": 12, "g_attention": (), "d_attention": ()}
    made = bundle_lib.Bundle("toy", bundle_lib.resolve_model(changes | model), {})
    made.standing_images = 32
    rng = np.random.default_rng(0)
    for place, shape in layout.abstract(made.model)[0].items():
        noise = rng.normal(size=shape.shape).astype(np.float32)
        leaf, module = place.split("/")[-1], place.split("/")[-2]
        if leaf == "var":
            noise = np.exp(noise / 4)
        elif leaf in ("gamma", "gain") or (module == "gain" and made.model["compare_gan"]):
            noise = 1 + noise / 4
        elif leaf in ("mean", "bias"):
            noise = noise / 10
        made.tensors[f"ema/{place}"] = noise
        if table and place.startswith("batch_stats/"):
            made.tensors[f"table/{place}"] = np.stack([noise, 2 * noise, 3 * noise])
    if table:
        made.grid, made.truncation = (0.0, 0.5, 1.0), "hub"
    return made


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return api.Model(make_bundle(**MODELS[request.param]))


def program(name):
    """A format's module, where the packages it needs are there."""
    for package in importlib.import_module(f"biggan_jax.interop.{formats.PROGRAMS[name]}").PACKAGES:
        pytest.importorskip(package)
    return formats.program(name)


@pytest.fixture(params=[name for name in formats.PROGRAMS if name != "stablehlo"])
def written(request, model, tmp_path):
    """A model as a program runs it: (z, y, truncation) to images."""
    form = program(request.param)
    form.write(frozen.freeze(model.bundle), str(tmp_path))
    return form.load(str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The first of the models as a folder, and it itself."""
    made = make_bundle(**MODELS["table"])
    folder = str(tmp_path_factory.mktemp("saved") / "bundle")
    bundle_lib.write(made, folder)
    return folder, api.Model(made)


def run(capsys, *argv):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_graph_is_the_network(model, written):
    has_table, y = bool(model.bundle.grid), comparing.one_hot(LABELS, 3)
    truncations = (0.5, 1.0, 0.8, 0.1) if has_table else (1.0, 0.5)
    images = [written(Z, y, t) for t in truncations]
    for t, got in zip(truncations, images, strict=True):
        np.testing.assert_allclose(got, model.generate(Z, LABELS, t), atol=TOLERANCE)
    assert (np.abs(images[0] - images[1]).max() > 0.01) == has_table
    # Outside of the table its last row serves.
    np.testing.assert_allclose(written(Z, y, 7.0), images[has_table], atol=TOLERANCE)


@pytest.mark.parametrize("which", ["table", "own tables"])
def test_a_mixture_of_classes_is_a_class_between(which):
    """A class whose rows in all class tables are the mixture of the others' gives its images."""
    mixture = np.array([0.3, 0.0, 0.7], np.float32)
    made = make_bundle(**MODELS[which])
    between = dataclasses.replace(made, tensors=dict(made.tensors))
    tables = [k for k in made.tensors if k.startswith("ema/params") and "/embedding" in k]
    assert len(tables) == {"table": 1, "own tables": 8}[which]
    for name in tables:
        rows = made.tensors[name].copy()
        rows[1] = mixture @ rows
        between.tensors[name] = rows
    ice = frozen.freeze(made)
    call = jax.jit(lambda z, y: graph.generator(stablehlo.JaxOps(ice.arrays), ice, z, y, 1.0))
    want = api.Model(between).generate(Z, np.ones(5, int), 1.0)
    np.testing.assert_allclose(call(Z, np.tile(mixture, (5, 1))), want, atol=TOLERANCE)


WITHOUT_US = """
import sys
for name in ("biggan_jax", "flax", "optax", "safetensors", "tensorflow"):
    sys.modules[name] = None  # An import of it fails.
sys.path.insert(0, sys.argv[1])
import numpy as np
from load import generate
given = np.load(sys.argv[2])
for size in (5, 1):
    images = generate(given["z"][:size], given["y"][:size], given["truncation"])
    np.save(f"{sys.argv[3]}{size}.npy", images)
"""


def elsewhere(code, folder, tmp_path, truncation):
    """Images of five and of one, made by a process of its own."""
    y = comparing.one_hot(LABELS, 3)
    np.savez(tmp_path / "given.npz", z=Z, y=y, truncation=np.float32(truncation))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, folder, tmp_path / "given.npz", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [np.load(f"{tmp_path}{size}.npy") for size in (5, 1)]


def assert_images(made, model, truncation):
    want = model.generate(Z, LABELS, truncation)
    for images in made:
        assert images.dtype == np.float32
        np.testing.assert_allclose(images, want[: len(images)], atol=TOLERANCE)


@pytest.mark.multiprocess
@pytest.mark.parametrize("parameters", ["inside", "apart"])
def test_stablehlo_runs_without_us(saved, tmp_path, capsys, parameters):
    source, model = saved
    out = tmp_path / "out"
    argv = ["export", source, out, "--format=stablehlo", f"--parameters={parameters}"]
    code, said, _ = run(capsys, *argv)
    assert code == 0 and "no pixel differs" in said
    program = jax.export.deserialize(bytearray((out / "generator.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    made = elsewhere(WITHOUT_US, out, tmp_path, 0.6)
    assert_images(made, model, 0.6)
    about = json.loads((out / "export.json").read_text())
    assert about["difference"]["largest"] <= TOLERANCE and about["difference"]["images"] == 5
    assert set(about["files"]) == set(os.listdir(out)) - {"export.json", "README.md"}
    for name, file in about["files"].items():
        assert bundle_lib.sha256(str(out / name)) == file["sha256"]
    assert ("parameters.npz" in about["files"]) == (parameters == "apart")
    assert about["parameters"] == parameters
    kinds = ("/kernel", "/embedding", "/bias", "/gain", "/gamma")
    params = {k for k in model.bundle.tensors if "params/" in k and k.endswith(kinds)}
    assert about["weights"] == sum(model.bundle.tensors[k].size for k in params)
    if parameters == "apart":  # They are those that are used.
        with np.load(out / "parameters.npz") as file:
            arrays = {k: np.zeros_like(v) if k == "out_conv/kernel" else v for k, v in file.items()}
        np.savez(out / "parameters.npz", **arrays)
        flat, _ = elsewhere(WITHOUT_US, out, tmp_path, 0.6)
        np.testing.assert_allclose(flat, np.broadcast_to(flat[:1, :1, :1], flat.shape), atol=1e-6)


WITH_TENSORFLOW = """
import sys
for name in ("biggan_jax", "jax", "flax"):
    sys.modules[name] = None
import numpy as np
import tensorflow as tf
generate = tf.saved_model.load(sys.argv[1]).signatures["default"]
given = np.load(sys.argv[2])
inputs, outputs = generate.structured_input_signature[1], generate.structured_outputs
assert {k: v.shape.as_list() for k, v in inputs.items()} == {
    "z": [None, 12], "y": [None, 3], "truncation": []
}
assert outputs["default"].shape.as_list() == [None, 16, 16, 3]
for size in (5, 1):
    z, y, truncation = (tf.constant(given[k]) for k in ("z", "y", "truncation"))
    images = generate(z=z[:size], y=y[:size], truncation=truncation)["default"].numpy()
    np.save(f"{sys.argv[3]}{size}.npy", images)
"""
WITH_ONNXRUNTIME = """
import sys
for name in ("biggan_jax", "jax", "flax", "tensorflow", "onnx"):
    sys.modules[name] = None
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/generator.onnx")
given = np.load(sys.argv[2])
shapes = {i.name: i.shape for i in session.get_inputs()}
assert shapes == {"z": ["batch", 12], "y": ["batch", 3], "truncation": []}, shapes
assert session.get_outputs()[0].shape == ["batch", 16, 16, 3]
for size in (5, 1):
    inputs = {"z": given["z"][:size], "y": given["y"][:size], "truncation": given["truncation"]}
    np.save(f"{sys.argv[3]}{size}.npy", session.run(["images"], inputs)[0])
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("name", "code"), [("saved-model", WITH_TENSORFLOW), ("onnx", WITH_ONNXRUNTIME)]
)
def test_other_programs_run_it_alone(saved, tmp_path, capsys, name, code):
    program(name)
    source, model = saved
    out = tmp_path / "out"
    status, said, _ = run(capsys, "export", source, out, f"--format={name}")
    assert status == 0 and "no pixel differs" in said
    assert_images(elsewhere(code, str(out), tmp_path, 0.6), model, 0.6)


def test_npz_holds_the_weights(tmp_path, capsys):
    made = make_bundle()
    bundle_lib.write(made, str(tmp_path / "source"))
    argv = ["export", tmp_path / "source", tmp_path / "out", "--format=npz"]
    assert run(capsys, *argv, "--truncations=stored")[0] == 0
    with np.load(tmp_path / "out" / "generator.npz") as file:
        arrays = dict(file)
    assert arrays["truncations"].shape == (1,) and arrays["block1/bn2/mean"].shape == (1, 32)
    for name in ("block0/conv1/kernel", "block1/bn1/gain"):
        place = name if "conv" in name else f"{name}/kernel"
        kernel = made.tensors[f"ema/params/{place}"]
        ratio = kernel / arrays[name]
        sigma = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        # One number, what one iteration from a random u sees of the largest singular value.
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)
        assert 0.5 * sigma < ratio.flat[0] <= 1.0001 * sigma
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["truncations"] == [] and about["model"] == made.model | {"remat": False}


def test_what_a_card_says(saved, tmp_path, capsys):
    out, scores = tmp_path / "out", tmp_path / "scores.json"
    scores.write_text('{"fid50k": 9.5}')
    argv = ["--format=bundle", "--licence=CC0-1.0.", f"--scores={scores}", "--truncations=0.5,1"]
    code, said, _ = run(capsys, "export", saved[0], out, *argv)
    assert code == 0 and "no pixel differs from the source's by more than 0.0e+00" in said
    card = (out / "README.md").read_text()
    for text in (
        "| fid50k | 9.5 |",
        "CC0-1.0.",
        "2 truncations: 0.5, 1.",
        "samples.png",
        "no pixel",
    ):
        assert text in card, text
    assert (out / "samples.png").stat().st_size > 1000
    config = json.loads((out / "config.json").read_text())
    assert config["difference"] == {"largest": 0.0, "images": 5, "limit": 1e-4}
    again = bundle_lib.read(str(out))
    assert again.grid == (0.5, 1.0) and again.source["licence"] == "CC0-1.0."
    # The rows are the model's own, for it brings them.
    table, before = again.part("table"), saved[1].bundle.part("table")
    for place, rows in before.items():
        np.testing.assert_array_equal(table[place], rows[1:])
    # What says nothing of licences and scores is a bundle too, and its card says so.
    with open(os.path.join(saved[0], "README.md")) as f:
        assert "Not stated." in f.read()


def test_statistics_are_made_where_a_model_brings_none(tmp_path, capsys):
    made = make_bundle(shared_dim=4)
    bundle_lib.write(made, str(tmp_path / "source"))
    assert run(capsys, "export", tmp_path / "source", tmp_path / "out", "--format=bundle")[0] == 0
    again, source = api.load(str(tmp_path / "out")), api.Model(made)
    assert again.bundle.grid == exporting.TRUNCATIONS["threshold"]
    for truncation in (0.5, 4.0):
        want = source.generate(Z, LABELS, truncation, statistics="standing")
        np.testing.assert_allclose(again.generate(Z, LABELS, truncation), want, atol=TOLERANCE)


def test_an_export_of_other_images_is_not_kept(saved, tmp_path, capsys, monkeypatch):
    good = stablehlo.write

    def bad(ice, folder, **options):
        arrays = ice.arrays | {"out_conv/bias": ice.arrays["out_conv/bias"] + 0.001}
        good(dataclasses.replace(ice, arrays=arrays), folder, **options)

    monkeypatch.setattr(stablehlo, "write", bad)
    code, out, err = run(capsys, "export", saved[0], tmp_path / "out", "--format=stablehlo")
    assert (code, out) == (2, "") and "differ from the source's by up to 0.00" in err
    assert err.count("\n") == 1 and not os.listdir(tmp_path)


def test_a_comparison_sees_nan_and_shapes(saved):
    tried = comparing.points(saved[1].bundle)
    assert sorted(len(p.z) for p in tried) == [1, 1, 3]
    images = lambda z, labels, t: np.zeros((len(z), 2, 2, 3))  # noqa: E731
    assert comparing.compare(images, images, tried, "x")["largest"] == 0
    for other in (lambda *a: images(*a) + np.nan, lambda *a: images(*a)[:, :1]):
        with pytest.raises(ConfigError, match=r"source's by up to nan|of shape"):
            comparing.compare(images, other, tried, "x")


@pytest.mark.parametrize("name", ["biggan-pytorch"])
def test_formats_of_training_programs_are_compared_too(tmp_path, capsys, monkeypatch, name):
    made = make_bundle(resolution=32, z_dim=16, out_bn_eps=1e-5, table=True)
    bundle_lib.write(made, str(tmp_path / "source"))
    argv = ["export", tmp_path / "source", tmp_path / "out", f"--format={name}"]
    code, said, _ = run(capsys, *argv)
    assert code == 0 and said.startswith("note: Loaded again and run on 5 latents: no pixel")
    compare, black, white = comparing.compare, lambda *a: np.zeros(1), lambda *a: np.ones(1)
    monkeypatch.setattr(comparing, "compare", lambda a, b, *rest: compare(black, white, *rest))
    argv[2] = tmp_path / "none"
    before = sorted(tmp_path.rglob("*"))
    code, said, err = run(capsys, *argv)
    assert (code, said) == (2, "") and "nothing was kept" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--format=stablehlo", "--parameters=near"], "--parameters=near: must be inside or apart"),
        (["--format=bundle", "--parameters=apart"], "--parameters: goes with --format=stablehlo"),
        (["--format=bundle", "--truncations=0.5,x"], "must be numbers with commas between, or st"),
        (["--format=bundle", "--truncations=1,0.5"], "--truncations=1,0.5: must ascend"),
        (["--format=bundle", "--truncations=0.5,3"], "at most 1 in mode hub"),
        (["--format=bundle", "--truncations=nan"], "must be a number above 0"),
        (["--format=biggan-pytorch", "--licence=MIT"], "--licence: has no place in the format"),
        (["--format=bundle", "--scores=nowhere.json"], "--scores=nowhere.json: cannot be read"),
        (["--format=bundle", f"--scores={os.devnull}"], "cannot be read"),
    ],
)
def test_bad_requests_are_one_sentence(saved, tmp_path, capsys, argv, message):
    code, out, err = run(capsys, "export", saved[0], tmp_path / "out", *argv)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", formats.PROGRAMS)
def test_each_program_has_its_name(name):
    assert name == program(name).NAME


@pytest.mark.parametrize("name", formats.PROGRAMS)
def test_a_missing_package_is_named(saved, tmp_path, capsys, monkeypatch, name):
    module = importlib.import_module(f"biggan_jax.interop.{formats.PROGRAMS[name]}")
    monkeypatch.setattr(module, "PACKAGES", ("no_such_package",))
    code, out, err = run(capsys, "export", saved[0], tmp_path / "out", f"--format={name}")
    assert (code, out) == (2, "") and f"--format={name}: needs no_such_package; install it" in err
    assert not os.listdir(tmp_path)
