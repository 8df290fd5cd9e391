import itertools
import json
import os

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.interop import biggan_pytorch, layout, pth
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.models import networks
from tests.golden import author_port
from tests.interop import reference_networks

TOLERANCE = 1e-4  # |a - b| / |b|, float32.
EPSILONS = {"BN_eps": 1e-5, "SN_eps": 1e-6}
GOLDEN = {  # The arguments that the golden files' networks were made with, some under other names.
    32: {"G_ch": 4, "D_ch": 4, "dim_z": 83, "G_attn": "0", "D_attn": "64"},
    64: {"G_ch": 8, "D_ch": 8, "dim_z": 100, "G_attn": "32", "D_attn": "32"},
}
# Spec sections 3.3, 4.1, 6.1 and 6.2: channels after the first linear and each block (stage) of G,
# after each block of D, and after stem and each stage of deep D.
G_WIDTHS = {32: [4, 4, 4, 4], 64: [16, 16, 8, 4, 2], 128: [16, 16, 8, 4, 2, 1]}
G_WIDTHS[256] = [16, 16, 8, 8, 4, 2, 1]
D_WIDTHS = {32: [4, 4, 4, 4], 64: [1, 2, 4, 8, 16], 128: [1, 2, 4, 8, 16, 16]}
D_WIDTHS[256] = [1, 2, 4, 8, 8, 16, 16]
STATISTICS = {
    "plain": {"stored_mean": 0, "stored_var": 0},
    "mybn": {"bn.stored_mean": 0, "bn.stored_var": 0, "bn.accumulation_counter": 1},
    "cross_replica": {"bn.running_mean": 0, "bn.running_var": 0, "bn.num_batches_tracked": ()},
}


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(autouse=True, scope="module")
def shapes_once():
    """Tracing networks for their shapes takes longer than most of these tests."""
    known, trace = {}, layout.abstract

    def abstract(model):
        key = json.dumps(model, sort_keys=True)
        if key not in known:
            known[key] = trace(model)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "abstract", abstract)
        yield


# Checkpoints: names and shapes listed from spec section 18.3, values random.


def spectral(name, outputs, inputs, size=None, bias=True):
    shapes = {f"{name}.weight": (outputs, inputs) + ((size, size) if size else ())}
    shapes |= {f"{name}.bias": (outputs,)} if bias else {}
    return shapes | {f"{name}.u0": (1, outputs), f"{name}.sv0": (1,)}


