"""Two processes of one run: one disk or two, and checkpoints that both write and read."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

from biggan_jax.config import ConfigError
from biggan_jax.train import manifest, probe

pytestmark = pytest.mark.multiprocess


def test_one_process_writes_reads_and_leaves_nothing(tmp_path):
    probe.check_shared(str(tmp_path / "new" / "run"))
    assert os.listdir(tmp_path / "new" / "run") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"process 0 \(host .*\) cannot write there: Not a dir"):
        probe.check_shared(str(tmp_path / "file" / "run"))


START = """
    import json, os, sys
    import jax
    port, me, folders = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, me)
    from biggan_jax.config import ConfigError
    from biggan_jax.train import probe
"""


def run_two(code, *folders):
    """Runs the code in two processes with two devices each; returns what each printed last."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(START) + textwrap.dedent(code),
                str(port),
                str(i),
                *map(str, folders),
            ],
            cwd=pathlib.Path(__file__).parents[2],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, err) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, err
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


PROBE = """
    told = []
    for names in ((0, 0), (0, 1), (0, 2)):  # One disk; two; one that cannot be written to.
        try:
            probe.check_shared(folders[names[me]])
            told.append(None)
        except ConfigError as e:
            told.append(str(e))
    print(json.dumps(told))
"""


def test_a_disk_that_is_not_shared_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "file"]
    for me, (one_disk, two_disks, no_disk) in enumerate(run_two(PROBE, *folders)):
        host = socket.gethostname()[:64]
        assert one_disk is None
        assert two_disks == (
            f"{folders[me]}: process 0 (host {host}) does not find there what process 1"
            f" (host {host}) wrote; all processes need one shared disk."
        )
        here = folders[2 * me]
        assert no_disk == f"{here}: process 1 (host {host}) cannot write there: File exists."
    assert os.listdir(folders[0]) == os.listdir(folders[1]) == []


CHECKPOINTS = """
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from biggan_jax.train.checkpoint import Checkpoints

    place = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    whole = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    def make(step):
        return {"x": jax.make_array_from_callback((64, 64), place, lambda i: whole[i] * step)}

    template = {"x": jax.ShapeDtypeStruct((64, 64), np.float32, sharding=place)}
    said = []
    with Checkpoints(folders[0], keep=5, say=said.append) as saved:
        if saved.latest_step() is None:
            for step in (1, 2, 3):
                saved.save(step, make(step), {"step": step})
            saved.wait()
        state, meta = saved.restore(template)
        same = all(
            np.array_equal(s.data, whole[s.index] * meta["step"])
            for s in state["x"].addressable_shards
        )
    print(json.dumps([meta["step"], same, said]))
"""


def test_two_processes_write_one_checkpoint_and_agree_on_which_is_good(tmp_path):
    folder = tmp_path / "run"
    assert run_two(CHECKPOINTS, folder) == [[3, True, []]] * 2
    content = manifest.read(folder / "3")
    assert content["topology"]["processes"] == 2 and content["topology"]["devices"] == 4
    assert any("process_1" in name for name in content["files"])
    largest = max((folder / "3").rglob("ocdbt.process_1/d/*"), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (folder / "2" / "manifest.json").unlink()
    first, second = run_two(CHECKPOINTS, folder)
    assert first[:2] == second[:2] == [1, True]
    assert [line.split(";")[0] for line in first[2]] == [
        f"checkpoint 3 is damaged and skipped: {largest.relative_to(folder / '3')} is not what was"
        " written: its SHA-256 is another",
        "checkpoint 2 is damaged and skipped: manifest.json is missing",
    ]
    assert second[2] == []  # Process 0 speaks for all.
    assert sorted(os.listdir(folder)) == ["1", "damaged-2", "damaged-3"]
