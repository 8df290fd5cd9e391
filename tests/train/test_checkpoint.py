import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biggan_jax.config import ConfigError
from biggan_jax.train.checkpoint import Checkpoints
from biggan_jax.train.digest import digest


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt: tuple
    ema: dict | None


def sharding(devices, *axes):
    return NamedSharding(Mesh(np.array(jax.devices()[:devices]), ("data",)), PartitionSpec(*axes))


def make_state(seed=0, devices=1):
    rng = np.random.default_rng(seed)
    odd_bits = np.array([0x7FC00001, 0xFF800005, 0x80000000, 1], np.uint32).view(np.float32)
    params = {
        "conv": {"kernel": rng.normal(size=(3, 3, 8, 16)).astype(np.float32), "bias": odd_bits},
        "gain": np.float32(rng.normal()),
        "minus_zero": -np.zeros(5, np.float32),
        "half": jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    }
    opt = optax.chain(optax.scale_by_adam(), optax.scale(-1)).init(params)
    state = State(jnp.int32(seed), params, opt, ema={"conv": params["conv"]})
    return jax.device_put(state, sharding(devices))


def abstract(state, place=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place or x.sharding), state
    )


def replace_params(state, **changes):
    return state.replace(params=state.params | changes)


def test_restored_state_is_bit_identical(tmp_path):
    state = make_state(3)
    meta = {"config": {"seed": 1}, "version": "0.1.0"}
    with Checkpoints(tmp_path / "new" / "folder", keep=2) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(3, state, meta)
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
    with Checkpoints(tmp_path / "new" / "folder", keep=2) as checkpoints:
        restored, restored_meta = checkpoints.restore(abstract(state))
    assert type(restored) is State
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert digest(restored) == digest(state)
    assert restored_meta == meta