def attention(name, channels):
    outputs = {"theta": channels // 8, "phi": channels // 8, "g": channels // 2}
    shapes = {f"{name}.gamma": ()} | spectral(f"{name}.o", channels, channels // 2, 1, bias=False)
    for part, n in outputs.items():
        shapes |= spectral(f"{name}.{part}", n, channels, 1, bias=False)
    return shapes


def statistics(name, channels, style):
    shape = {0: (channels,), 1: (1,), (): ()}
    return {f"{name}.{key}": shape[of] for key, of in STATISTICS[style].items()}


def generator_shapes(
    resolution, ch, classes, slot=20, shared=128, sharing=True, hier=True, deep=False, at=(), rgb=3,
    style="plain",
):  # fmt: skip
    widths = [m * ch for m in G_WIDTHS[resolution]]
    cond = shared + slot if hier else shared
    shapes = {"shared.weight": (classes, shared)} if sharing else {}
    shapes |= spectral("linear", widths[0] * 16, cond if deep else slot)
    pairs = []
    for a, b in itertools.pairwise(widths):
        pairs += [(a, a), (a, b)] if deep else [(a, b)]
    for i, (a, b) in enumerate(pairs):
        m = a // 4
        convs = [(b, a, 3), (b, b, 3)]
        if deep:
            convs = [(m, a, 1), (m, m, 3), (m, m, 3), (b, m, 1)]
        else:
            shapes |= spectral(f"blocks.{i}.0.conv_sc", b, a, 1)
        for k, (outputs, inputs, size) in enumerate(convs, start=1):
            shapes |= spectral(f"blocks.{i}.0.conv{k}", outputs, inputs, size)
            before = inputs if deep or k == 1 else outputs
            bn = f"blocks.{i}.0.bn{k}"
            for part in ("gain", "bias"):
                if sharing:
                    shapes |= spectral(f"{bn}.{part}", before, cond, bias=False)
                else:
                    shapes |= {f"{bn}.{part}.weight": (classes, before)}
            shapes |= statistics(bn, before, style)
        if i in at:
            shapes |= attention(f"blocks.{i}.1", b)
    head = {"output_layer.0.gain": (widths[-1],), "output_layer.0.bias": (widths[-1],)}
    head |= statistics("output_layer.0", widths[-1], style)
    return shapes | head | spectral("output_layer.2", rgb, widths[-1], 3)


def discriminator_shapes(resolution, ch, classes, deep=False, at=()):
    widths = [m * ch for m in D_WIDTHS[resolution]]
    shapes = spectral("linear", 1, widths[-1])
    shapes |= {"embed.weight": (classes, widths[-1]), "embed.u0": (1, classes), "embed.sv0": (1,)}
    if deep:
        shapes |= spectral("input_conv", widths[0], 3, 3)
        for s, (a, b) in enumerate(itertools.pairwise(widths)):
            m = b // 4
            for d, inputs in enumerate((a, b)):
                for k, (n, size) in enumerate([(inputs, 1), (m, 3), (m, 3), (m, 1)], start=1):
                    name = f"blocks.{s}.{d}.conv{k}"
                    shapes |= spectral(name, b if k == 4 else m, n, size)
            if a != b:
                shapes |= spectral(f"blocks.{s}.0.conv_sc", b - a, a, 1)
            if s in at:
                shapes |= attention(f"blocks.{s}.2", b)
        return shapes
    halvings = 2 if resolution == 32 else len(widths) - 1
    for i, (a, b) in enumerate(zip([3, *widths], widths, strict=False)):
        shapes |= spectral(f"blocks.{i}.0.conv1", b, a, 3) | spectral(
            f"blocks.{i}.0.conv2", b, b, 3
        )
        if i < halvings or a != b:
            shapes |= spectral(f"blocks.{i}.0.conv_sc", b, a, 1)
        if i in at:
            shapes |= attention(f"blocks.{i}.1", b)
    return shapes


def random_tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape, np.float32)
        if name.endswith(("_var", "sv0", "accumulation_counter")):
            value = np.ones(shape, np.float32)
        elif name.endswith("_mean"):
            value = np.zeros(shape, np.float32)
        elif name.endswith("num_batches_tracked"):
            value = np.array(1234, np.int64)
        elif name.endswith(("gamma", "output_layer.0.gain")):
            value = 0.7 + 0.1 * value
        elif not name.endswith("u0"):
            value *= 0.1
        tensors[name] = np.asarray(value)
    return tensors


def calibrated(tensors, z, labels, seed=0, **options):
    """Gives BNs statistics near the true ones, so that signals neither vanish nor explode."""
    reference_networks.author_generator(tensors, z, labels, 1e-5, 1e-6, calibrate=True, **options)
    rng = np.random.default_rng(seed)
    for name, value in tensors.items():
        if name.endswith("_var"):
            value *= rng.uniform(0.8, 1.2, value.shape).astype(np.float32)
            mean = tensors[name.replace("_var", "_mean")]
            mean += 0.1 * np.sqrt(value) * rng.standard_normal(value.shape).astype(np.float32)
    return tensors


def draw(bundle, n=2, seed=5):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, bundle.model["z_dim"]), np.float32)
    return z, rng.integers(0, bundle.model["num_classes"], n)


def write_folder(folder, tensors, config=None, suffix="", **state):
    """tensors: {"G": ..., "G_ema": ..., "D": ...}; config: None for no state_dict.pth."""
    os.makedirs(folder, exist_ok=True)
    for stem, values in tensors.items():
        pth.write(os.path.join(folder, f"{stem}{suffix}.pth"), values)
    if config is not None:
        state = {"itr": 7, "epoch": 1, "save_num": 0, "save_best_num": 1, "best_IS": 2.5} | state
        state |= {"best_FID": 31.0, "config": config}
        pth.write(os.path.join(folder, f"state_dict{suffix}.pth"), state)
    return str(folder)


def read_folder(folder):
    names = [n for n in os.listdir(folder) if not n.startswith("state_dict")]
    return {name: pth.read(os.path.join(folder, name)) for name in names}


def golden_tensors(resolution):
    golden = author_port.Golden(resolution)
    nets = {"G": "final/G/", "G_ema": "final/EMA/", "D": "final/D/"}
    return golden, {
        stem: {k[len(start) :]: v for k, v in golden.arrays.items() if k.startswith(start)}
        for stem, start in nets.items()
    }


def golden_config(resolution):
    config = {"model": "BigGAN", "resolution": resolution, "n_classes": 7, "shared_dim": 128}
    config |= {
        "G_shared": True,
        "hier": True,
        "G_nl": "inplace_relu",
        "D_nl": "relu",
        "mybn": False,
    }
    return config | EPSILONS | GOLDEN[resolution] | {"G_param": "SN", "D_wide": True, "seed": None}


def run(apply, *args, level=0):
    # Compiling is most of these tests' time, so XLA does little of it unless the network is large.
    compiled = jax.jit(apply).lower(*args)
    return np.asarray(compiled.compile({"xla_backend_optimization_level": level})(*args))


def generate(bundle, network, z, labels, **options):
    g, _ = networks.build({"model": bundle.model})
    variables = layout.unflatten(bundle.part(network))
    return run(lambda v, z, y: g.apply(v, z, y, train=False), variables, z, labels, **options)


def discriminate(bundle, images, labels, **options):
    _, d = networks.build({"model": bundle.model})
    return run(d.apply, layout.unflatten(bundle.part("d")), images, labels, **options)


