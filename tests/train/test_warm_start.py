import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.gan import state as state_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import checkpoint, digest, export, loop, runs, warm_start

DIGITS = tuple("0123456789")
FOUR = {"data__classes": (3, 5, 8, 9), "model__num_classes": 4}
CLASS_TENSORS = {
    "g_params/shared/embedding",
    "g_opt/0/nu/shared/embedding",
    "ema_params/shared/embedding",
    "d_params/embed/embedding",
    "d_spectral/embed/u",
    "d_opt/0/nu/embed/embedding",
}
COUNTS = {"step", "g_opt/1/count", "d_opt/1/count"}


def small_config(data_dir, **changes):
    c = config_lib.shrink(config_lib.load("configs/digits.py"))
    c.update(device_count=1, num_steps=2)
    c.model.update(z_dim=12, init="n02")  # Quicker to compile than QR decompositions.
    c.data.dir = data_dir
    for key, value in changes.items():
        config_lib.override(c, key.replace("__", "."), str(value))
    return c


def write_run(folder, config):
    """Makes a run at step 2000 whose arrays are all noise; returns its place and its state."""
    resolved, mesh = config_lib.resolve(config, 1), mesh_lib.make_mesh(1)
    rng = np.random.default_rng(0)
    value = lambda x: (  # noqa: E731
        np.float32(rng.uniform(0.01, 1, x.shape)) if x.dtype == np.float32 else np.int32(2000)
    )
    state = jax.device_put(jax.tree.map(value, step_lib.abstract_state(resolved, mesh)))
    os.makedirs(folder)
    with checkpoint.Checkpoints(os.path.join(folder, runs.CHECKPOINTS), keep=1) as saved:
        saved.save(2000, state, {"step": 2000})
    files.write_whole(os.path.join(folder, runs.CONFIG), config_lib.to_json(resolved))
    files.write_whole(os.path.join(folder, runs.DATA), json.dumps({"class_names": DIGITS}))
    return str(folder), state


@pytest.fixture(scope="module", autouse=True)
def each_first_state_is_made_once():
    """It is a function of a few keys, and takes seconds to compile."""
    real, made = step_lib.init_state, {}

    def init_state(config, mesh):
        key = config.seed, config.model, config.optim, mesh.size
        if str(key) not in made:
            made[str(key)] = real(config, mesh)
        return made[str(key)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_lib, "init_state", init_state)
        yield


@pytest.fixture(scope="module")
def ten(data_dir, tmp_path_factory):
    """A run of ten classes and its state."""
    return write_run(tmp_path_factory.mktemp("source") / "ten", small_config(data_dir))


@pytest.fixture(scope="module")
def bundles(ten, tmp_path_factory):
    """Places of bundles of that run: whole, and without one of its networks."""
    folder = tmp_path_factory.mktemp("bundles")
    whole = export.to_bundle(ten[0])
    places = {}
    for name, keep in {"all": "g ema d", "no_g": "ema d", "no_ema": "g d", "no_d": "g ema"}.items():
        part = {k: v for k, v in whole.tensors.items() if k.split("/")[0] in keep.split()}
        places[name] = str(folder / name)
        bundle_lib.write(bundle_lib.Bundle(**{**vars(whole), "tensors": part}), places[name])
    return places


def start(config, devices=1, class_names=()):
    config.device_count = devices
    resolved, mesh = config_lib.resolve(config, devices), mesh_lib.make_mesh(devices)
    return warm_start.start_state(resolved, mesh, class_names)


def fresh(config):
    return step_lib.init_state(config_lib.resolve(config, 1), mesh_lib.make_mesh(1))


