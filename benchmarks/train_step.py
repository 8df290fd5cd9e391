"""Times the whole training step on this machine's devices, on made-up images.

`python -m benchmarks.train_step --resolution=32 --ch=32 --batch=64 --d-steps=2 --json`

The last line is JSON: `step_seconds` (median over `--steps` after the compile and one warm-up),
`step_seconds_min`, `real_images_per_second` (batch * d_steps / step_seconds), `flops_as_written`
(of the compiled step, by XLA's own count) and the setting. ch is the width of both networks; z is
split, the class embedding shared, there is no attention unless `--attention` names sizes.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib


def make_config(args):
    c = config_lib.default()
    c.update(batch_size=args.batch, d_steps=args.d_steps, accumulation=args.accumulation)
    attention = tuple(int(size) for size in args.attention.split(",") if size)
    c.model.update(resolution=args.resolution, num_classes=args.classes, dtype=args.dtype)
    c.model.update(g_ch=args.ch, d_ch=args.ch, g_attention=attention, d_attention=attention)
    c.model.z_dim = 20 * config_lib.slots(c)
    return config_lib.resolve(c, jax.device_count())


def measure(config, steps):
    """Returns the seconds of each step and the FLOPs of one as the compiler counts them."""
    mesh = mesh_lib.make_mesh(config.device_count)
    rounds, size = config.d_steps * config.accumulation, config_lib.micro_batch_size(config)
    side, classes = config.model.resolution, config.model.num_classes
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (rounds, size, side, side, 3), dtype=np.uint8),
        "label": rng.integers(0, classes, (rounds, size), dtype=np.int32),
    }
    batch = mesh_lib.put_batch(batch, mesh)
    state = step_lib.init_state(config, mesh)
    compiled = step_lib.make_train_step(config, mesh).lower(state, batch).compile()
    seconds = []
    for i in range(steps + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        if i:
            seconds.append(time.perf_counter() - start)
    return seconds, compiled.cost_analysis().get("flops")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--ch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--d-steps", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--attention", default="", help="sizes with commas between")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    config = make_config(args)
    if not args.json:
        print(f"compiling for {jax.devices()[0].device_kind} x {config.device_count} ...")
    seconds, flops = measure(config, args.steps)
    median = statistics.median(seconds)
    result = {
        "step_seconds": median,
        "step_seconds_min": min(seconds),
        "real_images_per_second": args.batch * args.d_steps / median,
        "flops_as_written": flops,
        "device": jax.devices()[0].device_kind,
        "devices": config.device_count,
    }
    print(json.dumps(result | {k: v for k, v in vars(args).items() if k != "json"}))


if __name__ == "__main__":
    main()