def assert_close(got, want, what=""):
    assert got.shape == want.shape, what
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= TOLERANCE, f"{what}: {error:.2e}"


def assert_same_tensors(got, want):
    assert got.keys() == want.keys()
    for file, tensors in want.items():
        assert got[file].keys() == tensors.keys(), file
        for name, value in tensors.items():
            back = got[file][name]
            assert (back.dtype, back.shape) == (value.dtype, value.shape), f"{file}: {name}"
            np.testing.assert_array_equal(back, value, f"{file}: {name}")


# What the author's own program computed.


@pytest.mark.parametrize("resolution", [32, 64])
def test_golden_numbers_and_the_way_back(resolution, tmp_path):
    golden, tensors = golden_tensors(resolution)
    folder = write_folder(tmp_path / "run", tensors, golden_config(resolution))
    bundle = biggan_pytorch.read(folder)
    assert bundle.name == "run"
    z, y = golden["eval/z"], golden["eval/y"]
    assert_close(generate(bundle, "g", z, y), golden["eval/image"], "image")
    assert_close(discriminate(bundle, golden["eval/x"], y), golden["eval/logit"].reshape(-1))
    ema = reference_networks.author_generator(tensors["G_ema"], z, y, 1e-5, 1e-6)
    assert_close(generate(bundle, "ema", z, y), ema, "ema")
    bundle_lib.write(bundle, str(tmp_path / "bundle"))
    bundle = bundle_lib.read(str(tmp_path / "bundle"))
    assert biggan_pytorch.write(bundle, str(tmp_path / "back")) == []
    assert_same_tensors(read_folder(tmp_path / "back"), read_folder(folder))
    states = [pth.read(os.path.join(f, "state_dict.pth")) for f in (folder, tmp_path / "back")]
    assert states[0] == states[1]


@pytest.mark.parametrize("resolution", [32, 64])
def test_reference_agrees_with_the_golden_numbers(resolution):
    golden, tensors = golden_tensors(resolution)
    z, y = golden["eval/z"], golden["eval/y"]
    image = reference_networks.author_generator(tensors["G"], z, y, 1e-5, 1e-6)
    assert_close(image, golden["eval/image"])
    logit = reference_networks.author_discriminator(tensors["D"], golden["eval/x"], y, 1e-6)
    assert_close(logit, golden["eval/logit"].reshape(-1))


def test_the_lists_of_shapes_are_those_of_the_author():
    for resolution, ch, g_at, d_at in ((32, 4, (), ()), (64, 8, (2,), (0,))):
        _, tensors = golden_tensors(resolution)
        shapes = {stem: {k: v.shape for k, v in t.items()} for stem, t in tensors.items()}
        assert generator_shapes(resolution, ch, 7, at=g_at) == shapes["G"]
        assert discriminator_shapes(resolution, ch, 7, at=d_at) == shapes["D"]


# Whole checkpoints against NumPy.

