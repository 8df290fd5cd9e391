"""compare_gan's checkpoints, against NumPy on their own tensors."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.interop import compare_gan, layout, tfhub
from tests.interop import reference_tf as reference

TOLERANCE = 2e-5  # Of pixels in [-1, 1] and of logits around 1, float32 against float64.
LABELS = np.array([1, 5])
AVERAGED = reference.CG_AVERAGED


@pytest.fixture(autouse=True)
def quick_and_precise(monkeypatch):
    monkeypatch.setattr(layout, "abstract", reference.quick_shapes)
    with jax.default_matmul_precision("highest"):
        yield


def save(folder, tensors, name="model.ckpt-250000"):
    prefix = str(folder / name)
    reference.save(prefix, tensors)
    return prefix


def random(seed=11):
    return np.random.default_rng(seed)


def evaluated(tensors):
    """What compare_gan's evaluation writes: the generator alone, as an applied module."""
    generator = {k: v for k, v in tensors.items() if k.startswith("generator/")}
    return {f"gen_module/{k}": v for k, v in generator.items() if "g_opt" not in k}


def check_generators(bundle, tensors):
    z = random().normal(size=(2, bundle.model["z_dim"]))
    for network, suffix in (("g", ""), ("ema", AVERAGED)):
        images = 2 * reference.compare_gan_images(tensors, z, LABELS, suffix) - 1
        assert 0.05 < images.std() < 0.7 and np.abs(images[0] - images[1]).max() > 0.05
        got = reference.run(bundle, network, z, LABELS)
        np.testing.assert_allclose(got, images, atol=TOLERANCE, err_msg=network)


def check_discriminator(bundle, tensors, count=2):
    size = bundle.model["resolution"]
    x = random().uniform(size=(count, size, size, 3)).astype(np.float32)
    logits = reference.compare_gan_logits(tensors, x, LABELS[:count])
    assert np.abs(logits).min() > 0.05
    got = reference.run(bundle, "d", 2 * x - 1, LABELS[:count])
    np.testing.assert_allclose(got, logits, atol=TOLERANCE)


@pytest.fixture(scope="module")
def small():
    return reference.compare_gan(64)


@pytest.fixture(scope="module")
def small_deep():
    return reference.compare_gan(128, deep=True)


def test_biggan(tmp_path, small):
    bundle = compare_gan.read(save(tmp_path, small))
    expected = {
        "arch": "biggan",
        "resolution": 64,
        "num_classes": 7,
        "g_ch": 8,
        "d_ch": 8,
        "z_dim": 20,
        "shared_dim": 16,
        "g_attention": [64],
        "d_attention": [32],
        "condition_order": "z_first",
        "sigma_rule": "shorter_side",
        "compare_gan": True,
        "bn_eps": 1e-5,
        "out_bn_eps": 1e-5,
        "sn_eps": 1e-6,
    }
    assert expected.items() <= bundle.model.items()
    assert {name.split("/")[0] for name in bundle.tensors} == {"g", "ema", "d"}
    assert bundle.name == "compare-gan-biggan-64"
    files = ["model.ckpt-250000.data-00000-of-00001", "model.ckpt-250000.index"]
    assert sorted(bundle.source["files"]) == files
    check_generators(bundle, small)
    check_discriminator(bundle, small)


def test_deep(tmp_path, small_deep):
    bundle = compare_gan.read(save(tmp_path, small_deep))
    expected = {
        "arch": "biggan_deep",
        "resolution": 128,
        "z_dim": 4,
        "shared_dim": 16,
        "g_attention": [64],
        "d_attention": [64],
        "rgb_channels": 3,
    }
    assert expected.items() <= bundle.model.items()
    check_generators(bundle, small_deep)
    check_discriminator(bundle, small_deep)


def test_d_has_no_shortcut_where_it_halves_the_size_at_equal_width(tmp_path):
    tensors = reference.compare_gan(256)
    assert "discriminator/B5/down_conv2/kernel" in tensors
    assert "discriminator/B5/down_conv_shortcut/kernel" not in tensors
    bundle = compare_gan.read(save(tmp_path, tensors))
    check_discriminator(bundle, tensors, count=1)


