"""TF-Hub modules, against NumPy on their own tensors and Hugging Face's numbers."""

import os
import shutil

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import compare_gan, layout, tfhub
from tests.golden import author_port
from tests.interop import reference_tf as reference

TOLERANCE = 2e-5  # Of pixels in [-1, 1], float32 against float64.
LABELS = np.array([1, 5])
DEEP = {"resolution": 128, "classes": 11, "rgb": 8}  # The sizes of Hugging Face's golden file.


@pytest.fixture(autouse=True)
def quick_and_precise(monkeypatch):
    monkeypatch.setattr(layout, "abstract", reference.quick_shapes)
    with jax.default_matmul_precision("highest"):
        yield


def module(folder, tensors, stacks=None, scope=""):
    """Writes a module's folder."""
    folder = str(folder)
    reference.save(f"{folder}/variables/variables", tensors)
    if stacks is None:
        with open(f"{folder}/saved_model.pb", "wb"):
            pass
    else:
        reference.hub_graph(f"{folder}/saved_model.pb", stacks, scope)
    return folder


def under(scope, tensors):
    return {scope + name: value for name, value in tensors.items()}


def normal(*shape):
    return np.random.default_rng(11).normal(size=shape)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def assert_telling(images):
    """Neither flat nor saturated, and of more than one kind."""
    assert 0.05 < images.std() < 0.7 and np.abs(images[0] - images[1]).max() > 0.05


@pytest.fixture(scope="module")
def small():
    return reference.hub_biggan(128)


@pytest.fixture(scope="module")
def small_deep():
    return reference.hub_deep(**DEEP)


def test_biggan(tmp_path, small):
    bundle = tfhub.read(module(tmp_path / "m", small))
    expected = {
        "arch": "biggan",
        "resolution": 128,
        "num_classes": 7,
        "g_ch": 8,
        "z_dim": 120,
        "shared_dim": 128,
        "g_attention": [64],
        "rgb_channels": 3,
        "condition_order": "z_first",
        "sigma_rule": "fresh",
        "compare_gan": False,
        "bn_eps": 1e-4,
        "out_bn_eps": 1e-4,
        "sn_eps": 1e-4,
    }
    assert expected.items() <= bundle.model.items()
    assert (bundle.name, bundle.truncation, bundle.grid) == ("biggan-128", "hub", ())
    assert {name.split("/")[0] for name in bundle.tensors} == {"ema", "extra"}
    assert "extra/variables/Generator/GBlock_2/conv1/u1" in bundle.tensors
    assert sorted(bundle.source["files"]) == ["variables.data-00000-of-00001", "variables.index"]
    z = normal(2, 120)
    images = reference.hub_biggan_images(small, z, LABELS)
    assert_telling(images)
    np.testing.assert_allclose(reference.run(bundle, "ema", z, LABELS), images, atol=TOLERANCE)


def test_a_bundle_of_it_reads_back(tmp_path, small_deep):
    bundle = tfhub.read(module(tmp_path / "m", *small_deep))
    bundle_lib.write(bundle, str(tmp_path / "out"))
    again = bundle_lib.read(str(tmp_path / "out"))
    assert_same(again.tensors, bundle.tensors)
    assert (again.model, again.grid) == (bundle.model, bundle.grid)


@pytest.mark.parametrize(
    ("resolution", "z_dim", "attention"), [(128, 120, 64), (256, 140, 128), (512, 128, 64)]
)
def test_biggan_of_each_size(tmp_path, resolution, z_dim, attention):
    bundle = tfhub.read(module(tmp_path / "m", reference.hub_biggan(resolution)))
    model = bundle.model
    got = model["resolution"], model["g_ch"], model["z_dim"], model["g_attention"]
    assert got == (resolution, 8, z_dim, [attention])


