"""The same global batches from any number of processes, in processes of their own.

50 records of 16 px on disk and 2 x 8 images a step: the borders of epochs lie within steps 3, 6, 9
and so on; step 137 holds one too.
"""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from biggan_jax.data import datasets, loader
from tests.data.made import make_config, write_bare

COUNT, SIDE, BATCH, ROWS = 50, 16, 8, 2
STOP = 137
STEPS = [*range(8), *range(STOP - 3, STOP + 4)]

# One process: its columns of some steps go to a file, and which records it read.
_PROCESS = """
import json, sys
import numpy as np
from biggan_jax.data import loader, tfds_source
from biggan_jax.data.preprocess import Recipe

directory, out, crop, columns, runs = json.loads(sys.argv[1])
source = tfds_source.open_split("bare_bytes/16", directory, "train", Recipe(16))
fill, read = source.fill, []

def counted(records, *rest):
    read.extend(records.tolist())
    fill(records, *rest)

source.fill = counted
loaded = loader.Loader(
    source, batch_size=8, num_batches=2, seed=4, cache_mib=0, crop=crop, columns=slice(*columns)
)
found = {}
for first, last in runs:
    with loaded.prefetch(first, last) as batches:
        for step, batch in batches:
            for key, array in batch.items():
                found[f"{key}{step}"] = array
assert "jax" not in sys.modules and "tensorflow" not in sys.modules
np.savez(out, read=np.array(read), **found)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bare")
    write_bare(directory, COUNT, SIDE)
    return directory


def run_all(calls):
    """Runs Python code in processes side by side: (code, argument) pairs."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(argument)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, argument in calls
    ]
    try:
        ends = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    for process, (_, err) in zip(started, ends, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in ends]


def by_processes(count, directory, folder, crop, runs):
    """What `count` processes found: {name: array}, and how many records each read."""
    each = BATCH // count
    calls, files = [], []
    for p in range(count):
        files.append(str(folder / f"{count}-{runs[0][0]}-{p}.npz"))
        columns = [p * each, (p + 1) * each]
        calls.append((_PROCESS, [str(directory), files[-1], crop, columns, runs]))
    run_all(calls)
    parts = [dict(np.load(file)) for file in files]
    read = [len(part.pop("read")) for part in parts]
    names = parts[0].keys()
    return {k: np.concatenate([part[k] for part in parts], axis=1) for k in names}, read


@pytest.mark.multiprocess
@pytest.mark.parametrize(("crop", "counts"), [("center", (1, 2, 4)), ("random_zoom", (4,))])
def test_any_number_of_processes_and_a_stop_give_the_same_batches(bare, tmp_path, crop, counts):
    config = make_config("bare_bytes/16", bare, resolution=SIDE, num_classes=3)
    whole = loader.Loader(
        datasets.open_source(config),
        batch_size=BATCH,
        num_batches=ROWS,
        seed=4,
        cache_mib=0,
        crop=crop,
    )
    expected = {f"{k}{step}": v for step in STEPS for k, v in whole.batch(step).items()}
    early, late = [0, 8], [STOP - 3, STOP + 4]
    found = {}
    for count in counts:
        found[count], read = by_processes(count, bare, tmp_path, crop, [early, late])
        assert read == [len(STEPS) * ROWS * BATCH // count] * count
    # Two processes are stopped before step 137, and four go on.
    before, _ = by_processes(2, bare, tmp_path, crop, [[STOP - 3, STOP]])
    after, _ = by_processes(4, bare, tmp_path, crop, [[STOP, STOP + 4]])
    found["stopped"] = found[4] | before | after
    assert len(before) + len(after) == 2 * 7
    for arrays in found.values():
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, expected[name])


# One of several JAX processes, two devices each: what it holds of some global batches.
_JAX_PROCESS = """
import json, sys
import jax

address, process, directory, out = json.loads(sys.argv[1])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=process)
import numpy as np
from biggan_jax.data import loader, tfds_source
from biggan_jax.data.preprocess import Recipe
from biggan_jax.parallel import mesh as mesh_lib

assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)
mesh = mesh_lib.make_mesh(4)
columns = mesh_lib.local_columns(mesh, 8)
assert columns == slice(4 * process, 4 * process + 4), columns
source = tfds_source.open_split("bare_bytes/16", directory, "train", Recipe(16))
own = dict(batch_size=8, num_batches=2, seed=4, cache_mib=0)
loaded = loader.Loader(source, columns=columns, **own)
whole = loader.Loader(source, **own)
put = lambda batch: mesh_lib.put_batch(batch, mesh)
total = jax.jit(lambda x: x.astype("int32").sum(), out_shardings=mesh_lib.replicated(mesh))
sums = []
with loaded.prefetch(136, 141, put=put) as batches:
    for step, batch in batches:
        for key, expected in whole.batch(step).items():
            array = batch[key]
            assert array.shape == expected.shape, array.shape
            assert array.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh, 1), array.ndim)
            shards = array.addressable_shards
            assert sorted(s.index[1].start for s in shards) == [4 * process, 4 * process + 2]
            for shard in shards:
                np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
        sums.append(int(total(batch["image"])))
        assert sums[-1] == int(whole.batch(step)["image"].sum())
half = mesh_lib.make_mesh(2)  # One device of each process.
assert mesh_lib.local_columns(half, 8) == columns
assert sorted(d.process_index for d in half.devices.flat) == [0, 1]
try:
    mesh_lib.make_mesh(3)
    raise SystemExit("a mesh of 3")
except mesh_lib.config_lib.ConfigError as e:
    assert "device_count=3: must be a multiple of the 2 processes" in str(e)
print(json.dumps(sums))
"""


@pytest.mark.multiprocess
def test_two_jax_processes_hold_their_parts_of_the_global_batch(bare, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    calls = [(_JAX_PROCESS, [address, p, str(bare), str(tmp_path)]) for p in range(2)]
    first, second = (json.loads(out.splitlines()[-1]) for out in run_all(calls))
    assert first == second and len(first) == 5