@pytest.mark.parametrize(
    ("resolution", "deep", "g_attention", "d_attention"),
    [
        (128, False, [64], [64]),
        (256, False, [128], [64]),
        (64, True, [64], []),
        (256, True, [64], [64]),
    ],
)
def test_sizes(tmp_path, resolution, deep, g_attention, d_attention):
    tensors = reference.compare_gan(
        resolution, ch=16, d_ch=8, deep=deep, g_attention=g_attention[0], rgb=8 if deep else 3
    )
    model = compare_gan.read(save(tmp_path, tensors)).model
    assert (model["resolution"], model["g_ch"], model["d_ch"]) == (resolution, 16, 8)
    assert (model["g_attention"], model["d_attention"]) == (g_attention, d_attention)
    assert model["rgb_channels"] == (8 if deep else 3)


def test_attention_of_a_width_that_two_sizes_have(tmp_path):
    tensors = reference.compare_gan(256, g_attention=16)
    prefix = save(tmp_path, tensors)
    bundle = compare_gan.read(prefix)
    assert bundle.model["g_attention"] == [16]
    assert any("it could be at 32 px too" in note for note in bundle.source["notes"])
    chosen = compare_gan.read(prefix, [("model.g_attention", "32")])
    assert chosen.model["g_attention"] == [32]
    assert "g/params/attention32/gamma" in chosen.tensors


def test_what_the_evaluation_writes(tmp_path, small):
    bundle = compare_gan.read(save(tmp_path, evaluated(small), "model-with-accu.ckpt"))
    whole = compare_gan.read(save(tmp_path, small))
    assert not bundle.part("d")
    for network in ("g", "ema"):
        part, want = bundle.part(network), whole.part(network)
        assert part.keys() == want.keys()
        assert all(np.array_equal(part[k], want[k]) for k in part)


def test_a_run_without_averages(tmp_path, small):
    bundle = compare_gan.read(save(tmp_path, {k: v for k, v in small.items() if AVERAGED not in k}))
    assert bundle.part("g") and not bundle.part("ema")


def test_moving_averages_are_taken_as_they_are(tmp_path, small):
    tensors = {k: v for k, v in small.items() if "/accu/" not in k}
    for name, value in small.items():
        scope, _, leaf = name.rpartition("/accu/accu_")
        if leaf in ("mean", "variance"):
            tensors[f"{scope}/moving_{leaf}"] = value / np.float32(reference.COUNT)
    got = compare_gan.read(save(tmp_path / "moving", tensors)).tensors
    want = compare_gan.read(save(tmp_path / "sums", small)).tensors
    assert got.keys() == want.keys()
    for name in got:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-6, err_msg=name)


def moved(tensors, suffix=""):
    """The same with each u carried to the shorter side: v = n(u^T M) (spec section 18.1)."""
    changed = dict(tensors)
    for name, u in tensors.items():
        if not name.endswith("/u_var"):
            continue
        averaged = suffix if name.startswith("generator") else ""
        kernel = tensors[name.removesuffix("/u_var") + averaged].astype(np.float64)
        matrix = kernel.reshape(-1, kernel.shape[-1])
        rows, columns = matrix.shape
        if u.shape == (rows, 1) and rows > columns:
            changed[name] = u.T @ matrix / np.linalg.norm(u.T @ matrix)
        if u.shape == (1, columns) and rows <= columns:
            changed[name] = matrix @ u.T / np.linalg.norm(matrix @ u.T)
    return changed


@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_of_the_longer_side(tmp_path, side):
    tensors = reference.compare_gan(64, side=side)
    bundle = compare_gan.read(save(tmp_path, tensors))
    assert sum("half an iteration ahead" in note for note in bundle.source["notes"]) == 1
    z = random().normal(size=(2, 20))
    for network, suffix in (("g", ""), ("ema", AVERAGED)):
        images = reference.compare_gan_images(moved(tensors, suffix), z, LABELS, suffix)
        got = reference.run(bundle, network, z, LABELS)
        np.testing.assert_allclose(got, 2 * images - 1, atol=TOLERANCE)
    check_discriminator(bundle, moved(tensors))


def test_the_latest_of_a_folder(tmp_path, small):
    save(tmp_path, small, "model.ckpt-9")
    second = dict(small) | {"generator/embed_y/kernel": small["generator/embed_y/kernel"] + 1}
    save(tmp_path, second, "model.ckpt-10")
    table = lambda: compare_gan.read(str(tmp_path)).tensors["g/params/shared/embedding"]  # noqa: E731
    np.testing.assert_array_equal(table(), second["generator/embed_y/kernel"])
    state = tmp_path / "checkpoint"
    state.write_text('model_checkpoint_path: "/elsewhere/model.ckpt-9"\n')
    np.testing.assert_array_equal(table(), small["generator/embed_y/kernel"])
    state.write_text('model_checkpoint_path: "model.ckpt-8"\n')  # Not there any more.
    np.testing.assert_array_equal(table(), second["generator/embed_y/kernel"])


