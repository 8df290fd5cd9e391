"""Folders of pytorch_pretrained_biggan, against its numbers and, where it is there, itself."""

import ast
import functools
import itertools
import json

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import huggingface, layout, pth
from biggan_jax.models import networks
from biggan_jax.sample import statistics
from tests.golden import author_port
from tests.models import reference

TOLERANCE = 1e-4  # Of pixels in [-1, 1].
SHOWN = (0.14, 0.5, 0.55, 0.94, 1.0)
ON_ROWS = (0.5, 0.55, 1.0)  # Where the program finds the rows it means to.


ABSTRACT = layout.abstract


@functools.cache
def shapes_once(model):
    return ABSTRACT(json.loads(model))


@pytest.fixture(autouse=True)
def quick_and_precise(monkeypatch):
    """Shapes take seconds to trace, and nearly all tests here ask for the same ones."""
    monkeypatch.setattr(layout, "abstract", lambda model: shapes_once(json.dumps(model)))
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def golden():
    return dict(np.load(author_port.FOLDER / "hf_deep_128.npz"))


def golden_state():
    return {k.removeprefix("state/"): v for k, v in golden().items() if k.startswith("state/")}


def golden_config():
    return ast.literal_eval(str(golden()["config"]))


def save(folder, state, config):
    folder.mkdir(parents=True)
    pth.write(folder / "pytorch_model.bin", state)
    text = config if isinstance(config, str) else json.dumps(config)
    (folder / "config.json").write_text(text)
    return str(folder)


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("golden") / "tiny", golden_state(), golden_config())


@pytest.fixture(scope="module")
def golden_bundle(golden_folder):
    return huggingface.read(golden_folder)


@functools.cache
def compiled(model):
    model = json.loads(model)
    g, _ = networks.build({"model": model})
    # Small networks take far longer to compile than to run.
    options = {"xla_backend_optimization_level": 0} if model["g_ch"] == 8 else {}
    return jax.jit(functools.partial(g.apply, train=False), compiler_options=options)


def draw(bundle, z, labels, truncation, mode):
    """Images of our network with the statistics of the bundle's table."""
    moments = statistics.lookup(bundle.part("table"), bundle.grid, truncation, mode)
    variables = layout.unflatten(bundle.generator() | moments)
    return np.asarray(compiled(json.dumps(bundle.model))(variables, z, labels.astype(np.int32)))


def worst(a, b):
    return np.abs(a - b).max()


@pytest.mark.parametrize("truncation", [0.14, 0.28, 0.5, 0.55, 0.94, 1.0])
def test_images_are_those_of_the_program(golden_bundle, truncation):
    wanted = golden()[f"image/{truncation}"]
    images = {
        mode: draw(golden_bundle, golden()["z"], golden()["y"], truncation, mode)
        for mode in statistics.MODES
    }
    assert worst(images["hf-compat"], wanted) < TOLERANCE
    if truncation in ON_ROWS:
        np.testing.assert_array_equal(images["correct"], images["hf-compat"])
    else:
        assert worst(images["correct"], wanted) > 0.1


def test_what_a_bundle_says_of_itself(golden_bundle, golden_folder):
    b, state = golden_bundle, golden_state()
    model = {"arch": "biggan_deep", "resolution": 128, "num_classes": 11, "g_ch": 8, "d_ch": 8}
    model |= {"z_dim": 128, "shared_dim": 128, "g_attention": [64], "d_attention": [64]}
    model |= {"rgb_channels": 8, "bn_eps": 1e-4, "out_bn_eps": 1e-4, "sn_eps": 1e-4}
    model |= {"condition_order": "z_first", "sigma_rule": "stored", "compare_gan": False}
    assert model.items() <= b.model.items()
    assert (b.name, b.truncation, b.class_names) == ("tiny", "hub", ())
    assert b.grid == tuple(k / 50 for k in range(51))
    assert {name.split("/")[0] for name in b.tensors} == {"ema", "table"}
    for ours, theirs in (("block7/bn2", "layers.7.bn_1"), ("block8/bn1", "layers.9.bn_0")):
        means = state[f"generator.{theirs}.running_means"]
        np.testing.assert_array_equal(b.part("table")[f"batch_stats/{ours}/mean"], means)
        np.testing.assert_array_equal(b.part("ema")[f"batch_stats/{ours}/mean"], means[50])
    assert b.source["format"] == huggingface.NAME
    assert json.loads(b.source["config"]).keys() == golden_config().keys()
    for name, digest in b.source["files"].items():
        assert bundle_lib.sha256(f"{golden_folder}/{name}") == digest
    assert set(b.source["files"]) == {"config.json", "pytorch_model.bin"}


