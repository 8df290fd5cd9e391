import json
import math
import re
import types

import jax
import numpy as np
import pytest

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train.checkpoint import Checkpoints
from tests.gan.test_step import make_batch, relative

DEVICES = 8
KINDS = {"alone": ("data", 1)} | {name: (name, DEVICES) for name in ("data", "zero1", "fsdp")}
KINDS |= {"fsdp of two slices": ("fsdp", DEVICES)}


@pytest.fixture(scope="module", autouse=True)
def everything_counts():
    """Weights of a small model are cut up too, and its sigmas found together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_lib, "_SMALL", 0)
        patch.setattr("biggan_jax.gan.regularizers._WORTH_SHARING", 0)
        patch.setattr("biggan_jax.gan.sigmas._WORTH_SHARING", 0)
        yield


def config_of(parallel, devices=DEVICES, dtype="float32"):
    c = config_lib.default()
    c.model.dtype = dtype
    c.model.update(resolution=16, g_ch=4, d_ch=4, num_classes=5, shared_dim=8, z_dim=12)
    c.model.update(g_attention=(), d_attention=())
    c.update(batch_size=16, parallel=parallel)
    c.optim.g_ortho = 0.1
    c.ema.update(start=0, decay=0.5)
    return config_lib.resolve(c, devices)


@pytest.fixture(scope="module")
def runs():
    found = {}
    for name, (parallel, devices) in KINDS.items():
        with pytest.MonkeyPatch.context() as patch:
            if "slices" in name:
                patch.setattr(mesh_lib, "slice_index", lambda device: device.id % 2)
            found[name] = run(config_of(parallel, devices), mesh_lib.make_mesh(devices))
    return found


def run(config, mesh):
    state = step_lib.init_state(config, mesh)
    step = step_lib.make_train_step(config, mesh).lower(state, make_batch(config, mesh))
    step = step.compile()
    seen = []
    for i in range(2):
        state, metrics = step(state, make_batch(config, mesh, i))
        seen.append(metrics)
    return config, mesh, step, state, seen


PAIRS = [("data", "zero1"), ("data", "fsdp"), ("data", "fsdp of two slices"), ("alone", "data")]


@pytest.mark.parametrize("one, other", PAIRS)
def test_it_is_the_same_training(runs, one, other):
    """With ZeRO-1, FSDP and without; on several slices; sharing sigmas, and on one device."""
    (*_, whole, whole_seen), (*_, parts, parts_seen) = runs[one], runs[other]
    for a, b in zip(whole_seen, parts_seen, strict=True):
        for name in a:  # Sums in another order.
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5, err_msg=name)
    kernels = 0
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(whole), jax.tree.leaves(parts), strict=True
    ):
        if "kernel" in str(path[-1]):
            kernels += 1
            assert relative(b, a) < 1e-4, path
        # The gradient of a bias before batch norm is rounding, and Adam makes steps of it.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=str(path))
    assert kernels > 40


@pytest.mark.parametrize("parallel", ["zero1", "fsdp"])
def test_each_device_keeps_its_part(runs, parallel):
    *_, state, _ = runs[parallel]
    kernels = lambda *trees: [tree["block1"]["conv1"]["kernel"] for tree in trees]  # noqa: E731
    weights = kernels(state.g_params, state.d_params)
    cut = kernels(state.ema_params, state.g_opt[0].nu, state.d_opt[0].nu)
    for kernel in cut + (weights if parallel == "fsdp" else []):
        shards = kernel.addressable_shards
        # Eight input channels each.
        parts = min(DEVICES, kernel.shape[2] // 8)
        assert len(shards) == DEVICES and shards[0].data.size * parts == kernel.size and parts > 1
    for kernel in weights:
        assert kernel.sharding.is_fully_replicated == (parallel == "zero1")


def test_it_changes_no_more_than_who_works_on_what(runs):
    flops = {name: step.cost_analysis()["flops"] for name, (_, _, step, *_) in runs.items()}
    assert flops["data"] < flops["alone"] / 4
    assert flops["zero1"] < flops["data"]
    for parallel in ("zero1", "fsdp"):
        assert "all-gather" in runs[parallel][2].as_text()


def groups(text, kind):
    """The groups of devices, by their places in the mesh, of each collective of a kind.

    XLA writes lists, `{{0,1},{2,3}}`, or a range of numbers of some shape, turned and reshaped:
    into groups, as in `[4,2]<=[2,2,2]T(1,0,2)`, or into a mesh of whose axes some are a group, as
    in `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    turned = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    for line in re.findall(rf" {kind}(?:-start)?\(.*", text):
        where = line.partition("replica_groups=")[2]
        mesh = re.match(rf"mesh\[(.*?)\](?:, device_ids=\({turned}\))? \{{(.*?)\}}", where)
        if where.startswith("{"):
            yield json.loads(re.match(r"\S+\}", where)[0].translate(str.maketrans("{}", "[]")))
            continue
        if not mesh:
            shape, *how = re.match(rf"\[([\d,]+)\]<={turned}", where).groups()
            yield turn(*how).reshape(numbers(shape)).tolist()
            continue
        axes, *how, over = mesh.groups()
        shape, names = numbers(",".join(re.findall(r"=(\d+)", axes))), re.findall(r"'(\w+)'", axes)
        grid = turn(*how) if how[0] else np.arange(math.prod(shape))
        last = [names.index(name) for name in re.findall(r"'(\w+)'", over)]
        grid = np.moveaxis(grid.reshape(shape), last, range(-len(last), 0))
        yield grid.reshape(-1, math.prod(shape[axis] for axis in last)).tolist()


def numbers(text):
    return [int(n) for n in text.split(",")]


def turn(sides, order):
    grid = np.arange(math.prod(numbers(sides))).reshape(numbers(sides))
    return grid.transpose(numbers(order) if order else None)


def test_slices_gather_among_their_own(runs):
    """The slower network carries sums alone; a slice holds all parts and stands side by side."""
    _, mesh, step, state, _ = runs["fsdp of two slices"]
    assert [d.id for d in mesh.devices] == [0, 2, 4, 6, 1, 3, 5, 7]
    text = step.as_text()
    for kind in ("all-gather", "all-to-all", "reduce-scatter"):
        found = list(groups(text, kind))
        assert all(len({place // 4 for place in group}) == 1 for each in found for group in each)
        assert len(found) > 40 or kind != "all-gather"
    assert [list(range(8))] in list(groups(text, "all-reduce"))
    for pairs in re.findall(r"source_target_pairs=(\S+?\}\})", text):
        for a, b in re.findall(r"(\d+),(\d+)", pairs):
            assert int(a) // 4 == int(b) // 4
    kernel = state.g_params["block1"]["conv1"]["kernel"]
    parts = {}
    for shard in kernel.addressable_shards:
        parts.setdefault(shard.device.id % 2, set()).add(str(shard.index))
    assert parts[0] == parts[1] and len(parts[0]) > 1


def test_which_slice_a_device_is_in():
    device = lambda platform, **more: types.SimpleNamespace(platform=platform, **more)  # noqa: E731
    assert mesh_lib.slice_index(device("tpu", slice_index=3)) == 3
    assert mesh_lib.slice_index(device("gpu", partition_index=2)) == 2
    assert mesh_lib.slice_index(device("tpu")) == mesh_lib.slice_index(jax.devices()[0]) == 0


def test_slices_of_unlike_size_are_refused(monkeypatch):
    monkeypatch.setattr(mesh_lib, "slice_index", lambda device: int(device.id > 2))
    with pytest.raises(config_lib.ConfigError, match="3 of slice 0, 5 of slice 1; each slice must"):
        mesh_lib.make_mesh(8)


def test_a_checkpoint_goes_on_either_way(runs, tmp_path):
    _, mesh, _, state, _ = runs["zero1"]
    with Checkpoints(tmp_path, keep=1) as saved:
        saved.save(2, state, {})
    fewer = mesh_lib.make_mesh(2)
    for place, parallel in ((mesh, "data"), (mesh, "fsdp"), (fewer, "zero1")):
        with Checkpoints(tmp_path, keep=None) as saved:
            got, _ = saved.restore(step_lib.abstract_state(config_of(parallel), place))
        jax.tree.map(np.testing.assert_array_equal, got, state)
        kernel = got.ema_params["block1"]["conv1"]["kernel"]
        assert kernel.sharding.is_fully_replicated == (parallel == "data")
        assert len(kernel.sharding.device_set) == place.size


def test_fsdp_is_nothing_on_one_device():
    texts = []
    for parallel in ("fsdp", "data"):
        config, mesh = config_of(parallel, 1, dtype="bfloat16"), mesh_lib.make_mesh(1)
        state, batch = step_lib.abstract_state(config, mesh), make_batch(config, mesh)
        jaxpr = jax.make_jaxpr(step_lib.Update(config, mesh).judge)
        images = batch["image"][0].astype("float32")
        texts.append(str(jaxpr(state.d_params, state.d_spectral, images, batch["label"][0])))
    assert texts[0] == texts[1]


def test_fsdp_gathers_in_the_dtype_of_convolutions():
    config, mesh = config_of("fsdp", dtype="bfloat16"), mesh_lib.make_mesh(DEVICES)
    state = step_lib.abstract_state(config, mesh)
    step = step_lib.make_train_step(config, mesh)
    text = step.lower(state, make_batch(config, mesh)).as_text()
    kernel = "x".join(map(str, state.d_params["block1"]["conv1"]["kernel"].shape))
    constrained = re.findall(rf"sharding_constraint .*tensor<{kernel}x(\w+)>", text)
    assert set(constrained) == {"bf16", "f32"}  # Gathered; gradients and updates.
    held = jax.eval_shape(step_lib.Update(config, mesh).step, state, make_batch(config, mesh))[0]
    assert {x.dtype.name for x in jax.tree.leaves(held)} == {"float32", "int32"}


@pytest.mark.parametrize(
    ("shape", "count", "parts"),
    [
        ((3, 3, 1536, 1536), 8, (1, 1, 8, 1)),
        ((3, 3, 6, 40), 8, (1, 1, 2, 1)),
        ((3, 3, 3, 5), 8, None),
        ((12, 4, 7), 4, (1, 4, 1)),
        # Whole tiles of eight input channels, where there are some.
        ((3, 3, 32, 40), 8, (1, 1, 4, 1)),
        ((1, 1, 12, 40), 8, (1, 1, 4, 1)),
        ((40,), 8, None),
        ((), 8, None),
    ],
)
def test_spread(shape, count, parts):
    sharding = mesh_lib.spread(mesh_lib.make_mesh(count), shape)
    if parts is None:
        assert sharding.is_fully_replicated
        return
    want = tuple(n // k for n, k in zip(shape, parts, strict=True))
    assert sharding.shard_shape(shape) == want
    assert [d.id for d in sharding.mesh.devices.flat] == list(range(count))


def test_small_ones_are_held_whole(monkeypatch):
    monkeypatch.setattr(mesh_lib, "_SMALL", 2**14)
    assert mesh_lib.spread(mesh_lib.make_mesh(8), (8, 8)).is_fully_replicated