def lack(part):
    return lambda tensors: {k: v for k, v in tensors.items() if part not in k}


def change(part, function):
    return lambda tensors: {k: function(v) if part in k else v for k, v in tensors.items()}


BAD = {
    "missing": (lack("B2/same_conv2/bias"), "'generator/B2/same_conv2/bias' is missing"),
    "no average": (
        lack("B2/same_conv2/bias/Exp"),
        "'generator/B2/same_conv2/bias/ExponentialMovingAverage' is missing",
    ),
    "no u": (lack("generator/B2/same_conv2/kernel/u_var"), "same_conv2/kernel/u_var' is missing"),
    "of D": (lack("embedding_fc"), "'discriminator/embedding_fc/kernel' is missing"),
    "extra": (
        lambda t: t | {"generator/B2/bn1/sbn/hidden/kernel": np.zeros((2, 2), np.float32)},
        "'generator/B2/bn1/sbn/hidden/kernel' belongs to no part",
    ),
    "transposed": (
        change("B3/up_conv1/kernel", lambda x: x.swapaxes(-1, -2) if x.ndim == 4 else x),
        r"'generator/B3/up_conv1/kernel' is of shape \[3, 3, 32, 64\] and must be"
        r" \[3, 3, 64, 32\]",
    ),
    "one never accumulated": (
        change("B2/bn1/accu/accu_counter", lambda x: np.float32(1e-12)),
        "is a sum over no batch, and others are not",
    ),
    "no counter": (lack("accu_counter"), "accu/accu_counter' is missing"),
    "no embed_y": (lack("embed_y"), "only models with embed_y"),
    "not hierarchical": (
        change("B1/bn1/condition/gamma/kernel", lambda x: x[4:] if len(x) == 20 else x),
        "only models with hierarchical_z",
    ),
    "a block less": (lack("generator/B4/"), "attention module takes 16 channels and must"),
    "gray": (
        change("generator/final_conv", lambda x: x[..., :1]),
        "model.rgb_channels=1: must be at least 3",
    ),
    "another": (lack("generator/fc_noise"), "is no BigGAN of compare_gan"),
}


def test_a_training_checkpoint_has_no_statistics(tmp_path, small):
    """The evaluation fills them, into a file without D."""
    tensors = change("accu_counter", lambda x: np.float32(1e-12))(small)
    bundle = compare_gan.read(save(tmp_path, tensors))
    assert any("holds no batch norm statistics" in note for note in bundle.source["notes"])
    assert bundle.part("d")
    for network in ("g", "ema"):
        for place, array in bundle.part(network).items():
            if place.startswith("batch_stats/"):
                np.testing.assert_array_equal(array, 0.0 if place.endswith("mean") else 1.0)


@pytest.mark.parametrize("case", BAD)
def test_bad_variables_are_named(tmp_path, small, case):
    spoil, message = BAD[case]
    prefix = save(tmp_path, spoil(small))
    with pytest.raises(ConfigError, match=message) as caught:
        compare_gan.read(prefix)
    assert "\n" not in str(caught.value)


def test_deep_at_32_px_is_not_supported(tmp_path, small_deep):
    more = tuple(f"generator/B{i}/" for i in (8, 9, 10))
    tensors = {k: v for k, v in small_deep.items() if not k.startswith(more)}
    with pytest.raises(ConfigError, match="a BigGAN-deep of 7 blocks is not supported"):
        compare_gan.read(save(tmp_path, tensors))


def test_a_damaged_index(tmp_path, small):
    prefix = save(tmp_path, small)
    with open(f"{prefix}.index", "rb+") as f:
        f.truncate(os.path.getsize(f"{prefix}.index") // 2)
    assert not compare_gan.recognise(prefix)
    with pytest.raises(ConfigError, match=r"\.index' is damaged or not a checkpoint"):
        compare_gan.read(prefix)


def test_tensorflow_says_nothing(tmp_path, small):
    prefix = save(tmp_path, small)
    program = "import sys; from biggan_jax.interop import tfhub; tfhub.recognise(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", program, prefix], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_recognise(tmp_path, small):
    prefix = save(tmp_path, small)
    for path in (prefix, str(tmp_path), f"{prefix}.index"):
        assert compare_gan.recognise(path) and not tfhub.recognise(path)
    assert not compare_gan.recognise(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    assert not compare_gan.recognise(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="neither a checkpoint of TensorFlow nor a folder"):
        compare_gan.read(str(tmp_path / "empty"))