def test_writing_gives_every_tensor_back(golden_bundle, golden_folder, tmp_path):
    """And so it does after a stay on disk as a bundle of ours."""
    bundle_lib.write(golden_bundle, str(tmp_path / "bundle"))
    stored = bundle_lib.read(str(tmp_path / "bundle"))
    assert huggingface.write(stored, str(tmp_path / "out")) == []
    state, back = golden_state(), pth.read(tmp_path / "out" / "pytorch_model.bin")
    assert list(back) == list(state)  # Order and all.
    for name, array in state.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, strict=True)
    for name in ("config.json", "pytorch_model.bin"):
        original = (tmp_path / "out" / name).read_bytes()
        with open(f"{golden_folder}/{name}", "rb") as f:
            assert f.read() == original
    again = huggingface.read(str(tmp_path / "out"))
    same_bundle(again, golden_bundle)


def same_bundle(a, b):
    assert (a.model, a.grid, a.source["config"]) == (b.model, b.grid, b.source["config"])
    assert a.tensors.keys() == b.tensors.keys()
    for name, array in a.tensors.items():
        np.testing.assert_array_equal(array, b.tensors[name], strict=True)


def test_a_changed_model_is_written_with_a_config_of_its_own(golden_bundle, tmp_path):
    changed = bundle_lib.Bundle(**vars(golden_bundle))
    changed.model = golden_bundle.model | {"bn_eps": 1e-3, "out_bn_eps": 1e-3, "sn_eps": 1e-3}
    huggingface.write(changed, str(tmp_path / "out"))
    config = golden_config() | {"eps": 1e-3}
    config["layers"] = [list(block) for block in config["layers"]]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_half_precision_comes_back_as_half_precision(tmp_path):
    state = golden_state()
    half = [name for name in state if "conv_" in name]
    state |= {name: state[name].astype(np.float16) for name in half}
    bundle = huggingface.read(save(tmp_path / "half", state, golden_config()))
    assert all(array.dtype == np.float32 for array in bundle.tensors.values())
    huggingface.write(bundle, str(tmp_path / "out"))
    back = pth.read(tmp_path / "out" / "pytorch_model.bin")
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, strict=True)


def test_keys_that_config_json_lacks_are_the_programs_own(golden_bundle, tmp_path):
    config = {k: golden_config()[k] for k in ("channel_width", "num_classes")}
    bundle = huggingface.read(save(tmp_path / "short", golden_state(), config))
    assert bundle.model == golden_bundle.model
    huggingface.write(bundle, str(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config


def test_what_the_folder_leaves_open_can_be_set(golden_folder):
    overrides = [("model.d_ch", "16"), ("model.d_attention", "(32,)")]
    model = huggingface.read(golden_folder, overrides).model
    assert (model["d_ch"], model["d_attention"], model["g_attention"]) == (16, [32], [64])


@pytest.mark.parametrize(
    ("key", "value"), [("bn_eps", "1e-5"), ("g_attention", "()"), ("arch", "biggan")]
)
def test_what_the_folder_settles_cannot_be_given(golden_folder, key, value):
    with pytest.raises(ConfigError, match=rf"^--config\.model\.{key}: .*settles it.*\.$"):
        huggingface.read(golden_folder, [(f"model.{key}", value)])


def refused(state, config, tmp_path, *parts):
    """Reading raises one sentence with all of `parts`."""
    with pytest.raises(ConfigError) as e:
        huggingface.read(save(tmp_path / "bad", state, config))
    message = str(e.value)
    assert message.endswith(".") and ". " not in message, message
    assert str(tmp_path / "bad") in message
    for part in parts:
        assert part in message, message


CONV = "generator.layers.3.conv_1.weight_orig"
MEANS = "generator.layers.0.bn_0.running_means"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (CONV, None, "missing"),
        ("generator.gen_z.weight_u", None, "missing"),
        ("embeddings.weight", None, "missing"),
        ("generator.layers.8.gamma", lambda x: np.zeros(2, np.float32), "[2] and must be [1]"),
        (CONV, lambda x: x[:-1], "must be [32, 32, 3, 3]"),
        (MEANS, lambda x: x.T, "[128, 51] and must be [51, 128]"),
        ("generator.layers.0.bn_0.scale.weight_v", lambda x: x[None], "must be [256]"),
        (CONV, lambda x: x * np.nan, "not finite"),
        (CONV, lambda x: "text", "not a tensor"),
        ("generator.layers.11.conv_0.bias", lambda x: np.zeros(2, np.float32), "no part"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name, change, problem, tmp_path):
    state = golden_state()
    if change is None:
        del state[name]
    else:
        state[name] = change(state.get(name))
    refused(state, golden_config(), tmp_path, "pytorch_model.bin", repr(name), problem)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"num_classes": 12}, ("num_classes=12", "embeddings.weight", "[128, 11]")),
        ({"num_classes": 0}, ("num_classes=0", "at least 1")),
        ({"z_dim": 120}, ("z_dim=120", "[128, 11]")),
        ({"z_dim": "128"}, ("z_dim='128'", "whole number")),
        ({"channel_width": 16}, ("channel_width=16", "[51, 8]")),
        ({"n_stats": 50}, ("n_stats=50", "[51, 8]")),
        ({"n_stats": 1}, ("n_stats=1", "at least 2")),
        ({"eps": 0}, ("eps=0", "above 0")),
        ({"eps": float("nan")}, ("eps=nan", "above 0")),
        ({"output_dim": 64}, ("output_dim=64", "one of 128, 256, 512")),
        ({"output_dim": 256}, ("layers", "256 px")),
        ({"layers": golden_config()["layers"][:-1]}, ("layers", "[true, 2, 1]]")),
        ({"layers": None}, ("layers",)),
        ({"attention_layer_position": 7}, ("attention_layer_position=7", "even and from 2 to 8")),
        ({"attention_layer_position": 0}, ("attention_layer_position=0", "even and from 2 to 8")),
        ({"attention_layer_position": "8"}, ("attention_layer_position='8'", "whole number")),
    ],
)
def test_a_config_json_that_does_not_fit_is_told(change, parts, tmp_path):
    refused(golden_state(), golden_config() | change, tmp_path, "config.json", *parts)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "[" * 100_000])