@pytest.mark.parametrize("resolution", [256, 512])
def test_deep_of_each_size(tmp_path, resolution):
    tensors, stacks = reference.hub_deep(resolution)
    bundle = tfhub.read(module(tmp_path / "m", tensors, stacks))
    model = bundle.model
    got = model["resolution"], model["g_ch"], model["z_dim"], model["g_attention"]
    assert got == (resolution, 8, 128, [64])
    np.testing.assert_array_equal(bundle.tensors["table/batch_stats/out_bn/var"], stacks[-1])


def test_a_module_is_found_by_its_parts_and_under_a_scope(tmp_path, small_deep):
    tensors, stacks = small_deep
    folder = module(tmp_path / "plain", tensors, stacks)
    scoped = module(tmp_path / "scoped", under("module/", tensors), stacks, "module_apply_default/")
    want = tfhub.read(folder).tensors
    for path in (f"{folder}/variables", f"{folder}/variables/variables", scoped):
        assert tfhub.recognise(path)
        assert_same(tfhub.read(path).tensors, want)


def test_raw_weights_beside_averaged_ones(tmp_path, small):
    raw = reference.hub_biggan(128, seed=1, averaged="")
    bundle = tfhub.read(module(tmp_path / "m", raw | small))
    ema, g = bundle.part("ema"), bundle.part("g")
    np.testing.assert_array_equal(
        ema["params/block0/conv1/kernel"], small["Generator/GBlock/conv0/w/ema_b999900"]
    )
    np.testing.assert_array_equal(g["params/block0/conv1/kernel"], raw["Generator/GBlock/conv0/w"])
    assert all(np.array_equal(g[k], ema[k]) for k in g if not k.startswith("params/"))


def test_raw_weights_that_are_not_all_there_are_left_out(tmp_path, small):
    raw = reference.hub_biggan(128, seed=1, averaged="")
    del raw["Generator/GBlock/conv0/w"]
    bundle = tfhub.read(module(tmp_path / "m", raw | small))
    assert bundle.part("ema") and not bundle.part("g")


def test_raw_weights_alone(tmp_path):
    raw = reference.hub_biggan(128, averaged="")
    bundle = tfhub.read(module(tmp_path / "m", raw))
    assert bundle.part("g") and not bundle.part("ema")
    assert any("no averaged weights" in note for note in bundle.source["notes"])


def test_deep(tmp_path, small_deep):
    tensors, stacks = small_deep
    bundle = tfhub.read(module(tmp_path / "m", tensors, stacks))
    expected = {
        "arch": "biggan_deep",
        "resolution": 128,
        "num_classes": 11,
        "g_ch": 8,
        "z_dim": 128,
        "shared_dim": 128,
        "g_attention": [64],
        "rgb_channels": 8,
        "condition_order": "z_first",
        "sigma_rule": "fresh",
    }
    assert expected.items() <= bundle.model.items()
    assert (bundle.name, bundle.truncation) == ("biggan-deep-128", "hub")
    np.testing.assert_allclose(bundle.grid, np.arange(51) * 0.02, atol=1e-12)
    table = bundle.part("table")
    z, labels = normal(3, 128), np.array([1, 5, 10])  # As many as Hugging Face's: one program.
    images = [reference.hub_deep_images(tensors, stacks, row, z, labels) for row in (3, 50)]
    assert_telling(images[0])
    got = [
        reference.run(bundle, "ema", z, labels, batch_stats={k: v[3] for k, v in table.items()}),
        reference.run(bundle, "ema", z, labels),  # The last row, truncation 1.
    ]
    np.testing.assert_allclose(got, images, atol=TOLERANCE)
    assert np.abs(images[0] - images[1]).max() > 100 * TOLERANCE


