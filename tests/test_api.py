import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import biggan_jax
from biggan_jax import api, cli
from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import layout
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sampler, tiles
from biggan_jax.train import checkpoint, runs

MODEL = {"resolution": 16, "num_classes": 3, "g_ch": 8, "d_ch": 8, "shared_dim": 8}


@functools.cache
def initial(model):
    """Both networks' first variables, flat; most tests here ask for the same ones."""
    model = json.loads(model)
    g, d = networks.build({"model": model})
    z, labels = jnp.zeros((1, model["z_dim"])), jnp.zeros(1, jnp.int32)
    image = jnp.zeros((1, model["resolution"], model["resolution"], 3))
    key = jax.random.key(0)
    g_variables = jax.jit(functools.partial(g.init, train=False))(key, z, labels)
    return layout.flatten(g_variables), layout.flatten(jax.jit(d.init)(key, image, labels))


@functools.cache
def plain_model():
    """For tests that change nothing."""
    return api.Model(make_bundle())


def make_bundle(table=False, **model):
    """Random weights, an average of its own, and statistics that are neither 0 nor 1."""
    changes = {**MODEL, "z_dim": 12, "g_attention": (), "d_attention": (), **model}
    made = bundle_lib.Bundle("toy", bundle_lib.resolve_model(changes), {}, standing_images=96)
    rng = np.random.default_rng(0)

    def randomized(flat):
        other = {k: v + 0.1 * rng.normal(size=v.shape) for k, v in flat.items()}
        return {k: np.float32(np.abs(v) if "/var" in k else v) for k, v in other.items()}

    g_variables, d_variables = initial(json.dumps(made.model))
    made.add("g", randomized(g_variables))
    made.add("ema", randomized(g_variables))
    made.add("d", randomized(d_variables))
    if table:
        made.grid = (0.0, 0.5, 1.0)
        made.truncation = "hub"
        rows = {k: v for k, v in made.part("ema").items() if k.startswith("batch_stats/")}
        made.add("table", {k: np.stack([v, 2 * v, 3 * v]) for k, v in rows.items()})
    return made


def apply_g(bundle, weights, z, labels):
    g, _ = networks.build({"model": bundle.model})
    call = jax.jit(functools.partial(g.apply, train=False))
    return np.asarray(call(weights, np.asarray(z, np.float32), np.asarray(labels)))


def variables(bundle, network, scale=1):
    tree = layout.unflatten(bundle.part(network))
    if "batch_stats" in tree:
        tree["batch_stats"] = jax.tree.map(lambda x: scale * x, tree["batch_stats"])
    return tree


def reference_sampler(model):
    """Training's, which computes whole batches in one program."""
    return sampler.Sampler(model.config, mesh_lib.make_mesh(1))


def test_generate_and_discriminate_apply_the_networks():
    model = plain_model()
    bundle = model.bundle
    _, d = networks.build({"model": bundle.model})
    z = np.random.default_rng(1).normal(size=(70, 12)).astype(np.float32)  # More than a batch.
    labels = np.arange(70) % 3
    images = model.generate(z, labels)
    assert images.shape == (70, 16, 16, 3) and images.dtype == np.float32
    want = apply_g(bundle, variables(bundle, "ema"), z, labels)
    np.testing.assert_allclose(images, want, atol=1e-5)
    assert images.std() > 0.05
    logits = model.discriminate(images, labels)
    want = jax.jit(d.apply)(variables(bundle, "d"), images, labels)
    np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())
    coarse = np.uint8(np.round(127.5 * (images + 1)))
    np.testing.assert_allclose(
        model.discriminate(coarse, labels),
        model.discriminate(np.float32(coarse) / 127.5 - 1, labels),
    )