def test_keeps_the_latest(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (2, 9, 10, 30):
            checkpoints.save(step, make_state(step), {"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 30]
        state, meta = checkpoints.restore(abstract(make_state()), step=10)
        assert (int(state.step), meta) == (10, {"step": 10})
        assert int(checkpoints.restore(abstract(make_state()))[0].step) == 30


def test_a_save_under_way_is_not_the_latest(tmp_path):
    state = {"x": jnp.arange(4 << 20, dtype=jnp.float32)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        checkpoints.save(2, state, {})
        # The second save may be done by now; it must never be seen before that.
        seen = checkpoints.latest_step()
        assert seen in (1, 2)
        if seen == 2:
            assert not list(tmp_path.glob("*tmp*"))
        checkpoints.wait()
        assert checkpoints.latest_step() == 2


def test_state_may_be_donated_while_it_is_written(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def step(x):
        return x * 2 + 1

    for devices in (1, 8):
        x = step(jax.device_put(np.arange(1 << 22, dtype=np.float32), sharding(devices)))
        wanted = np.array(x)
        with Checkpoints(tmp_path / str(devices), keep=1) as checkpoints:
            checkpoints.save(1, {"x": x}, {})
            for _ in range(3):
                x = step(x)
            jax.block_until_ready(x)
            template = {
                "x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(devices)),
            }
            restored = checkpoints.restore(template)[0]["x"]
        np.testing.assert_array_equal(restored, wanted)
        # And what was restored may be donated.
        np.testing.assert_array_equal(step(restored), wanted * 2 + 1)


def test_elastic_restore(tmp_path):
    state = make_state(5, devices=8)
    state = replace_params(
        state, wide=jax.device_put(np.arange(64, dtype=np.float32), sharding(8, "data"))
    )
    wanted = digest(state)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(1, state, {})
        for step, devices in ((2, 1), (3, 4), (4, 8)):
            restored, _ = checkpoints.restore(abstract(state, sharding(devices)))
            for leaf in jax.tree.leaves(restored):
                assert leaf.sharding.device_set == set(jax.devices()[:devices])
            assert digest(restored) == wanted
            checkpoints.save(step, restored, {})


def test_without_a_sharding_arrays_come_to_the_first_device(tmp_path):
    state = make_state(5, devices=8)
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(template)
    assert jax.tree.leaves(restored)[0].sharding.device_set == {jax.devices()[0]}
    assert digest(restored) == digest(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gain": np.zeros((2, 3), np.float32)},
            "params/gain was saved as float32[] and is wanted as float32[2, 3].",
        ),
        (
            {"half": np.zeros(7, np.float32)},
            "params/half was saved as bfloat16[7] and is wanted as float32[7].",
        ),
        (
            {"conv": {"kernel": np.zeros(2, np.int32)}},
            "params/conv/bias was saved as float32[4] and is wanted as nothing.",
        ),
        (
            {"extra": np.zeros(1, np.float32)},
            "params/extra was saved as nothing and is wanted as float32[1].",
        ),
    ],
)
def test_another_model_is_refused_in_one_sentence(tmp_path, change, message):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(), {})
        template = abstract(jax.device_put(replace_params(make_state(), **change)))
        with pytest.raises(ConfigError) as e:
            checkpoints.restore(template)
    assert str(e.value) == f"{tmp_path}/1: this checkpoint is of another model: {message}"


def test_says_which_checkpoints_there_are(tmp_path):
    template = abstract(make_state())
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with pytest.raises(ConfigError, match=r"there is no checkpoint\.$"):
            checkpoints.restore(template)
        checkpoints.save(4, make_state(), {})
        checkpoints.save(8, make_state(), {})
        with pytest.raises(ConfigError, match=r"no checkpoint of step 5; there are 4, 8\.$"):
            checkpoints.restore(template, step=5)


def test_refuses_to_save_backwards(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(4, make_state(), {})
        for step in (4, 3):
            with pytest.raises(ValueError, match=f"cannot save step {step}: .* of step 4"):
                checkpoints.save(step, make_state(), {})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    with (
        Checkpoints(tmp_path, keep=None) as checkpoints,
        pytest.raises(ValueError, match="for reading only"),
    ):
        checkpoints.save(5, make_state(), {})


def test_reading_changes_nothing(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(4, state, {"a": 1})
    # What a save under way looks like from another process, and what a damaged one does.
    shutil.copytree(tmp_path / "4", tmp_path / "5.tmp")
    shutil.copytree(tmp_path / "4", tmp_path / "6")
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        assert checkpoints.steps() == [4, 6]
        assert digest(checkpoints.restore(abstract(state))[0]) == digest(state)
    assert sorted(tmp_path.rglob("*")) == before
    with Checkpoints(tmp_path / "none", keep=None) as checkpoints:
        assert checkpoints.steps() == []
    assert not (tmp_path / "none").exists()


def test_no_thread_is_left(tmp_path):
    before = set(threading.enumerate())
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(), {})
    # Orbax closes its event loops without waiting for their threads, which then end by themselves.
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
    assert set(threading.enumerate()) <= before


KILLED = """
    import os, signal, sys
    from biggan_jax.train.checkpoint import Checkpoints
    import numpy as np, jax

    folder = sys.argv[1]
    state = {"x": jax.device_put(np.random.default_rng(0).normal(size=1 << 24).astype("float32"))}
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(1, {"x": state["x"] + 1}, {"saved": 1})
    checkpoints.wait()
    checkpoints.save(2, state, {"saved": 2})
    while not os.path.exists(os.path.join(folder, "2.tmp", "state.orbax-checkpoint-tmp")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""

CLEAN = """
    import sys
    from biggan_jax.train.checkpoint import Checkpoints
    import jax, json

    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
        template = {"x": jax.ShapeDtypeStruct((1 << 24,), "float32")}
        state, meta = checkpoints.restore(template)
        checkpoints.save(2, state, meta)
        checkpoints.wait()
        print(json.dumps([meta, checkpoints.steps()]))
"""


def run_python(code, *args):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.multiprocess
def test_kill_during_a_save_leaves_the_one_before(tmp_path):
    killed = run_python(KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = os.listdir(tmp_path)
    assert "1" in names
    assert [n for n in names if n.startswith("2") and n != "2"], "killed too late to test anything"
    resumed = run_python(CLEAN, tmp_path)
    assert json.loads(resumed.stdout) == [{"saved": 1}, [2]]
    # Not a word of Orbax', no warning, and no thread that holds the process back.
    assert resumed.stderr == "removed 2.tmp: the save of step 2 had not been finished\n"
    assert resumed.returncode == 0
    assert os.listdir(tmp_path) == ["2"]