def from_hugging_face(state):
    """The module that Hugging Face's converter makes this state of (spec section 18.4)."""
    averaged, tensors, stacks = "/ema_0.9999", {}, []

    def weight(theirs, ours, bias=True):
        kernel = state[f"{ours}.weight_orig"]
        matrix = kernel.reshape(len(kernel), -1).astype(np.float64)
        # The converter drops u0 for u = n(Mv) and keeps v = n(u0 M); this u0 makes that v.
        u0 = np.linalg.lstsq(matrix.T, state[f"{ours}.weight_v"].astype(np.float64))[0]
        tensors[f"{theirs}/u0"] = u0[None].astype(np.float32)
        axes = (2, 3, 1, 0) if kernel.ndim == 4 else (1, 0)
        tensors[f"{theirs}/w{averaged}"] = kernel.transpose(axes)
        if bias:
            tensors[f"{theirs}/b{averaged}"] = state[f"{ours}.bias"]

    def statistics(ours):
        stacks.extend(state[f"{ours}.running_{moment}"] for moment in ("means", "vars"))

    tensors[f"linear/w{averaged}"] = state["embeddings.weight"].T
    weight("Generator/GenZ/G_linear", "generator.gen_z")
    for i in range(10):
        block, layer = f"Generator/GBlock{f'_{i}' if i else ''}", f"generator.layers.{i + (i > 7)}"
        for k in range(4):
            for part in ("scale", "offset"):
                bn = f"{block}/BatchNorm{f'_{k}' if k else ''}/{part}"
                weight(bn, f"{layer}.bn_{k}.{part}", bias=False)
            weight(f"{block}/conv{k}", f"{layer}.conv_{k}")
            statistics(f"{layer}.bn_{k}")
    for part in ("theta", "phi", "g", "o_conv"):
        theirs, ours = f"Generator/attention/{part}", f"generator.layers.8.snconv1x1_{part}"
        weight(theirs, ours, bias=False)
    tensors[f"Generator/attention/gamma{averaged}"] = state["generator.layers.8.gamma"]
    tensors[f"Generator/BatchNorm/scale{averaged}"] = state["generator.bn.weight"]
    tensors[f"Generator/BatchNorm/offset{averaged}"] = state["generator.bn.bias"]
    statistics("generator.bn")
    weight("Generator/conv_to_rgb", "generator.conv_to_rgb")
    return tensors, stacks


def test_deep_makes_hugging_face_s_images(tmp_path):
    golden = np.load(author_port.FOLDER / "hf_deep_128.npz")
    state = {k.removeprefix("state/"): golden[k] for k in golden.files if k.startswith("state/")}
    bundle = tfhub.read(module(tmp_path / "m", *from_hugging_face(state)))
    table = bundle.part("table")
    # That program takes row 8 for 0.14, instead of 7 (spec section 7.4).
    for truncation, row in ((0.14, 8), (0.5, 25), (1.0, 50)):
        statistics = {place: rows[row] for place, rows in table.items()}
        images = reference.run(bundle, "ema", golden["z"], golden["y"], batch_stats=statistics)
        np.testing.assert_allclose(images, golden[f"image/{truncation}"], atol=1e-4)


def lack(name):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def change(name, function):
    return lambda tensors: tensors | {name: function(tensors[name])}


BAD_BIGGAN = {
    "missing": (
        lack("Generator/GBlock_3/conv0/u0"),
        "'Generator/GBlock_3/conv0/u0' is missing",
    ),
    "no average": (
        lack("Generator/GBlock_3/conv0/w/ema_b999900"),
        "'Generator/GBlock_3/conv0/w/ema_b999900' is missing",
    ),
    "extra": (
        lambda tensors: tensors | {"Generator/GBlock_3/conv2/w": np.zeros((3, 3), np.float32)},
        "'Generator/GBlock_3/conv2/w' belongs to no part",
    ),
    "transposed": (
        change("Generator/GBlock_1/conv0/w/ema_b999900", lambda x: x.transpose(0, 1, 3, 2)),
        r"'Generator/GBlock_1/conv0/w/ema_b999900' is of shape \[3, 3, 64, 128\] and must be"
        r" \[3, 3, 128, 64\]",
    ),
    "not finite": (
        change("Generator/GBlock/conv1/b/ema_b999900", lambda x: x * np.nan),
        "'Generator/GBlock/conv1/b/ema_b999900' holds values that are not finite",
    ),
    "no table": (lack("linear/w/ema_b999900"), "'linear/w' is missing"),
    "blocks": (
        lambda tensors: (
            {k: v for k, v in tensors.items() if "GBlock" not in k}
            | {"Generator/GBlock/conv0/u0": np.zeros((1, 8), np.float32)}
        ),
        "1 blocks make no biggan",
    ),
    "attention": (
        change("Generator/attention/theta/w/ema_b999900", lambda x: np.repeat(x, 3, axis=2)),
        "attention module takes 48 channels",
    ),
    "BigBiGAN": (lambda tensors: under("GenEncWrapper/", tensors), "is a BigBiGAN"),
    "another": (
        lambda tensors: {"generator/fc_noise/kernel": np.zeros((2, 2), np.float32)},
        "is no BigGAN of TF-Hub",
    ),
}


