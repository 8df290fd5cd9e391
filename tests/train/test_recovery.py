"""Whole runs whose disk lets them down."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biggan_jax import cli, config, files
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import digest, loop, overview
from biggan_jax.train.checkpoint import Checkpoints


def largest_file(place):
    return max((p for p in place.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def command(tiny, workdir, **changes):
    keys = {k: v for k, v in config.flatten(tiny).items() if v is not None} | changes
    return [
        "train",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        *(f"--config.{k}={v}" for k, v in keys.items()),
    ]


def inspect(capsys, workdir, *options):
    code = cli.main(["inspect", str(workdir), "--checkpoints", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tiny, tmp_path, capsys):
    workdir = tmp_path / "run"
    tiny.update(checkpoint_every=1, keep_checkpoints=1, keep_every=2)
    tiny.update(keep_best=1, best_metric="d_loss")
    whole = digest.digest(loop.train(tiny, str(workdir)))
    metrics = (workdir / "metrics.jsonl").read_text()
    reports = [json.loads(line) for line in metrics.splitlines()]
    kept = sorted({2, 4, min(reports, key=lambda report: report["d_loss"])["step"]})
    before = kept[-2]
    path = largest_file(workdir / "checkpoints" / "4")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    capsys.readouterr()

    # Sizes say nothing; hashes do.
    code, rows = inspect(capsys, workdir)
    assert code == 0 and {row["state"] for row in rows} == {"unverified"}
    assert [row["step"] for row in rows] == kept
    for row in rows:
        assert row["kimg"] == row["step"] * 16 / 1000 and row["bytes"] > 1e5
        assert row["metrics"]["d_loss"] == reports[row["step"] - 1]["d_loss"]
    code, rows = inspect(capsys, workdir, "--verify")
    reason = f"{path.relative_to(workdir / 'checkpoints' / '4')} is not what was written"
    assert code == 2
    assert [row["state"] for row in rows] == ["good"] * (len(kept) - 1) + ["damaged"]
    assert rows[-1]["reason"].startswith(reason)
    assert cli.main(["inspect", str(workdir), "--checkpoints", "--verify"]) == 2
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["step", "kimg", "written", "MiB", "made", "by", "on", "state"]
    assert table[1].startswith(f"{kept[0]} ") and table[1].endswith("1 cpu, 1 process  good")
    assert f"damaged: {reason}" in table[-1]
    # Who reads is told, and reads the one before.
    assert overview.inspect(str(workdir), digest=True)["step"] == before
    assert "checkpoint 4 is damaged and skipped" in capsys.readouterr().err

    again = loop.train(tiny, str(workdir))
    out = capsys.readouterr().out
    assert f"checkpoint 4 is damaged and skipped: {reason}" in out
    assert f"going on from the checkpoint of step {before}\n" in out
    assert digest.digest(again) == whole
    assert (workdir / "metrics.jsonl").read_text() == metrics
    code, rows = inspect(capsys, workdir, "--verify")
    assert code == 0
    assert [(row["name"], row["state"]) for row in rows] == [
        *((str(step), "good") for step in kept),
        ("damaged-4", "set aside"),
    ]


@pytest.fixture
def small_disk(tmp_path):
    """Makes disks of their own that are as small as wanted; where one may not, there are none."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        unmount()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no disk may be mounted here: {done.stderr.strip()}")
        return place

    def unmount():
        if os.path.ismount(place):
            # Lazily, as a thread of Orbax's that failed may not have closed its file yet.
            subprocess.run(["umount", "--lazy", str(place)], check=True)

    yield mount
    unmount()


def make(step):
    return {"x": jnp.asarray(np.random.default_rng(step).normal(size=1 << 16), jnp.float32)}


# Orbax ends at the first write that fails; those that fail after it have nobody to tell.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_fills_up_anywhere_in_a_save_leaves_the_one_before(small_disk):
    """A checkpoint takes some twenty files: the disk refuses the first, the second, ..."""
    failed = 0
    for room in range(1, 60):
        folder = small_disk("size=4m", "nr_inodes=100") / "checkpoints"
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.save(1, make(1), {})
        used = os.statvfs(folder).f_files - os.statvfs(folder).f_ffree
        for i in range(100 - used - room):
            (folder.parent / str(i)).touch()
        try:
            with Checkpoints(folder, keep=1) as checkpoints:
                checkpoints.save(2, make(2), {})
                checkpoints.wait()
        except files.CannotWrite as e:
            failed += 1
            assert str(e) == (
                f"{folder}: the checkpoint of step 2 cannot be written: No space left on device;"
                " that of step 1 is whole, so free space and start again."
            )
            with Checkpoints(folder, keep=1, say=lambda _: None) as checkpoints:
                assert os.listdir(folder) == ["1"]
                template = {"x": jnp.zeros(1 << 16)}
                np.testing.assert_array_equal(checkpoints.restore(template)[0]["x"], make(1)["x"])
            continue
        assert os.listdir(folder) == ["2"]
        break
    assert failed > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(small_disk, tiny, capsys):
    tiny.update(checkpoint_every=1, sample_every=100, keep_checkpoints=9)
    resolved = config.resolve(tiny, 1)
    state = step_lib.abstract_state(resolved, mesh_lib.make_mesh(1))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    disk = small_disk(f"size={int(3.5 * one)}")
    argv = command(tiny, disk / "run")
    capsys.readouterr()
    assert cli.main(argv) == 1
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("biggan train:")]
    assert line.startswith(f"biggan train: stopped: {disk}/run")
    assert "No space left on device" in line and line.endswith("so free space and start again.")
    code, rows = inspect(capsys, disk / "run", "--verify")
    assert code == 0 and 1 <= len(rows) <= 3
    assert {row["state"] for row in rows} == {"good"}
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert cli.main(argv) == 0
    assert f"going on from the checkpoint of step {len(rows)}\n" in capsys.readouterr().out
    code, rows = inspect(capsys, disk / "run", "--verify")
    assert code == 0 and [row["step"] for row in rows] == [1, 2, 3, 4]


LIMITED = """
    import resource, sys
    import jax.numpy as jnp
    from biggan_jax.train.checkpoint import Checkpoints
    from biggan_jax.files import CannotWrite

    with Checkpoints(sys.argv[1], keep=1) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(4)}, {})
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        import numpy as np
        try:
            checkpoints.save(2, {"x": jnp.asarray(np.random.default_rng(0).normal(size=4096))}, {})
            checkpoints.wait()
        except CannotWrite as e:
            print(e)
        checkpoints.save(3, {"x": jnp.ones(4)}, {})  # What was left of 2 is in no one's way.
"""


@pytest.mark.multiprocess
def test_files_that_may_not_grow(tmp_path):
    """The same without a disk of its own: the system refuses to write more of a file."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(LIMITED), str(tmp_path)],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{tmp_path}: the checkpoint of step 2 cannot be written: File too large; that of step 1"
        " is whole, so free space and start again.\n"
    )
    assert os.listdir(tmp_path) == ["3"]