def test_a_damaged_config_json_is_told(text, tmp_path):
    refused(golden_state(), text, tmp_path, "config.json", "damaged")


def test_attention_elsewhere_or_nowhere_must_be_in_the_tensors(tmp_path):
    config = golden_config() | {"attention_layer_position": 6}
    refused(golden_state(), config, tmp_path / "6", "layers.6.gamma", "missing")
    config = golden_config() | {"attention_layer_position": -1}
    refused(golden_state(), config, tmp_path / "none", "layers.8.bn_0.running_means", "missing")


def test_files_of_before_the_first_release_are_told(tmp_path):
    old = {f"old.{name}": array for name, array in golden_state().items()}
    refused(old, golden_config(), tmp_path, "'embeddings.weight'", "other names")


def test_what_is_no_state_dict_is_told(tmp_path):
    refused([1.0], golden_config(), tmp_path, "no tensors by name")
    refused({1: np.zeros(2, np.float32)}, golden_config(), tmp_path / "2", "no tensors by name")


def test_recognised_by_its_weights(golden_folder, tmp_path):
    assert huggingface.recognise(golden_folder)
    assert not huggingface.recognise(str(tmp_path))
    assert not huggingface.recognise(str(tmp_path / "nowhere"))
    assert not huggingface.recognise("\0")
    with pytest.raises(ConfigError, match=r"config\.json' cannot be read: No such file"):
        huggingface.read(str(tmp_path))


def own_bundle(**model):
    """A generator of ours as no program made it, all numbers random, with a table to export."""
    changes = {"arch": "biggan_deep", "resolution": 128, "num_classes": 5, "g_ch": 8, "d_ch": 8}
    changes |= {"z_dim": 16, "shared_dim": 16} | model
    rng = np.random.default_rng(0)
    resolved = bundle_lib.resolve_model(changes)
    bundle = bundle_lib.Bundle("own", resolved, {}, grid=tuple(k / 50 for k in range(51)))
    shapes, _ = layout.abstract(resolved)
    for place, shape in shapes.items():
        noise = rng.normal(size=shape.shape).astype(np.float32)
        if place.endswith("/var"):
            noise = np.exp(noise / 4)
        elif place.endswith("/mean") or place.endswith("bias"):
            noise = noise / 10
        elif place.endswith("gain"):
            noise = 1 + noise / 10
        bundle.tensors[f"ema/{place}"] = noise
        if place.startswith("batch_stats/"):
            rows = rng.normal(size=(51, *shape.shape)).astype(np.float32)
            spread = np.exp(rows / 4) if place.endswith("/var") else rows / 10
            bundle.tensors[f"table/{place}"] = spread
    if resolved["sigma_rule"] == "stored":
        iterate(bundle.tensors)
    return bundle