@pytest.mark.parametrize("case", BAD_BIGGAN)
def test_bad_variables_are_named(tmp_path, small, case):
    spoil, message = BAD_BIGGAN[case]
    folder = module(tmp_path / "m", spoil(small))
    with pytest.raises(ConfigError, match=message) as caught:
        tfhub.read(folder)
    assert folder in str(caught.value) and "\n" not in str(caught.value)


def widen(stacks):
    return [np.repeat(stacks[0], 2, axis=1), *stacks[1:]]


BAD_STACKS = {
    "missing": (lambda s: s[:-1], "statistics are missing: .* there is no stack_203"),
    "none": (lambda s: [], "statistics are missing: .* there is no stack_3"),
    "channels": (widen, r"stack_1 is of shape \[51, 256\] and must be \[rows, 128\]"),
    "rows": (lambda s: [*s[:-1], s[-1][:50]], "as many in all"),
    "one row": (lambda s: [x[:1] for x in s], "two or more rows"),
    "not finite": (lambda s: [s[0] * np.nan, *s[1:]], "stack_1 holds values that are not finite"),
}


@pytest.mark.parametrize("case", BAD_STACKS)
def test_bad_statistics_are_named(tmp_path, small_deep, case):
    spoil, message = BAD_STACKS[case]
    tensors, stacks = small_deep
    folder = module(tmp_path / "m", tensors, spoil(stacks))
    with pytest.raises(ConfigError, match=message) as caught:
        tfhub.read(folder)
    assert f"{folder}/saved_model.pb" in str(caught.value)


def test_a_deep_checkpoint_without_its_graph(tmp_path, small_deep):
    folder = module(tmp_path / "m", *small_deep)
    os.remove(f"{folder}/saved_model.pb")
    with pytest.raises(ConfigError, match=r"statistics are in saved_model\.pb"):
        tfhub.read(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("variables/variables.index", r"variables.index' is damaged or not a checkpoint"),
        ("variables/variables.data-00000-of-00001", r"is damaged or not a checkpoint"),
        ("saved_model.pb", r"saved_model.pb' is damaged or not a saved model"),
    ],
)
def test_damaged_files(tmp_path, small_deep, name, message):
    folder = module(tmp_path / "m", *small_deep)
    path = os.path.join(folder, name)
    with open(path, "rb+") as f:
        f.truncate(os.path.getsize(path) // 2)
    with pytest.raises(ConfigError, match=message) as caught:
        tfhub.read(folder)
    assert "\n" not in str(caught.value)
    if name.endswith(".index"):
        assert not tfhub.recognise(folder)


def test_recognise(tmp_path, small):
    folder = module(tmp_path / "m", small)
    assert tfhub.recognise(folder) and not compare_gan.recognise(folder)
    assert not tfhub.recognise(str(tmp_path)) and not tfhub.recognise(str(tmp_path / "none"))
    shutil.rmtree(f"{folder}/variables")
    assert not tfhub.recognise(folder)
    with pytest.raises(ConfigError, match="holds no TF-Hub module"):
        tfhub.read(folder)


def test_a_user_may_say_what_a_module_does_not(tmp_path, small):
    bundle = tfhub.read(module(tmp_path / "m", small), [("model.bn_eps", "1e-5")])
    assert bundle.model["bn_eps"] == 1e-5
