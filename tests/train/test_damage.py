"""Damaged checkpoints are named and skipped; nothing else than what was written is ever loaded."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from biggan_jax import config
from biggan_jax.config import ConfigError
from biggan_jax.train import listing, manifest
from biggan_jax.train.checkpoint import Checkpoints
from biggan_jax.train.digest import digest

# Orbax closes its event loop at the first array that fails, while TensorStore still reads others;
# when one of those ends later, it finds the loop closed, and Python prints that it ignores this.
LATE_READS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(step):
    """Sharded and replicated arrays, each too large and too random to be stored among others."""
    rng = np.random.default_rng(step)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated, sharded = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "g": {"kernel": jax.device_put(draw(64, 64), replicated)},
        "moments": jax.device_put(draw(64, 64), sharded),
        "table": jax.device_put(rng.integers(-(2**31), 2**31, (64, 64), np.int32), sharded),
        "half": jax.device_put(draw(64, 128).astype(jax.numpy.bfloat16), sharded),
        "step": jax.device_put(np.int32(step), replicated),
    }


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of steps 2 and 4, not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder, keep=5) as checkpoints:
        for step in (2, 4):
            checkpoints.save(step, make_state(step), {"step": step, "kimg": step / 8})
    return folder


def files_of(place):
    return sorted(p for p in place.rglob("*") if p.is_file())


def flip(path, offset, bit):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def damage(place, rng):
    """One of the four kinds, at a random place of a random file; returns the file."""
    path = rng.choice([p for p in files_of(place) if p.stat().st_size])
    kind, size = rng.integers(4), path.stat().st_size
    if kind == 0:
        path.write_bytes(path.read_bytes()[: rng.integers(size)])
    elif kind == 1:
        flip(path, rng.integers(size), rng.integers(8))
    elif kind == 2:
        path.unlink()
    else:
        path.write_bytes(b"")
    return path


def check_the_one_before_is_restored(folder, damaged_file):
    said = []
    with Checkpoints(folder, keep=5, say=said.append) as checkpoints:
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert digest(state) == digest(make_state(2)) and meta["step"] == 2
        [line] = said
        name = damaged_file.relative_to(folder / "4").as_posix()
        assert line.startswith(f"checkpoint 4 is damaged and skipped: {name}"), line
        assert line.endswith("; it is kept as damaged-4")
        # It does not count any more, is still there, and does not bar its step.
        assert checkpoints.steps() == [2] and (folder / "damaged-4").is_dir()
        return checkpoints, state


@pytest.mark.parametrize("seed", range(40))
def test_every_damage_is_caught(saved, tmp_path, seed):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    damaged = damage(folder / "4", np.random.default_rng(seed))
    check_the_one_before_is_restored(folder, damaged)


def where_tensors_lie(place):
    """Returns {chunk of a tensor: (file, offset, length)}, as the database in it says."""
    base = ts.KvStore.open(f"file://{place}/").result()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"]["location"]
    found = {}
    for entry in ts.ocdbt.dump(base, node=root).result()["entries"]:
        name, chunk = entry["key"].decode().rsplit("/", 1)
        if chunk != ".zarray":
            # Small ones lie in the node itself.
            location = entry.get("indirect_value", root)
            _, path, offset, length = re.fullmatch(r"(\w+):(.*):(\d+):(\d+)", location).groups()
            found[f"{name}/{chunk}"] = place / path.replace(":", ""), int(offset), int(length)
    return found


@LATE_READS
def test_a_bit_in_any_tensor_is_caught(saved, tmp_path):
    rng = np.random.default_rng(0)
    chunks = where_tensors_lie(saved / "4" / "state")
    names = {name.split("/")[0] for name in chunks}
    assert names == {"g.kernel", "moments", "table", "half", "step"}
    assert len(chunks) >= 3 * 8 + 2
    unnoticed = 0
    for number, (path, offset, length) in enumerate(chunks.values()):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        path = folder / path.relative_to(saved)
        flip(path, offset + length // 2 + rng.integers(length // 4), rng.integers(8))
        # Without its manifest, Orbax would have read it.
        with ocp.StandardCheckpointer() as orbax:
            try:
                orbax.restore(folder / "4" / "state", abstract(make_state(0)))
                unnoticed += 1
            except ValueError:
                pass
        check_the_one_before_is_restored(folder, path)
    assert unnoticed


def test_where_none_is_good_each_is_named_and_nothing_is_moved(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "2" / "manifest.json").unlink()
    last = files_of(folder / "4" / "state")[-1]
    last.write_bytes(last.read_bytes() + b"x")
    before = files_of(folder)
    with Checkpoints(folder, keep=5) as checkpoints:
        with pytest.raises(ConfigError) as e:
            checkpoints.restore(abstract(make_state(0)))
        size = last.stat().st_size
        reason = f"{last.relative_to(folder / '4')} has {size:,} bytes of {size - 1:,}"
        assert str(e.value) == (
            f"{folder}: every checkpoint is damaged: 4: {reason}; 2: manifest.json is missing."
        )
        with pytest.raises(ConfigError) as e:
            checkpoints.restore(abstract(make_state(0)), step=4)
        assert str(e.value) == f"{folder}/4: the checkpoint is damaged: {reason}."
    assert files_of(folder) == before


def test_reading_names_a_damaged_one_and_leaves_it(saved, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    (folder / "4" / "state" / "_METADATA").unlink()
    before = files_of(folder)
    with Checkpoints(folder, keep=None) as checkpoints:
        _, meta = checkpoints.restore(abstract(make_state(0)))
    assert meta["step"] == 2 and files_of(folder) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "checkpoint 4 is damaged and skipped: state/_METADATA is missing\n"


def test_a_step_may_be_saved_again_and_be_damaged_again(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    for name in ("damaged-4", "damaged-4-2"):
        (folder / "4" / "state" / "_METADATA").unlink()
        with Checkpoints(folder, keep=1, say=lambda _: None) as checkpoints:
            state, _ = checkpoints.restore(abstract(make_state(0)))
            assert digest(state) == digest(make_state(2)) and (folder / name).is_dir()
            checkpoints.save(4, make_state(4), {"step": 4})
            checkpoints.wait()
            # What is set aside does not count among those kept, and is not removed.
            assert checkpoints.steps() == [4] and (folder / name).is_dir()
        shutil.copytree(saved / "2", folder / "2")
    with Checkpoints(folder, keep=1) as checkpoints:
        assert digest(checkpoints.restore(abstract(make_state(0)))[0]) == digest(make_state(4))


def test_a_checkpoint_under_another_name_is_not_that_step(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    os.rename(folder / "4", folder / "6")
    with (
        Checkpoints(folder, keep=None) as checkpoints,
        pytest.raises(ConfigError, match=r"/6: the checkpoint is damaged: its manifest is that of"),
    ):
        checkpoints.restore(abstract(make_state(0)), step=6)


def save_as_before_manifests(folder, step):
    """What earlier versions wrote."""
    with ocp.CheckpointManager(folder) as manager:
        state = ocp.args.StandardSave(make_state(step))
        manager.save(step, args=ocp.args.Composite(state=state, meta=ocp.args.JsonSave({"a": 1})))


@LATE_READS
def test_checkpoints_of_before_manifests_are_read_and_said_to_be_unverified(tmp_path):
    for step in (2, 4):
        save_as_before_manifests(tmp_path, step)
    said = []
    with Checkpoints(tmp_path, keep=5, say=said.append) as checkpoints:
        state, meta = checkpoints.restore(abstract(make_state(0)))
        assert digest(state) == digest(make_state(4)) and meta == {"a": 1}
        words = "carries no manifest, so it cannot be verified"
        assert said == [f"checkpoint 4 {words}"]
        # What can be told from it being unreadable is told.
        for data in (tmp_path / "4" / "state").rglob("d/*"):
            data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
        state, _ = checkpoints.restore(abstract(make_state(0)))
        assert digest(state) == digest(make_state(2))
        assert said[1:3] == [f"checkpoint 4 {words}", f"checkpoint 2 {words}"]
        assert said[3].startswith("checkpoint 4 is damaged and skipped: it cannot be read: ")
        # And the run goes on with manifests.
        checkpoints.save(6, make_state(6), {})
        checkpoints.wait()
        assert list(checkpoints.manifests()) == [6]


KILLED_BEFORE_THE_MANIFEST = """
    import os, signal, sys
    from biggan_jax.train import manifest
    from biggan_jax.train.checkpoint import Checkpoints
    from tests.train.test_damage import make_state

    manifest.write = lambda folder, about: os.kill(os.getpid(), signal.SIGKILL)
    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
        checkpoints.save(6, make_state(6), {})