def arrays(tree):
    return {
        digest.name_of(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def differing(a, b):
    """Names of leaves that are not bit-equal."""
    a, b = arrays(a), arrays(b)
    assert a.keys() == b.keys()
    return {k for k in a if a[k].shape != b[k].shape or a[k].tobytes() != b[k].tobytes()}


def test_from_a_run_of_the_same_classes_all_but_the_step_goes_on(ten, data_dir):
    run, source = ten
    devices = 4  # The run was saved from one.
    state, lines = start(small_config(data_dir, init_from=run), devices, DIGITS)
    assert differing(state, source) == COUNTS
    assert all(arrays(state)[name] == 0 for name in COUNTS)
    leaves = jax.tree.leaves(state)
    assert all(len(x.sharding.device_set) == devices for x in leaves)
    pointers = [x.addressable_shards[0].data.unsafe_buffer_pointer() for x in leaves]
    assert len(set(pointers)) == len(pointers)  # Donation needs every buffer once.
    assert lines == [
        "init_from: starting from step 2,000 of the run 'digits'",
        "init_from: 10 classes there and here: nothing is reset",
    ]


def test_from_a_run_of_other_classes_only_their_tensors_are_reset(ten, data_dir):
    run, source = ten
    config = small_config(data_dir, init_from=run, **FOUR)
    state, lines = start(config, class_names=("3", "5", "8", "9"))
    assert differing(state, source) == CLASS_TENSORS | COUNTS
    # What was reset is what a run from random weights starts with, but for second moments.
    moments = {"g_opt/0/nu/shared/embedding": 8, "d_opt/0/nu/embed/embedding": 32}
    assert differing(state, fresh(config)) & (CLASS_TENSORS | COUNTS) == set(moments)
    for name, width in moments.items():
        mean = np.float64(arrays(source)[name]).mean(0) * 2.5**2
        assert mean.shape == (width,)
        np.testing.assert_allclose(arrays(state)[name], np.tile(mean, (4, 1)), rtol=1e-6)
    assert lines == [
        "init_from: starting from step 2,000 of the run 'digits'",
        "init_from: reset d/params/embed/embedding, d/spectral/embed/u, d_opt/nu/embed/embedding"
        " (10 classes there, 4 here)",
        "init_from: reset g/params/shared/embedding, ema/params/shared/embedding,"
        " g_opt/nu/shared/embedding (10 classes there, 4 here)",
    ]


def test_tables_of_each_bn_and_first_moments_are_reset_too(data_dir, tmp_path):
    changes = {"model__shared_embedding": False, "model__hierarchical_z": False}
    changes["optim__beta1"] = 0.5
    run, source = write_run(tmp_path / "run", small_config(data_dir, **changes))
    state, lines = start(small_config(data_dir, init_from=run, **changes, **FOUR))
    tables = {
        f"block{i}/bn{j}/{x}/embedding" for i in (0, 1) for j in (1, 2) for x in ("bias", "gain")
    }
    g = {"g_params", "ema_params", "g_opt/0/mu", "g_opt/0/nu"}
    want = {f"{tree}/{table}" for tree in g for table in tables}
    want |= {"d_opt/0/mu/embed/embedding"} | {x for x in CLASS_TENSORS if x.startswith("d_")}
    assert differing(state, source) == want | COUNTS
    assert [line.count("embedding") for line in lines if "reset" in line] == [3, 32]
    for mu in (state.g_opt[0].mu["block0"]["bn1"]["gain"], state.d_opt[0].mu["embed"]):
        assert mu["embedding"].shape[0] == 4 and not np.asarray(mu["embedding"]).any()


def test_a_bundle_gives_weights_and_no_moments(ten, bundles, data_dir):
    _, source = ten
    config = small_config(data_dir, init_from=bundles["all"])
    state, lines = start(config)
    new = fresh(config)
    want = source.replace(step=new.step, g_opt=new.g_opt, d_opt=new.d_opt)
    assert differing(state, want) == set()
    assert lines == [
        "init_from: starting from the bundle 'digits'",
        "init_from: the source has no Adam moments: they start fresh",
        "init_from: 10 classes there and here: nothing is reset",
    ]
    _, lines = start(small_config(data_dir, init_from=bundles["all"], **FOUR))
    assert lines[2:] == [
        "init_from: reset d/params/embed/embedding, d/spectral/embed/u (10 classes there, 4 here)",
        "init_from: reset g/params/shared/embedding, ema/params/shared/embedding"
        " (10 classes there, 4 here)",
    ]


def test_without_a_discriminator_d_starts_fresh(ten, bundles, data_dir):
    _, source = ten
    config = small_config(data_dir, init_from=bundles["no_d"])
    state, lines = start(config)
    new = fresh(config)
    assert differing((state.d_params, state.d_spectral), (new.d_params, new.d_spectral)) == set()
    assert differing(state.g_params, source.g_params) == set()
    assert lines[1] == "init_from: the source has no discriminator: D starts fresh"
    config = small_config(data_dir, init_from=bundles["no_d"], optim__freeze_d_blocks=1)
    with pytest.raises(ConfigError, match=r"freeze_d_blocks=1: .* has no discriminator"):
        start(config)


@pytest.mark.parametrize("lacking", ["g", "ema"])
def test_one_generator_serves_as_both(ten, bundles, data_dir, lacking):
    _, source = ten
    state, lines = start(small_config(data_dir, init_from=bundles[f"no_{lacking}"]))
    g = source.g_params, source.g_batch_stats
    ema = source.ema_params, source.ema_batch_stats
    want = ema if lacking == "g" else g
    assert differing((state.g_params, state.g_batch_stats), want) == set()
    assert differing((state.ema_params, state.ema_batch_stats), want) == set()
    assert differing(state.g_spectral, source.g_spectral) == set()
    names = ("raw", "averaged") if lacking == "g" else ("averaged", "raw")
    said = "the source has no {} generator: it starts as a copy of the {} one".format(*names)
    assert f"init_from: {said}" in lines


def test_moments_of_another_adam_are_left(ten, data_dir):
    config = small_config(data_dir, init_from=ten[0], optim__beta2=0.99)
    state, lines = start(config)
    new = fresh(config)
    assert differing((state.g_opt, state.d_opt), (new.g_opt, new.d_opt)) == set()
    assert lines[1] == (
        "init_from: Adam's betas are (0.0, 0.999) there and (0.0, 0.99) here: moments start fresh"
    )


@pytest.mark.parametrize("here", [2, 10, 50])
@pytest.mark.parametrize("power", [-0.5, -1])
def test_updates_of_reset_tables_are_no_longer_than_the_rate(data_dir, here, power):
    """A row's gradient goes with its class's share of the batch, or with the root of it."""
    there, count, rng = 10, 20_000, np.random.default_rng(0)
    gradient = lambda classes: rng.normal(size=(classes, 200)) * classes**power  # noqa: E731
    moment = np.mean([gradient(there) ** 2 for _ in range(200)], axis=0)
    config = config_lib.resolve(small_config(data_dir, optim__warmup=0), 1)
    optimizer = state_lib.optimizer(config, 1.0)
    update = jax.jit(optimizer.update)

    def longest(start):
        moments, *rest = optimizer.init(jnp.zeros((here, 200)))
        state = moments._replace(nu=jnp.float32(start), count=jnp.int32(count)), *rest
        lengths = []
        for _ in range(5):
            updates, state = update(jnp.float32(gradient(here)), state)
            lengths.append(float(jnp.sqrt(jnp.mean(updates**2))))
        return max(lengths)

    # The root mean square of 400 numbers is within 15 % of what it estimates.
    assert longest(warm_start._new_moment(np.float32(moment), there, here)) < 1.15
    assert longest(np.zeros((here, 200))) > 25  # Why the moment of a new table is not zero.


def test_what_cannot_be_started_from_is_a_sentence_and_leaves_nothing(
    ten, bundles, data_dir, tmp_path
):
    run, _ = ten
    (tmp_path / "empty").mkdir()
    shutil.copytree(run, tmp_path / "begun", ignore=shutil.ignore_patterns("2000"))
    shutil.copytree(bundles["all"], tmp_path / "broken")
    with open(tmp_path / "broken" / "model.safetensors", "r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x55")
    cases = [
        ({"init_from": str(tmp_path / "empty")}, "neither a bundle nor a run folder"),
        ({"init_from": str(tmp_path / "absent")}, "neither a bundle nor a run folder"),
        ({"init_from": str(tmp_path / "begun")}, "there is no checkpoint"),
        ({"init_from": str(tmp_path / "broken")}, "is damaged"),
        ({"init_from": run, "model__g_ch": 16}, "model.g_ch is 8 there and 16 here"),
        ({"init_from": run, "model__d_ch": 16}, "model.d_ch is 8 there and 16 here"),
        ({"init_from": bundles["all"], "model__bn_eps": 1e-5}, "model.bn_eps is 0.0001 there"),
        (
            {"init_from": bundles["no_d"], "model__g_attention": (8,)},
            "model.g_attention is [] there and [8] here",
        ),
    ]
    for changes, message in cases:
        with pytest.raises(ConfigError) as e:
            loop.train(small_config(data_dir, **changes), str(tmp_path / "run"))
        assert message in str(e.value) and "\n" not in str(e.value)
        assert changes["init_from"] in str(e.value)
        assert not (tmp_path / "run").exists()


def test_only_what_moves_no_tensor_may_differ(data_dir):
    """Each key of the model by itself, in a source with and without a D."""
    here = config_lib.resolve(small_config(data_dir), 1)
    refused = {}
    for has_d in (True, False):
        refused[has_d] = set()
        for key, value in here.model.items():
            source = warm_start._Source("", {**here.model, key: (value, "other")}, {}, None, ())
            try:
                warm_start._check_same_model(here, source, has_d)
            except ConfigError as e:
                assert f"model.{key} is " in str(e) and "\n" not in str(e)
                refused[has_d].add(key)
    free = {"num_classes", "init", "dtype", "remat", "bn_group_size", "bn_momentum"}
    assert refused[True] == set(here.model) - free
    assert refused[False] == refused[True] - {"d_ch", "d_attention"}


def test_other_names_for_as_many_classes_are_told(ten, data_dir):
    config = small_config(data_dir, init_from=ten[0])
    _, lines = start(config, class_names=("0", "eins", *DIGITS[2:]))
    assert lines[-1] == (
        "init_from: class 1 is '1' there and 'eins' here, and starts as that class does"
    )


@pytest.mark.slow
def test_a_run_from_a_run_trains_and_goes_on_without_it(ten, data_dir, tmp_path, capsys):
    before, run = str(tmp_path / "before"), str(tmp_path / "run")
    shutil.copytree(ten[0], before)
    config = small_config(data_dir, init_from=before, optim__freeze_d_blocks=2, **FOUR)
    begun = loop.train(config, run)
    out = capsys.readouterr().out
    assert out.index("init_from: starting from step 2,000") < out.index("compiling the step")
    frozen = {x.split("/")[0] for x in arrays(begun.d_params)} - {
        x.split("/")[0] for x in differing(begun.d_params, ten[1].d_params)
    }
    assert frozen == {"block0", "block1"}
    shutil.rmtree(before)
    config.num_steps = 3
    assert int(loop.train(config, run).step) == 3
    out = capsys.readouterr().out
    assert "init_from" not in out and "going on from the checkpoint of step 2" in out
    config.init_from = ""
    with pytest.raises(ConfigError, match=r"holds a run with init_from=.*, and now it is ''"):
        loop.train(config, run)


def test_a_run_as_a_bundle(ten, bundles):
    run, state = ten
    bundle = bundle_lib.read(bundles["all"])
    want = {
        "g": {"params": state.g_params, "batch_stats": state.g_batch_stats},
        "ema": {"params": state.ema_params, "batch_stats": state.ema_batch_stats},
        "d": {"params": state.d_params, "spectral": state.d_spectral},
    }
    want["g"]["spectral"] = want["ema"]["spectral"] = state.g_spectral
    assert differing(bundle.tensors, arrays(want)) == set()
    with open(os.path.join(run, "config.json")) as f:
        assert bundle.model == json.load(f)["model"]
    assert (bundle.name, bundle.truncation, bundle.class_names) == ("digits", "threshold", DIGITS)
    assert bundle.standing_images == 2 * 8
    assert bundle.source == {
        "format": "biggan-jax run",
        "files": {},
        "itr": 2000,
        "notes": [
            "Checkpoint of step 2,000; a step is 2 updates of D and one of G on 8 images each."
        ],
    }
    with pytest.raises(ConfigError, match="no checkpoint of step 7"):
        export.to_bundle(run, step=7)