LAYOUTS = {
    "z only in the first linear": {"slot": 12, "hier": False},
    "a table a BN": {"slot": 12, "hier": False, "sharing": False},
    "mybn": {"style": "mybn"},
    "cross_replica": {"style": "cross_replica"},
    "deep": {"deep": True, "slot": 10, "shared": 6},
    "deep, z first": {"deep": True, "slot": 10, "shared": 6, "rgb": 128},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_against_numpy_and_back(name, tmp_path):
    options = LAYOUTS[name]
    deep = options.get("deep", False)
    order = {"z_first": True} if name == "deep, z first" else {}
    # Attention after 16x16 in G; D at 32 px has none that we and the author both have.
    g = random_tensors(generator_shapes(32, 8, 5, at=(3,) if deep else (1,), **options))
    d = random_tensors(discriminator_shapes(32, 8, 5, deep=deep), seed=1)
    rng = np.random.default_rng(2)
    slots = 4 if options.get("hier", True) and not deep else 1
    z, y = rng.standard_normal((4, options.get("slot", 20) * slots), np.float32), np.arange(4)
    g = calibrated(g, z, y, **order)
    if options.get("style") == "mybn":  # Sums over 4 batches.
        for key, value in g.items():
            if key.endswith(("accumulation_counter", "stored_mean", "stored_var")):
                value *= 4
    folder = write_folder(tmp_path / "run", {"G": g, "D": d})
    overrides = [("model.condition_order", "z_first")] if order else []
    bundle = biggan_pytorch.read(folder, overrides)

    image = reference_networks.author_generator(g, z, y, 1e-5, 1e-6, **order)
    assert 0.05 < image.std() < 0.7
    assert_close(generate(bundle, "g", z, y), image, "image")
    if name == "deep":  # The golden numbers have the other D.
        logit = reference_networks.author_discriminator(d, image, y, 1e-6)
        assert_close(discriminate(bundle, image.astype(np.float32), y), logit, "logit")
    notes = " ".join(bundle.source["notes"])
    assert ("divided" in notes) == (options.get("style") == "mybn")
    assert ("--cross_replica" in notes) == (options.get("style") == "cross_replica")
    assert ("[z, embedding]" in notes, "[embedding, z]" in notes) == (
        bool(order),
        deep and not order,
    )

    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    assert_same_tensors(read_folder(tmp_path / "back"), read_folder(folder))


@pytest.mark.parametrize(
    ("resolution", "deep", "g_at", "d_at", "model"),
    [
        (128, False, (3,), (0,), {"g_attention": (64,), "d_attention": (64,)}),
        (256, False, (4,), (1,), {"g_attention": (128,), "d_attention": (64,)}),
        (128, True, (7,), (0,), {"g_attention": (64,), "d_attention": (64,)}),
        (256, True, (5, 7), (1, 2), {"g_attention": (32, 64), "d_attention": (32, 64)}),
    ],
)
def test_names_and_shapes_at_full_width(resolution, deep, g_at, d_at, model):
    ch, slots = 128 if deep else 96, 1 if deep else len(G_WIDTHS[resolution])
    model |= {"resolution": resolution, "arch": "biggan_deep" if deep else "biggan"}
    model |= {"g_ch": ch, "d_ch": ch, "z_dim": (128 if deep else 20) * slots}
    model = bundle_lib.resolve_model(model)
    shapes = layout.abstract(model)
    slot = 128 if deep else 20
    g = generator_shapes(resolution, ch, 1000, slot=slot, deep=deep, at=g_at)
    d = discriminator_shapes(resolution, ch, 1000, deep=deep, at=d_at)
    for network, ours, wanted in (("g", shapes[0], g), ("d", shapes[1], d)):
        there = {}
        for entry in biggan_pytorch.entries(network, model, ours):
            shape = ours[entry.ours].shape
            there[entry.theirs] = layout.shape_there(shape, entry.kind) or shape
        assert there == {k: s for k, s in wanted.items() if not k.endswith("sv0")}


@pytest.mark.long
def test_full_width_against_numpy_and_back(tmp_path):
    tensors = {
        "G": random_tensors(generator_shapes(128, 96, 1000, at=(3,))),
        "D": random_tensors(discriminator_shapes(128, 96, 1000, at=(0,)), seed=1),
    }
    rng = np.random.default_rng(3)
    z, y = rng.standard_normal((2, 120), np.float32), np.array([3, 999])
    calibrated(tensors["G"], z, y)
    wobble = lambda v: np.asarray(v * rng.uniform(0.95, 1.05, v.shape), np.float32)  # noqa: E731
    tensors["G_ema"] = {k: wobble(v) for k, v in tensors["G"].items()}
    tensors["G_ema"] |= {
        k: rng.standard_normal(v.shape, np.float32)
        for k, v in tensors["G"].items()
        if k.endswith("u0")
    }
    config = {"model": "BigGAN", "resolution": 128, "G_ch": 96, "D_ch": 96, "dim_z": 120} | EPSILONS
    config |= {"n_classes": 1000, "shared_dim": 128, "G_shared": True, "hier": True}
    folder = write_folder(tmp_path / "run", tensors, config | {"G_attn": "64", "D_attn": "64"})
    bundle = biggan_pytorch.read(folder)

    z, y = rng.standard_normal((1, 120), np.float32), np.array([417])
    for network, stem in (("g", "G"), ("ema", "G_ema")):
        want = reference_networks.author_generator(tensors[stem], z, y, 1e-5, 1e-6)
        assert 0.05 < want.std() < 0.7
        got = generate(bundle, network, z, y, level=3)
        assert_close(got, want, stem)
        assert np.abs(got - want).max() <= 1e-4
    logit = reference_networks.author_discriminator(tensors["D"], want, y, 1e-6)
    got = discriminate(bundle, want.astype(np.float32), y, level=3)
    assert_close(got, logit, "logit")

    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    assert_same_tensors(
        read_folder(tmp_path / "back"), {f"{stem}.pth": t for stem, t in tensors.items()}
    )


# Which files, and what is said of them.


@pytest.fixture(scope="module")
def golden32():
    return golden_tensors(32)[1]


def test_without_arguments_the_model_is_the_same(golden32, tmp_path):
    bare = biggan_pytorch.read(write_folder(tmp_path / "bare", golden32))
    told = biggan_pytorch.read(write_folder(tmp_path / "told", golden32, golden_config(32)))
    assert bare.model == told.model
    assert [n for n in bare.source["notes"] if n not in told.source["notes"]] == [
        "BN_eps is not in the folder; 1e-05 is assumed, as in the author's scripts.",
        "SN_eps is not in the folder; 1e-06 is assumed, as in the author's scripts.",
    ]
    given = biggan_pytorch.read(str(tmp_path / "bare"), [("model.bn_eps", "1e-3")])
    assert given.model["bn_eps"] == 1e-3
    assert "BN_eps" not in " ".join(given.source["notes"])
    biggan_pytorch.write(bare, str(tmp_path / "back"))
    state = pth.read(tmp_path / "back" / "state_dict.pth")
    assert state["itr"] == 0
    assert state["config"].items() >= (golden_config(32) | {"dim_z": 80, "D_attn": "0"} | {
        "G_nl": "relu"}).items() - {("seed", None)}  # fmt: skip
    again = biggan_pytorch.read(str(tmp_path / "back"))
    assert again.model == bare.model


def test_epsilons_and_widths_come_from_the_arguments(golden32, tmp_path):
    config = golden_config(32) | {"BN_eps": 1e-3, "SN_eps": 1e-2, "D_ch": 12, "D_attn": "16"}
    only_g = {"G": golden32["G"]}  # What is said of D does not matter where there is none.
    model = biggan_pytorch.read(write_folder(tmp_path / "run", only_g, config)).model
    assert (model["bn_eps"], model["sn_eps"], model["out_bn_eps"]) == (1e-3, 1e-2, 1e-5)


def test_prefix_of_data_parallel_is_dropped(golden32, tmp_path):
    prefixed = {s: {f"module.{k}": v for k, v in t.items()} for s, t in golden32.items()}
    got = biggan_pytorch.read(write_folder(tmp_path / "run", prefixed))
    want = biggan_pytorch.read(write_folder(tmp_path / "plain", golden32))
    assert got.tensors.keys() == want.tensors.keys()
    for name, value in want.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], value)


