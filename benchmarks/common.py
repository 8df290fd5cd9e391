"""What the benchmarks share: arguments, profiles, a made-up batch, what the machine can do."""

import contextlib
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.parallel import mesh as mesh_lib


def add_arguments(parser, warmup=1, steps=7):
    """Adds `--warmup`, `--steps`, `--profile` and `--json`."""
    parser.add_argument("--warmup", type=int, default=warmup, help="runs that are not counted")
    parser.add_argument("--steps", type=int, default=steps, help="runs that are")
    parser.add_argument("--profile", metavar="FOLDER", help="profile these, for XProf or Perfetto")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")


def profiled(folder):
    """A context whose device work is recorded under `folder`, if one is given."""
    return jax.profiler.trace(folder) if folder else contextlib.nullcontext()


def print_json(result, args):
    """Prints the last line: the result and the setting."""
    setting = {k: v for k, v in vars(args).items() if k not in ("json", "profile")}
    print(json.dumps(result | setting))


def take_turns(calls, warmup, steps, say=lambda line: None):
    """Runs calls in turns, so that other work on the machine disturbs them alike.

    Args:
      calls: {name: function that returns once its work is done}.
      warmup: rounds that are not counted.
      steps: rounds that are.
      say: is told each time.

    Returns:
      {name: {"wall": [seconds], "cpu": [seconds of all threads of this process]}}.
    """
    seen = {name: {"wall": [], "cpu": []} for name in calls}
    for i in range(warmup + steps):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if i >= warmup:
                seen[name]["wall"].append(wall)
                seen[name]["cpu"].append(cpu)
            say(f"{i - warmup + 1 if i >= warmup else 'warm-up'}: {name} {wall:.3f} s")
    return seen


def side_by_side(calls, args):
    """Takes turns by `add_arguments`' options: a warm-up, which compiles, then what is profiled.

    Args:
      calls: {name: function that returns once its work is done}.
      args: the parsed arguments.

    Returns:
      {name: what its last call returned} and, for "wall" and "cpu", {name: [seconds]} and
      {name: their median}.
    """
    last = {}

    def keep(name, call):
        last[name] = call()

    turns = {name: functools.partial(keep, name, call) for name, call in calls.items()}
    say = (lambda line: None) if args.json else print
    take_turns(turns, args.warmup, 0, say)
    with profiled(args.profile):
        seen = take_turns(turns, 0, args.steps, say)
    seconds = {kind: {name: v[kind] for name, v in seen.items()} for kind in ("wall", "cpu")}
    medians = {
        kind: {name: statistics.median(v) for name, v in values.items()}
        for kind, values in seconds.items()
    }
    return last, seconds, medians


def made_up_batch(config, mesh):
    """A batch as the loader gives it, of noise."""
    rounds, size = config.d_steps * config.accumulation, config_lib.micro_batch_size(config)
    side, classes = config.model.resolution, config.model.num_classes
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rounds, size, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, (rounds, size), dtype=np.int32),
    }
    return mesh_lib.put_batch(batch, mesh)


def timed(call, *args):
    """Returns what a call gives, once it is done, and the seconds that took."""
    start = time.perf_counter()
    result = call(*args)
    jax.block_until_ready(result)
    return result, time.perf_counter() - start


def measured_peaks(dtype="float32", repeats=5):
    """What one device reaches by itself: {"matmul_flops", "copy_bytes"} a second, the best of some.

    A product of square matrices, and an array read once and written once, of 2**28 bytes or more.
    """
    on_cpu = jax.default_backend() == "cpu"
    n = 3072 if on_cpu else 8192
    a = jnp.ones((n, n), dtype)
    big = jnp.ones((2**26 if on_cpu else 2**30,), jnp.float32)
    best = lambda f, x: min(timed(f, x)[1] for _ in range(repeats))  # noqa: E731
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    for f, x in ((product, a), (copy, big)):
        jax.block_until_ready(f(x))
    return {
        "matmul_flops": 2 * n**3 / best(product, a),
        "copy_bytes": 2 * big.nbytes / best(copy, big),
    }


def device_memory():
    """Bytes of the first device {"in_use", "peak"}, or None where it does not say."""
    stats = jax.local_devices()[0].memory_stats()
    if not stats or "bytes_in_use" not in stats:
        return None
    return {"in_use": stats["bytes_in_use"], "peak": stats.get("peak_bytes_in_use")}