def iterate(tensors):
    """Makes every v and u those of one iteration: random ones give no sigma to divide by."""
    for name in [name for name in tensors if name.endswith("/v")]:
        kernel = tensors[name.replace("spectral", "params").removesuffix("v") + "kernel"]
        matrix, u = kernel.reshape(-1, kernel.shape[-1]), name.removesuffix("v") + "u"
        v = tensors[u] @ matrix.T
        tensors[name] = v / np.linalg.norm(v)
        tensors[u] = tensors[name] @ matrix / np.linalg.norm(tensors[name] @ matrix)


FOREIGN = [
    {},
    {"sigma_rule": "hub", "bn_eps": 1e-3, "g_attention": ()},
    {"sigma_rule": "stored", "rgb_channels": 5, "g_attention": (32,)},
]


def test_our_own_generators_come_back_with_the_same_images(tmp_path):
    bundle = own_bundle()
    notes = huggingface.write(bundle, str(tmp_path / "out"))
    assert len(notes) == 3 and all(note.endswith(".") for note in notes)
    back = huggingface.read(str(tmp_path / "out"))
    assert back.model["sigma_rule"] == "stored" and back.model["rgb_channels"] == 8
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(2, 16)).astype(np.float32), np.array([1, 4])
    first, second = (draw(b, z, labels, 0.3, "correct") for b in (bundle, back))
    assert 0.05 < first.std() < 0.7
    assert worst(first, second) < TOLERANCE
    assert huggingface.write(back, str(tmp_path / "again")) == []
    for name in ("config.json", "pytorch_model.bin"):
        again = (tmp_path / "again" / name).read_bytes()
        assert again == (tmp_path / "out" / name).read_bytes()