def marked(tensors, value):
    """The same with one recognisable number."""
    return {"G": tensors["G"] | {"output_layer.2.bias": np.full(3, value, np.float32)}}


def mark(bundle):
    return bundle.tensors["g/params/out_conv/bias"][0]


def test_suffixes(golden32, tmp_path):
    config = golden_config(32)
    folder = write_folder(tmp_path / "run", marked(golden32, 1), config, "_copy0", itr=50)
    write_folder(folder, marked(golden32, 2), config, "_best0", itr=90)
    write_folder(folder, marked(golden32, 3), None, "_best1")
    write_folder(folder, {"D": golden32["D"]}, config, "_copy1", itr=99)
    bundle = biggan_pytorch.read(folder)
    assert mark(bundle) == 2
    assert bundle.source["files"].keys() == {"G_best0.pth", "state_dict_best0.pth"}
    assert any("'best0'" in note and "'best1'" in note for note in bundle.source["notes"])
    for name in ("G_copy0.pth", "state_dict_copy0.pth"):
        assert mark(biggan_pytorch.read(os.path.join(folder, name))) == 1
    with pytest.raises(ConfigError, match=r"neither G_copy1\.pth nor G_ema_copy1\.pth"):
        biggan_pytorch.read(os.path.join(folder, "D_copy1.pth"))
    os.remove(os.path.join(folder, "state_dict_best0.pth"))
    (tmp_path / "run" / "state_dict_copy0.pth").write_bytes(b"damaged")
    os.utime(os.path.join(folder, "G_best0.pth"), (1, 1))
    assert mark(biggan_pytorch.read(folder)) == 3
    write_folder(folder, marked(golden32, 4))
    pth.write(os.path.join(folder, "G_optim.pth"), {"state": {}})
    bundle = biggan_pytorch.read(folder)
    assert mark(bundle) == 4
    assert any("G_optim" in note for note in bundle.source["notes"])
    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    assert sorted(os.listdir(tmp_path / "back")) == ["G.pth", "state_dict.pth"]