"""


@pytest.mark.multiprocess
def test_killed_between_orbax_and_the_manifest_is_half_written(saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_BEFORE_THE_MANIFEST), folder],
        cwd=pathlib.Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    # Orbax had finished, and yet the one before is whole and the latest.
    assert (folder / "6.tmp" / "state" / "_METADATA").exists()
    said = []
    with Checkpoints(folder, keep=2, say=said.append) as checkpoints:
        assert said == ["removed 6.tmp: the save of step 6 had not been finished"]
        assert not (folder / "6.tmp").exists()
        state, _ = checkpoints.restore(abstract(make_state(0)))
        assert digest(state) == digest(make_state(4)) and len(said) == 1
        checkpoints.save(6, make_state(6), {})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 6]


def test_what_was_left_half_done_is_listed_removed_and_named(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    os.rename(folder / "2", folder / "2.old")
    os.rename(folder / "4", folder / "4.tmp")
    shutil.copytree(saved / "4", folder / "6.orbax-checkpoint-tmp-123")
    (tmp_path / "config.json").write_text(config.to_json(config.resolve(config.default(), 1)))
    assert listing.checkpoints(str(tmp_path)) == [
        {"name": "2.old", "state": "half-removed"},
        {"name": "4.tmp", "state": "half-written"},
        {"name": "6.orbax-checkpoint-tmp-123", "state": "half-written"},
    ]
    said = []
    with Checkpoints(folder, keep=1, say=said.append) as checkpoints:
        assert checkpoints.latest_step() is None
    assert os.listdir(folder) == []
    assert said == [
        "removed 2.old: the removal of step 2 had not been finished",
        "removed 4.tmp: the save of step 4 had not been finished",
        "removed 6.orbax-checkpoint-tmp-123: the save of step 6 had not been finished",
    ]


def test_a_manifest_says_what_it_should(saved):
    content = manifest.read(saved / "4")
    assert set(content["files"]) == {
        p.relative_to(saved / "4").as_posix()
        for p in files_of(saved / "4")
        if p.name != "manifest.json"
    }
    assert content["step"] == 4 and content["meta"] == {"step": 4, "kimg": 0.5}
    assert content["topology"] == {
        "processes": 1,
        "devices": 8,
        "platform": "cpu",
        "kind": jax.devices()[0].device_kind,
    }
    assert content["versions"]["jax"] == jax.__version__
    assert set(content["versions"]) == {"biggan-jax", *manifest.PACKAGES}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", content["time"])


def test_no_bit_of_a_manifest_can_change_unseen(saved, tmp_path):
    shutil.copytree(saved / "4", tmp_path / "4")
    path = tmp_path / "4" / "manifest.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for offset in rng.choice(len(whole), 400, replace=False):
        flip(path, offset, rng.integers(8))
        with pytest.raises(manifest.Damaged, match=r"^manifest\.json is not what was written$"):
            manifest.read(tmp_path / "4")
        path.write_bytes(whole)
    assert manifest.read(tmp_path / "4")["step"] == 4