def test_a_table_gives_statistics_by_truncation():
    bundle = make_bundle(table=True)
    model = api.Model(bundle)
    z, labels = np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32), [0, 1, 2]
    for truncation, scale in ((0.5, 2), (1.0, 3), (0.625, 2.25)):
        want = apply_g(bundle, variables(bundle, "ema", scale), z, labels)
        np.testing.assert_allclose(model.generate(z, labels, truncation), want, atol=1e-5)
    # The reversed blend: a quarter of the way from 0.5 to 1 gives three quarters.
    want = apply_g(bundle, variables(bundle, "ema", 2.75), z, labels)
    got = model.generate(z, labels, 0.625, statistics="hf-compat")
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_sample_uses_the_table_in_its_own_mode_and_standing_statistics_in_others():
    bundle = make_bundle(table=True)
    model = api.Model(bundle)
    assert model.truncation_mode == "hub"
    labels = np.array([0, 1, 2, 2])
    z = latents.draw(5, np.arange(4), 12, 0.5, "hub")
    want = model.generate(z, labels, 0.5)
    got = model.sample(labels, truncation=0.5, seed=5)
    assert got.shape == (4, 16, 16, 3) and got.dtype == np.uint8
    assert np.abs(got - np.round(127.5 * (want + 1))).max() <= 1  # Rounding at a half.
    assert model.describe(0.5, None) == "hub truncation 0.5"
    z = latents.draw(5, np.arange(4), 12, 1.0, "threshold")
    weights = {k: v for k, v in variables(bundle, "ema").items() if k != "batch_stats"}
    standing = reference_sampler(model).standing_statistics(weights, 1.0, "threshold")
    want = apply_g(bundle, {**weights, "batch_stats": standing}, z, labels)
    got = model.sample(labels, truncation=1.0, seed=5, mode="threshold")
    assert np.abs(got - np.round(127.5 * (want + 1))).max() <= 1
    # Without a truncation such a model is sampled at the table's end.
    np.testing.assert_array_equal(model.sample(labels, seed=5), model.sample(labels, 1.0, seed=5))


def test_a_hub_model_without_a_table_has_statistics_of_truncation_one():
    bundle = make_bundle()
    bundle.truncation = "hub"
    model = api.Model(bundle)
    want = model.generate(latents.draw(5, np.arange(2), 12, 1.0, "hub"), [0, 1])
    got = model.sample([0, 1], seed=5)
    assert np.abs(got - np.round(127.5 * (want + 1))).max() <= 1
    np.testing.assert_array_equal(model.sample([0, 1], 1.0, seed=5), got)
    assert model.describe(None, None) == "hub truncation 1"
    assert not model._standing
    model.sample([0, 1], 0.5, seed=5)
    assert list(model._standing) == [(0.5, "hub")]


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        ({"resolution": 32, "g_attention": (), "d_attention": ()}, 64),
        ({"resolution": 128, "g_attention": (64,), "d_attention": (64,)}, 64),
        # 2^26 scores an image, 256 MiB, and its softmax as much again.
        ({"resolution": 256, "g_attention": (128,), "d_attention": (64,)}, 4),
        ({"resolution": 256, "g_attention": (64,), "d_attention": (64,)}, 16),
        ({"resolution": 512, "g_attention": (64,), "d_attention": (64,)}, 4),
    ],
)
def test_batches_shrink_as_images_grow(model, batch):
    assert tiles.largest_batch(model) == batch