def test_stored_vectors_are_those_of_one_fresh_iteration(tmp_path):
    """Spec section 8.4, in float64."""
    bundle = own_bundle()
    huggingface.write(bundle, str(tmp_path / "out"))
    state, ours = pth.read(tmp_path / "out" / "pytorch_model.bin"), bundle.part("ema")
    for name, place in (("layers.9.conv_2", "block8/conv3"), ("gen_z", "linear")):
        weight, u, v = (
            state[f"generator.{name}.weight_{what}"].astype(np.float64)
            for what in ("orig", "u", "v")
        )
        old_u = ours[f"spectral/{place}/u"].astype(np.float64)
        sigma, new_u = reference.sigma(weight.reshape(len(weight), -1), old_u, 1e-4)
        np.testing.assert_allclose(u, new_u[0], atol=1e-6)
        np.testing.assert_allclose(u @ weight.reshape(len(weight), -1) @ v, sigma, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"arch": "biggan", "z_dim": 120, "shared_dim": 120}, "only BigGAN-deep"),
        ({"compare_gan": True}, "compare_gan"),
        ({"sigma_rule": "shorter_side"}, "'shorter_side'"),
        ({"resolution": 64, "d_attention": ()}, "64 px"),
        ({"resolution": 32, "g_attention": (), "d_attention": ()}, "32 px"),
        ({"shared_dim": 8}, "shared_dim=8 and z_dim=16"),
        ({"out_bn_eps": 1e-5}, "bn_eps=0.0001 and out_bn_eps=1e-05"),
        ({"rgb_channels": 9}, "rgb_channels=9"),
        ({"g_attention": (128,)}, "attention at 128 px"),
        ({"g_attention": (32, 64)}, "attention at 32 and 64 px"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(model, problem, tmp_path):
    bundle = bundle_lib.Bundle(
        "own",
        bundle_lib.resolve_model(
            {"arch": "biggan_deep", "z_dim": 16, "shared_dim": 16, "g_ch": 8} | model
        ),
        {},
    )
    for call in (huggingface.check, lambda b: huggingface.write(b, str(tmp_path / "out"))):
        with pytest.raises(ConfigError) as e:
            call(bundle)
        message = str(e.value)
        assert message.startswith("own: as huggingface, ") and problem in message
        assert message.endswith(".") and ". " not in message
    assert not list(tmp_path.iterdir())


def test_a_table_is_needed(tmp_path):
    bundle = own_bundle()
    huggingface.check(bundle)
    bare = bundle_lib.Bundle("own", bundle.model, {})
    bare.add("ema", bundle.part("ema"))
    with pytest.raises(ConfigError, match="needs BN statistics for 51 truncations"):
        huggingface.write(bare, str(tmp_path / "out"))
    bundle.grid = tuple(k / 50 for k in range(1, 52))
    with pytest.raises(ConfigError, match="equal steps of truncation from 0 to 1"):
        huggingface.write(bundle, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_a_kernel_of_zeros_is_refused(tmp_path):
    bundle = own_bundle()
    bundle.tensors["ema/params/block2/conv1/kernel"][:] = 0
    with pytest.raises(ConfigError, match="divide 'block2/conv1' by zero"):
        huggingface.write(bundle, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_what_is_left_out_is_told(tmp_path):
    bundle = own_bundle(sn_eps=1e-6)
    bundle.add("g", bundle.part("ema"))
    bundle.tensors["d/params/x"] = np.zeros(1, np.float32)
    bundle.class_names = tuple("abcde")
    notes = " ".join(huggingface.write(bundle, str(tmp_path / "out")))
    for part in ("discriminator", "raw generator", "names of the classes", "1e-06", "5 outputs"):
        assert part in notes


def program(width, resolution, classes):
    """A model of pytorch_pretrained_biggan with nothing left at its start, in evaluation."""
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("pytorch_pretrained_biggan")
    torch.manual_seed(0)
    widths = {128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}[resolution]
    stages = itertools.pairwise(widths)
    layers = [block for a, b in stages for block in ([False, a, a], [True, a, b])]
    sizes = {"output_dim": resolution, "channel_width": width, "num_classes": classes}
    model = theirs.BigGAN(theirs.BigGANConfig(**sizes, layers=layers))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_means"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_vars"):
                tensor.normal_(0, 0.25).exp_()
            elif name == "generator.bn.weight":
                tensor.normal_(1, 0.1)
            elif name == "generator.bn.bias":
                tensor.normal_(0, 0.1)
            elif name.endswith("gamma"):
                tensor.fill_(0.7)
        model.train()  # Else the vectors of spectral norm are those of no matrix.
        z, labels = torch.randn(1, model.config.z_dim), torch.eye(classes)[:1]
        for _ in range(5):
            model(z, labels, 0.5)
    return model.eval()


def program_images(model, z, labels, truncation):
    import torch

    with torch.no_grad():
        classes = torch.eye(model.config.num_classes)[torch.from_numpy(labels)]
        images = model(torch.from_numpy(z), classes, truncation)
    return images.permute(0, 2, 3, 1).numpy()


def save_program(model, folder):
    import torch

    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(model.config.to_json_string())
    return str(folder)


SIZES = [
    pytest.param(8, 128, 11, id="8 wide, 128 px"),
    pytest.param(128, 128, 1000, id="128 px", marks=pytest.mark.slow),
    pytest.param(128, 256, 1000, id="256 px", marks=pytest.mark.long),
]


@pytest.mark.interop
@pytest.mark.parametrize(("width", "resolution", "classes"), SIZES)
def test_the_program_and_we_agree_both_ways(width, resolution, classes, tmp_path):
    model = program(width, resolution, classes)
    bundle = huggingface.read(save_program(model, tmp_path / "in"))
    huggingface.write(bundle, str(tmp_path / "out"))
    same_bundle(huggingface.read(str(tmp_path / "out")), bundle)
    back = type(model).from_pretrained(str(tmp_path / "out")).eval()
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(2, 128)).astype(np.float32), np.array([1, classes - 1])
    loaded = back.state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(loaded[name], tensor, strict=True)
    for truncation in SHOWN:
        theirs = program_images(model, z, labels, truncation)
        assert 0.05 < theirs.std() < 0.7
        ours = draw(bundle, z, labels, truncation, "hf-compat")
        print(f"{truncation}: std {theirs.std():.3f}, {worst(ours, theirs):.2e}")
        assert worst(ours, theirs) < TOLERANCE
    assert worst(program_images(back, z, labels, SHOWN[-1]), theirs) < TOLERANCE


@pytest.mark.interop
@pytest.mark.parametrize("model", FOREIGN)
def test_the_program_draws_what_our_own_generators_draw(model, tmp_path):
    pytest.importorskip("torch")
    program = pytest.importorskip("pytorch_pretrained_biggan")
    bundle = own_bundle(**model)
    huggingface.write(bundle, str(tmp_path / "out"))
    for key in ("g_attention", "bn_eps", "num_classes", "z_dim"):
        assert huggingface.read(str(tmp_path / "out")).model[key] == bundle.model[key]
    theirs = program.BigGAN.from_pretrained(str(tmp_path / "out")).eval()
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(2, 16)).astype(np.float32), np.array([1, 4])
    for truncation, mode in ((0.5, "correct"), (0.14, "hf-compat")):
        ours = draw(bundle, z, labels, truncation, mode)
        assert 0.05 < ours.std() < 0.7
        assert worst(ours, program_images(theirs, z, labels, truncation)) < TOLERANCE
