"""Times what checkpoints cost a run: how long a save holds up the loop, hashing, reading back.

`python -m benchmarks.checkpoints --config=configs/digits.py --steps=40 --every=10 --json`
`python -m benchmarks.checkpoints --config=configs/biggan128.py --steps=0 --json`

With `--steps=0` no step is compiled or run, the state is random, and it is saved three times. The
last line is JSON: `save_seconds` (what a call of `save` takes, each), `step_seconds` (median of
the steps that start with no save going on), `step_while_saving_seconds` (median of the others),
`on_disk_seconds` (from the call to a whole checkpoint, the last), `bytes`, `hash_seconds` (once
over all files, from memory where the system still has them) and `restore_seconds` (hashing
included).
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import manifest
from biggan_jax.train.checkpoint import Checkpoints


def random_state(config, mesh):
    rng = np.random.default_rng(0)
    draw = lambda x: jax.device_put(  # noqa: E731
        rng.standard_normal(x.shape, np.float32) if x.dtype == np.float32 else np.int32(0),
        x.sharding,
    )
    return jax.tree.map(draw, step_lib.abstract_state(config, mesh))


def run_steps(config, mesh, saved, steps, every):
    """Returns the state and the seconds of saves, of steps, and of steps beside a save."""
    batch = common.made_up_batch(config, mesh)
    state = step_lib.init_state(config, mesh)
    step_fn = step_lib.make_train_step(config, mesh)
    state, _ = step_fn(state, batch)
    saves, alone, beside = [], [], []
    for i in range(1, steps + 1):
        saving = saved.busy()
        (state, _), seconds = common.timed(step_fn, state, batch)
        (beside if saving else alone).append(seconds)
        if i % every == 0:
            saves.append(common.timed(saved.save, i, state, {})[1])
    return state, saves, alone, beside


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--folder", help="where to write and remove; default: the system's")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    config = config_lib.resolve(config_lib.load(args.config), jax.device_count())
    mesh = mesh_lib.make_mesh(config.device_count)
    folder = tempfile.mkdtemp(dir=args.folder)
    alone, beside = [], []
    try:
        with Checkpoints(folder, keep=1) as saved:
            if args.steps:
                state, saves, alone, beside = run_steps(config, mesh, saved, args.steps, args.every)
            else:
                state, saves = random_state(config, mesh), []
                for i in range(3):
                    saves.append(common.timed(saved.save, i + 1, state, {})[1])
                    saved.wait()
            saved.wait()
            start = time.perf_counter()
            saved.save(10**9, state, {})
            saved.wait()
            on_disk = time.perf_counter() - start
            place = os.path.join(folder, str(10**9))
            content = manifest.read(place)
            _, hashing = common.timed(manifest.check, place, content)
            abstract = step_lib.abstract_state(config, mesh)
            del state
            _, restoring = common.timed(saved.restore, abstract)
    finally:
        shutil.rmtree(folder)
    result = {
        "save_seconds": saves,
        "step_seconds": statistics.median(alone) if alone else None,
        "step_while_saving_seconds": statistics.median(beside) if beside else None,
        "on_disk_seconds": on_disk,
        "bytes": manifest.size(content),
        "hash_seconds": hashing,
        "restore_seconds": restoring,
        "device": jax.devices()[0].device_kind,
        "devices": config.device_count,
    }
    print(json.dumps(result | {k: v for k, v in vars(args).items() if k != "json"}))


if __name__ == "__main__":
    main()