def test_standing_statistics_of_generate_are_those_of_the_truncation():
    model = plain_model()
    z, labels = np.zeros((2, 12), np.float32), [0, 1]
    stored, low, high = (
        model.generate(z, labels, *arguments)
        for arguments in ((1.0,), (0.1, "standing"), (2.0, "standing"))
    )
    assert np.abs(stored - low).max() > 1e-2 and np.abs(low - high).max() > 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample([3]), "class 3: this model has classes 0 to 2"),
        (lambda m: m.sample([]), "labels must be a list of class numbers"),
        (lambda m: m.sample([0.5]), "labels must be a list of class numbers"),
        (lambda m: m.sample([0], truncation=0.0), "must be a number above 0"),
        (lambda m: m.sample([0], 0.5, mode="hubb"), "--mode=hubb: must be one of"),
        (lambda m: m.sample([0], seed=2**31), "--seed=2147483648: must be at least 0 and below"),
        (lambda m: m.sample([0], first=-1), "first=-1: must be at least 0"),
        (lambda m: m.stream([0], batch=0), "--batch=0: must be at least 1"),
        (lambda m: m.sample(np.full((1, 3), np.nan)), "a mix of classes must be finite"),
        (lambda m: m.sample(np.zeros((1, 4))), "labels must be a list of class numbers"),
        (lambda m: m.mix({"1": -1.0}), "a mix: needs weights"),
        (lambda m: m.mix({}), "a mix: needs weights"),
        (lambda m: m.mix({"emu": 1.0}), "'emu' is no class"),
        (lambda m: m.walk([(np.ones(12), 0)]), "a walk needs two points"),
        (lambda m: m.walk([(np.ones(12), 0), (np.ones(3), 0)]), r"z is of shape \[3\]"),
        (lambda m: m.walk([(np.ones(12), 0), (np.ones(12), 3)]), "class 3: this model has"),
        (lambda m: m.walk([(np.ones(12), 0)] * 2, how="x"), "--how=x: must be one of"),
        (lambda m: m.walk([(np.ones(12), 0)] * 2, frames=0), "--frames=0: must be at least 1"),
        (lambda m: m.generate(np.zeros((1, 5)), [0]), r"z is of shape \[1, 5\]"),
        (lambda m: m.generate(np.zeros((1, 12)), [0], 1.0, "x"), "must be one of correct, hf-"),
        (lambda m: m.generate(np.zeros((1, 12)), [0], 1.0, "hf-compat"), "brings no statistics"),
        (lambda m: m.discriminate(np.zeros((1, 8, 8, 3)), [0]), r"must be \[1, 16, 16, 3\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        call(plain_model())


def test_a_model_without_d_says_so():
    bundle = make_bundle()
    bundle.tensors = {k: v for k, v in bundle.tensors.items() if not k.startswith("d/")}
    model = api.Model(bundle)
    assert not model.has_discriminator
    with pytest.raises(config_lib.ConfigError, match="toy has no discriminator"):
        model.discriminate(np.zeros((1, 16, 16, 3)), [0])


def test_make_table_is_standing_statistics_of_51_truncations():
    model = api.Model(make_bundle())
    model.make_table()
    assert model.bundle.grid[7] == 0.14 and len(model.bundle.grid) == 51
    weights = variables(model.bundle, "ema")
    del weights["batch_stats"]
    want = reference_sampler(model).standing_statistics(weights, 0.5, "hub")
    got = model.bundle.part("table")["batch_stats/out_bn/var"]
    assert got.shape == (51, 32)
    np.testing.assert_allclose(got[25], want["out_bn"]["var"], rtol=1e-6)
    assert model.describe(None, None) == "hub truncation 1"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of one saved state, without training."""
    config = config_lib.default()
    config.name = "small"
    config.update(batch_size=8, num_steps=4)
    config.model.update({**MODEL, "z_dim": 12, "g_attention": (), "d_attention": ()})
    config.sample.update(standing_passes=2, standing_batch=8)
    resolved = config_lib.resolve(config, 1)
    state = step_lib.init_state(resolved, mesh_lib.make_mesh(1))
    state = state.replace(
        step=jnp.int32(4), ema_params=jax.tree.map(lambda x: x * 1.1 + 0.01, state.ema_params)
    )
    folder = tmp_path_factory.mktemp("run")
    (folder / runs.CONFIG).write_text(config_lib.to_json(resolved))
    (folder / runs.DATA).write_text(json.dumps({"class_names": ["cat", "dog", "emu"]}))
    with checkpoint.Checkpoints(folder / runs.CHECKPOINTS, keep=1) as saved:
        saved.save(4, state, {"step": 4})
    return str(folder)


def test_a_run_its_bundle_and_what_is_loaded_again_are_one_model(run_folder, tmp_path, capsys):
    out = str(tmp_path / "bundle")
    assert cli.main(["export", run_folder, out, "--format=bundle"]) == 0
    names = ["README.md", "config.json", "model.safetensors", "samples.png"]
    assert sorted(os.listdir(out)) == names
    run, bundle = biggan_jax.load(run_folder), biggan_jax.load(out)
    assert run.class_names == bundle.class_names == ("cat", "dog", "emu")
    labels = [0, 1, 2, 1]
    for truncation in (None, 0.5):
        images = run.sample(labels, truncation, seed=3)
        np.testing.assert_array_equal(bundle.sample(labels, truncation, seed=3), images)
        assert images.std() > 1
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "# small" in card and "Checkpoint of step 4" in card and "| discriminator |" in card
    capsys.readouterr()
    assert cli.main(["inspect", out, "--digest"]) == 0
    text = capsys.readouterr().out
    assert "small: a bundle, biggan at 16 px, 3 classes" in text and "digest: " in text
    assert cli.main(["inspect", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "small"
    sheet = str(tmp_path / "s.png")
    arguments = ["sample", out, "--out", sheet, "--classes", "dog,0", "--num=2"]
    assert cli.main([*arguments, "--truncation=0.3", "--mode=std"]) == 0
    with Image.open(sheet) as picture:
        assert picture.size[0] > 100


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["export", "RUN", "OUT", "--format=onx"], "--format=onx: must be one of bundle"),
        (["export", "RUN", "RUN", "--format=bundle"], "is there already and not empty"),
        (["export", "nowhere", "OUT", "--format=bundle"], "'nowhere' is not a run folder"),
        (["export", "RUN", "OUT", "--format=bundle", "--step=3"], "no checkpoint of step 3"),
        (["export", "RUN", "OUT", "--format=huggingface"], "BigGAN-deep"),
        (["import", "nowhere/x", "OUT"], "there is no 'nowhere/x'"),
        (["import", "nope", "OUT"], "there is no 'nope'"),
        (["import", "RUN", "OUT"], "looks like none of the known formats"),
        (["import", "RUN", "OUT", "--format=x"], "--format=x: must be one of biggan-pytorch"),
        (["import", "RUN", "RUN"], "is there already and not empty"),
        (["inspect", "RUN", "--step=3"], "no checkpoint of step 3"),
    ],
)
def test_bad_requests_leave_nothing(run_folder, tmp_path, capsys, argv, message):
    out = str(tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    code = cli.main([{"RUN": run_folder, "OUT": out}.get(a, a) for a in argv])
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def saved(tmp_path):
    folder = str(tmp_path / "bundle")
    bundle_lib.write(make_bundle(table=True), folder)
    return folder


def test_a_bundle_is_read_as_it_was_written(saved):
    want, got = make_bundle(table=True), bundle_lib.read(saved)
    assert got.model == want.model and got.grid == want.grid and got.truncation == "hub"
    assert got.tensors.keys() == want.tensors.keys()
    for name, array in want.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], array)


def edit(folder, change):
    path = os.path.join(folder, bundle_lib.CONFIG)
    with open(path) as f:
        about = json.load(f)
    change(about)
    with open(path, "w") as f:
        json.dump(about, f)


def flip(path):
    """One bit in the middle."""
    at = os.path.getsize(path) // 2
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(os.path.join(f, bundle_lib.WEIGHTS)), "is damaged: its SHA-256"),
        (lambda f: os.remove(os.path.join(f, "model.safetensors")), "cannot be read"),
        (lambda f: edit(f, lambda a: a.pop("model")), "cannot be read: 'model'"),
        (lambda f: edit(f, lambda a: a.update(version=9)), "version 9 of the bundle format"),
        (lambda f: edit(f, lambda a: a["model"].update(num_classes=4)), r"must be \[4, 8\]"),
        (lambda f: edit(f, lambda a: a.update(grid=[0, 1])), "statistics a truncation do not fit"),
        (lambda f: edit(f, lambda a: a.update(format="x")), "is not a bundle"),
        (lambda f: edit(f, lambda a: a["model"].update(arch="foo")), "model.arch='foo': must be"),
        (lambda f: edit(f, lambda a: a["model"].update(z_dim=13)), "must be a multiple of 3"),
        (lambda f: edit(f, lambda a: a["model"].update(sn_eps="x")), "'x' is not a number"),
        (lambda f: edit(f, lambda a: a.update(truncation="foo")), "truncation='foo': must be one"),
        (lambda f: edit(f, lambda a: a.update(class_names=["cat"])), "1 class names for 3 classes"),
        (lambda f: edit(f, lambda a: a.update(grid=[1, 0.5, 0])), "in ascending order"),
        (lambda f: edit(f, lambda a: a.update(source=[])), "source: must hold keys"),
    ],
)
def test_a_damaged_bundle_is_named_in_one_sentence(saved, damage, message):
    damage(saved)
    with pytest.raises(config_lib.ConfigError, match=message) as e:
        bundle_lib.read(saved)
    assert "\n" not in str(e.value)


def test_a_bundle_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(bundle_lib, "card", fail)
    with pytest.raises(OSError, match="disk full"):
        bundle_lib.write(make_bundle(), str(tmp_path / "a" / "bundle"))
    assert not list(tmp_path.rglob("*bundle*"))
    broken = make_bundle()
    del broken.tensors["ema/params/linear/bias"]
    with pytest.raises(config_lib.ConfigError, match="ema/params/linear/bias is missing and must"):
        bundle_lib.write(broken, str(tmp_path / "bundle"))
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    assert not list(tmp_path.iterdir())


def test_render_gives_the_images_of_sample_for_its_latents():
    model = plain_model()
    labels = np.array([0, 2, 1])
    for truncation, mode in ((None, None), (0.5, "std")):
        want = model.sample(labels, truncation, seed=9, mode=mode)
        z = model.latents(3, truncation, 9, mode)
        np.testing.assert_array_equal(model.render(z, labels, truncation, mode), want)
    with pytest.raises(config_lib.ConfigError, match="z is of shape"):
        model.render(z[:2], labels)


def test_standing_statistics_of_the_last_truncations_are_kept(monkeypatch):
    monkeypatch.setattr(api, "_STANDING_KEPT", 2)
    model = api.Model(make_bundle())
    for truncation in (0.5, 0.6, 0.7):
        model.sample([0], truncation)
    assert list(model._standing) == [(0.6, "threshold"), (0.7, "threshold")]