def test_recognise(golden32, tmp_path):
    folder = write_folder(tmp_path / "run", {"G_ema": golden32["G_ema"]}, suffix="_best3")
    assert biggan_pytorch.recognise(folder)
    assert biggan_pytorch.recognise(os.path.join(folder, "G_ema_best3.pth"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "other" / "G_optim.pth").write_bytes(b"")
    others = ["other", "other/pytorch_model.bin", "other/G_optim.pth", "not there", "a\0b"]
    assert not any(biggan_pytorch.recognise(str(tmp_path / name)) for name in others)


def test_half_precision_and_odd_shapes_go_back_as_they_were(golden32, tmp_path):
    half = {k: v.astype(np.float16) for k, v in golden32["G"].items()}
    odd = golden32["D"] | {"linear.u0": golden32["D"]["linear.u0"].reshape(1)}
    del odd["linear.sv0"]
    folder = write_folder(tmp_path / "run", {"G": half, "D": odd})
    bundle = biggan_pytorch.read(folder)
    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    assert_same_tensors(read_folder(tmp_path / "back"), read_folder(folder))


def test_new_statistics_are_written_and_not_the_sums_that_were_read(tmp_path):
    g = random_tensors(generator_shapes(32, 8, 5, style="mybn"))
    counters = [name for name in g if name.endswith("accumulation_counter")]
    for name in counters:
        g[name] *= 3
    bundle = biggan_pytorch.read(write_folder(tmp_path / "run", {"G": g}))
    place = "g/batch_stats/block1/bn2/mean"
    bundle.tensors[place] = bundle.tensors[place] + 1
    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    back = read_folder(tmp_path / "back")["G.pth"]
    np.testing.assert_array_equal(back["blocks.1.0.bn2.bn.stored_mean"], bundle.tensors[place])
    assert [back[name].item() for name in counters] == [
        0 if name.startswith("blocks.1.0.bn2") else 3 for name in counters
    ]


# What is refused.

REFUSED_TENSORS = {
    "missing": ("G", {"blocks.1.0.conv1.bias": None}, "'blocks.1.0.conv1.bias' is missing"),
    "unknown": ("D", {"blocks.1.0.conv3.weight": np.ones(2)}, "'blocks.1.0.conv3.weight' belongs"),
    "shape": ("G", {"shared.weight": np.ones((128, 9))}, r"\[9, 128\]|'shared.weight'|of shape"),
    "transposed": (
        "D",
        {"embed.weight": np.ones((16, 7))},
        r"'embed.weight' is of shape \[16, 7\]",
    ),
    "classes of D": ("D", {"embed.weight": np.ones((8, 16))}, r"'embed.weight' .* \[8, 16\]"),
    "not finite": ("G_ema", {"linear.bias": np.full(256, np.nan)}, "'linear.bias' .*not finite"),
    "second vector": ("G", {"linear.u1": np.ones((1, 256))}, "num_G_SVs=2 is not supported"),
    "no tensor": ("G", {"linear.weight": 3}, "'linear.weight' is not a tensor"),
    "too few axes": ("G", {"linear.weight": np.ones(3)}, r"'linear.weight' .*\[3\].*too few axes"),
    "width": ("G", {"output_layer.0.gain": np.ones(18)}, "18 channels.*multiple of 4"),
    "blocks": ("G", {"blocks.9.0.conv1.weight": np.ones(1)}, "BigGAN with 10 blocks is not known"),
    "thin D": ("D", {"blocks.0.0.conv1.weight": np.ones((3, 3, 3, 3))}, "D_wide=False"),
    "attention": (
        "D",
        {"blocks.2.1.gamma": np.ones(())},
        "attention after block 2 of D is not supported.*D_attn=16",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_refused_tensors(case, golden32, tmp_path):
    stem, changed, sentence = REFUSED_TENSORS[case]
    tensors = golden32 | {stem: golden32[stem] | changed}
    for name in [name for name, value in changed.items() if value is None]:
        del tensors[stem][name]
    for name, value in changed.items():
        if isinstance(value, np.ndarray):
            tensors[stem][name] = value.astype(np.float32)
    folder = write_folder(tmp_path / "run", tensors, golden_config(32) if case != "shape" else None)
    with pytest.raises(ConfigError, match=sentence) as e:
        biggan_pytorch.read(folder)
    assert str(e.value).count(". ") == 0 and str(e.value).endswith(".")
    assert f"{stem}.pth" in str(e.value)


@pytest.mark.parametrize(
    ("key", "value", "rest"),
    [
        ("n_classes", 10, "contradicts the tensors, which are of n_classes=7"),
        ("G_ch", 64, "contradicts the tensors, which are of G_ch=4"),
        ("D_ch", 64, "contradicts the tensors, which are of D_ch=4"),
        ("resolution", 128, "contradicts the tensors, which are of resolution=32"),
        ("model", "BigGANdeep", "contradicts the tensors, which are of model='BigGAN'"),
        ("dim_z", 84, "contradicts the tensors, which are of dim_z=80"),
        ("shared_dim", 0, "contradicts the tensors, which are of shared_dim=128"),
        ("hier", False, "contradicts the tensors, which are of hier=True"),
        ("G_attn", "16", "contradicts the tensors, which are of G_attn='0'"),
        ("D_attn", "16", "contradicts the tensors, which are of D_attn='0'"),
        ("D_wide", False, "is not supported, only True"),
        ("norm_style", "in", "is not supported, only 'bn'"),
        ("G_param", None, "is not supported, only 'SN'"),
        ("D_nl", "leaky", "is not supported, only 'relu' or 'inplace_relu' or 'ir'"),
        ("num_D_SVs", 3, "is not supported, only 1"),
        ("dim_z", "80", "must be a whole number"),
        ("BN_eps", "small", "must be a number above 0"),
    ],
)
def test_refused_arguments(key, value, rest, golden32, tmp_path):
    folder = write_folder(tmp_path / "run", golden32, golden_config(32) | {key: value})
    with pytest.raises(ConfigError) as e:
        biggan_pytorch.read(folder)
    path = os.path.join(folder, "state_dict.pth")
    assert str(e.value) == f"{path}: {key}={value!r} {rest}."


def test_arguments_that_say_the_same_otherwise(golden32, tmp_path):
    # A shared_dim of 0 is dim_z as it was given; D_attn=8 meets no entry of the author's list.
    config = golden_config(32) | {"G_attn": "64_128", "D_attn": "8"}
    biggan_pytorch.read(write_folder(tmp_path / "a", golden32, config))
    g = random_tensors(generator_shapes(32, 8, 5, slot=5, shared=23))
    config = {"dim_z": 23, "shared_dim": 0}
    model = biggan_pytorch.read(write_folder(tmp_path / "b", {"G": g}, config)).model
    assert (model["z_dim"], model["shared_dim"]) == (20, 23)


def test_refused_files(golden32, tmp_path):
    folder = write_folder(tmp_path / "run", golden32)
    path = tmp_path / "run" / "D.pth"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ConfigError, match=r"D\.pth' is damaged"):
        biggan_pytorch.read(folder)
    pth.write(path, [1, 2])
    with pytest.raises(ConfigError, match=r"D\.pth' holds no tensors by name"):
        biggan_pytorch.read(folder)
    pth.write(path, golden32["D"])
    pth.write(tmp_path / "run" / "state_dict.pth", [1])
    with pytest.raises(ConfigError, match=r"state_dict\.pth' holds no dict"):
        biggan_pytorch.read(folder)
    for name in ("G.pth", "G_ema.pth"):
        os.remove(tmp_path / "run" / name)
    with pytest.raises(ConfigError, match=r"neither G\.pth nor G_ema\.pth"):
        biggan_pytorch.read(folder)
    with pytest.raises(ConfigError, match="does not exist"):
        biggan_pytorch.read(str(tmp_path / "nowhere"))
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match="no file of biggan-pytorch has such a name"):
        biggan_pytorch.read(str(tmp_path / "weights.pth"))


def test_refused_rules(golden32, tmp_path):
    folder = write_folder(tmp_path / "run", golden32)
    for rule in ("stored", "shorter_side"):
        with pytest.raises(ConfigError, match=f"sigma_rule={rule}"):
            biggan_pytorch.read(folder, [("model.sigma_rule", rule)])


# Models from elsewhere.


SMALL = {"resolution": 32, "z_dim": 80, "g_attention": (16,), "d_attention": ()}


def own(seed=0, **model):
    """A bundle of our own, random, with statistics that keep signals at work."""
    changes = {"resolution": 64, "num_classes": 7, "g_ch": 8, "d_ch": 8, "shared_dim": 128}
    changes |= {"z_dim": 100, "g_attention": (32,), "d_attention": (32,), "out_bn_eps": 1e-5}
    resolved = bundle_lib.resolve_model(changes | model)
    rng = np.random.default_rng(seed)
    bundle = bundle_lib.Bundle("own", resolved, {})
    for network, shapes in zip("gd", layout.abstract(resolved), strict=True):
        arrays = {}
        for place, shape in shapes.items():
            value = np.asarray(rng.standard_normal(shape.shape), np.float32)
            if place.endswith("/var"):
                value = (2.0 if "out_bn" in place else 0.15) + 0.05 * np.abs(value)
            elif "spectral" not in place:
                value = 0.1 * value
            arrays[place] = value
        bundle.add(network, arrays)
    bundle.add("ema", {k: 1.01 * v for k, v in bundle.part("g").items()})
    return bundle


def shapes_of(folder):
    return {f: {k: v.shape for k, v in t.items()} for f, t in read_folder(folder).items()}


def test_our_own_model_has_the_names_and_shapes_of_the_author(tmp_path):
    assert biggan_pytorch.write(own(), str(tmp_path / "out")) == []
    _, tensors = golden_tensors(64)
    wanted = {f"{s}.pth": {k: v.shape for k, v in t.items()} for s, t in tensors.items()}
    assert shapes_of(tmp_path / "out") == wanted
    bundle = biggan_pytorch.read(str(tmp_path / "out"))
    assert bundle.model == own().model


@pytest.mark.parametrize(
    "model", [SMALL, SMALL | {"arch": "biggan_deep", "z_dim": 10}], ids=["biggan", "deep"]
)
def test_a_condition_of_z_first_is_turned_and_computes_the_same(model, tmp_path):
    bundle = own(**model, condition_order="z_first")
    assert biggan_pytorch.write(bundle, str(tmp_path / "out")) == []
    z, y = draw(bundle)
    tensors = read_folder(tmp_path / "out")
    eps = bundle.model["bn_eps"], bundle.model["sn_eps"]
    image = reference_networks.author_generator(tensors["G_ema.pth"], z, y, *eps)
    assert 0.05 < image.std() < 0.7
    assert_close(generate(bundle, "ema", z, y), image, "image")
    assert biggan_pytorch.read(str(tmp_path / "out")).model["condition_order"] == "embedding_first"


@pytest.mark.parametrize("order", ["z_first", "embedding_first"])
def test_a_head_of_128_channels_goes_with_z_first(order, tmp_path):
    deep = SMALL | {"arch": "biggan_deep", "z_dim": 10, "rgb_channels": 128}
    bundle = own(**deep, condition_order=order)
    (note,) = biggan_pytorch.write(bundle, str(tmp_path / "out"))
    assert "128 channels" in note
    back = biggan_pytorch.read(str(tmp_path / "out"))
    assert back.model["condition_order"] == "z_first"
    for place in ("g/params/linear/kernel", "g/params/block3/bn2/gain/kernel"):
        kernel = bundle.tensors[place]
        want = kernel if order == "z_first" else np.roll(kernel, 10, axis=0)
        np.testing.assert_array_equal(back.tensors[place], want)


def test_without_z_in_the_condition_nothing_is_turned(tmp_path):
    bundle = own(**SMALL | {"z_dim": 12}, hierarchical_z=False, condition_order="z_first")
    biggan_pytorch.write(bundle, str(tmp_path / "out"))
    back = biggan_pytorch.read(str(tmp_path / "out"))
    place = "g/params/block1/bn2/gain/kernel"
    np.testing.assert_array_equal(back.tensors[place], bundle.tensors[place])


def test_sigmas_are_those_after_one_iteration(tmp_path):
    biggan_pytorch.write(own(), str(tmp_path / "out"))
    for tensors in read_folder(tmp_path / "out").values():
        for name in [n for n in tensors if n.endswith("sv0")]:
            weight, u = (np.float64(tensors[name[:-3] + k]) for k in ("weight", "u0"))
            v = u @ weight.reshape(len(weight), -1)
            right = v / np.linalg.norm(v) @ weight.reshape(len(weight), -1).T
            np.testing.assert_allclose(tensors[name], [np.linalg.norm(right)], rtol=1e-5)


def test_what_images_will_differ_by_is_said(tmp_path):
    deep = SMALL | {"arch": "biggan_deep", "z_dim": 10}
    stored = own(**deep, sigma_rule="stored", out_bn_eps=1e-4)
    stored.grid = (0.5, 1.0)
    notes = " ".join(biggan_pytorch.write(stored, str(tmp_path / "stored")))
    for word in ("last BN", "one more iteration", "2 truncations"):
        assert word in notes
    shapes = generator_shapes(32, 8, 7, slot=10, deep=True, at=(3,))
    assert shapes_of(tmp_path / "stored")["G.pth"] == shapes
    for place in ("u0", "weight"):
        np.testing.assert_array_equal(
            read_folder(tmp_path / "stored")["D.pth"][f"embed.{place}"],
            stored.tensors[
                "d/" + {"u0": "spectral/embed/u", "weight": "params/embed/embedding"}[place]
            ],
        )
    hub = own(**SMALL, sigma_rule="hub")
    assert "larger" in " ".join(biggan_pytorch.write(hub, str(tmp_path / "hub")))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"resolution": 512, "z_dim": 160, "num_classes": 2}, "512 px"),
        ({"resolution": 32, "z_dim": 80, "g_attention": (), "d_attention": (16,)}, "32 px"),
    ],
)
def test_a_d_that_the_author_has_not_is_left_out(model, word, tmp_path):
    bundle = own(**model)
    (note,) = biggan_pytorch.write(bundle, str(tmp_path / "out"))
    assert note.startswith("D is left out") and word in note
    assert sorted(os.listdir(tmp_path / "out")) == ["G.pth", "G_ema.pth", "state_dict.pth"]
    assert biggan_pytorch.read(str(tmp_path / "out")).model["z_dim"] == model["z_dim"]


@pytest.mark.parametrize(
    ("model", "word"),
    [
        ({"compare_gan": True}, "compare_gan"),
        ({"resolution": 16, "z_dim": 60, "g_attention": (), "d_attention": ()}, "resolution=16"),
        ({"sigma_rule": "shorter_side"}, "shorter_side"),
    ],
)
def test_refused_models_leave_nothing_behind(model, word, tmp_path):
    with pytest.raises(ConfigError, match=word):
        biggan_pytorch.write(own(**model), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, value, whole=pth.write):
        if path.endswith("D.pth"):
            raise OSError("no space left")
        whole(path, value)

    monkeypatch.setattr(pth, "write", full)
    with pytest.raises(OSError, match="no space"):
        biggan_pytorch.write(own(), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        biggan_pytorch.write(own(), str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["mine"]


# Torch's own reader and writer.


@pytest.mark.interop
def test_with_torch(golden32, tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "run").mkdir()
    for stem, tensors in golden32.items():
        values = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
        torch.save(values, tmp_path / "run" / f"{stem}.pth")
    # The author's training puts its modules among the arguments.
    config = golden_config(32) | {"G_activation": torch.nn.ReLU(inplace=True)}
    torch.save(
        {"itr": 9, "best_IS": np.float64(2.5), "config": config}, tmp_path / "run/state_dict.pth"
    )
    bundle = biggan_pytorch.read(str(tmp_path / "run"))
    biggan_pytorch.write(bundle, str(tmp_path / "back"))
    for stem, tensors in golden32.items():
        back = torch.load(tmp_path / "back" / f"{stem}.pth", weights_only=True)
        assert back.keys() == tensors.keys()
        for name, value in tensors.items():
            assert back[name].dtype == torch.float32 and tuple(back[name].shape) == value.shape
            np.testing.assert_array_equal(back[name].numpy(), value)
    state = torch.load(tmp_path / "back/state_dict.pth", weights_only=True)
    assert state == {"itr": 9, "best_IS": 2.5, "config": golden_config(32)}
