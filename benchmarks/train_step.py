"""Times the whole training step on this machine's devices, on made-up images.

    python -m benchmarks.train_step --resolution=32 --ch=32 --batch=64 --d-steps=2 --json
    python -m benchmarks.train_step --config=configs/biggan128.py --batch=256 --dtype=bfloat16

The last line is JSON: `step_seconds` (median of `--steps` after the compile and `--warmup`),
`step_seconds_min`, `cpu_seconds` (of all threads), `real_images_per_second` (batch * d_steps /
step_seconds), `flops_as_written` and `flops_needed` of the networks (`gan/flops.py`),
`flops_of_xla` (what it counts in its own operations), `bytes_of_xla`, `mfu` and `mfu_as_written`
(their rates over the `peak`, by `peak_source`), `memory` of a device as it says itself and
`memory_compiled` as the compiler does, and the setting. ch is the width of both networks; z is
split, the class embedding shared, there is no attention unless `--attention` names sizes.
"""

import argparse
import pathlib
import statistics

import jax

from benchmarks import common
from biggan_jax import config as config_lib
from biggan_jax.gan import flops
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.parallel import slices


def add_model_arguments(parser):
    parser.add_argument("--config", help="FILE.py; then --resolution, --ch, ... are not read")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--ch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--d-steps", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--attention", default="", help="sizes with commas between")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--one-g-pass", action="store_true", help="optim.one_g_pass")


def make_config(args):
    c = config_lib.load(args.config) if args.config else config_lib.default()
    c.update(batch_size=args.batch, d_steps=args.d_steps, accumulation=args.accumulation)
    c.model.update(dtype=args.dtype, remat=args.remat)
    c.optim.one_g_pass = args.one_g_pass
    if not args.config:
        sizes = tuple(int(size) for size in args.attention.split(",") if size)
        c.model.update(resolution=args.resolution, num_classes=args.classes)
        c.model.update(g_ch=args.ch, d_ch=args.ch, g_attention=sizes)
        # D's last size, the image's own, has no block in D that ends there.
        c.model.d_attention = tuple(size for size in sizes if size < args.resolution)
        c.model.z_dim = 20 * config_lib.slots(c)
    return config_lib.resolve(c, jax.device_count())


class Ours:
    """The compiled step with its state; a call is a step, done when it returns."""

    def __init__(self, config):
        mesh = mesh_lib.make_mesh(config.device_count)
        self.batch = common.made_up_batch(config, mesh)
        self.state = step_lib.init_state(config, mesh)
        step = step_lib.make_train_step(config, mesh)
        self.compiled = step.lower(self.state, self.batch).compile()

    def __call__(self):
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def memory_compiled(self):
        sizes = self.compiled.memory_analysis()
        names = ("argument", "output", "alias", "temp", "generated_code")
        return {name: getattr(sizes, f"{name}_size_in_bytes") for name in names}


def peak(config):
    """FLOP/s of all devices and where the figure is from."""
    kind = jax.devices()[0].device_kind
    chip = slices.of_device(kind)
    if chip is not None:
        rate = slices.matrix_rate(chip, config.model.dtype) / chip.devices
        return rate * config.device_count, chip.source
    measured = common.measured_peaks(config.model.dtype)["matmul_flops"]
    # Simulated devices share the machine's cores.
    return measured, "a square matrix product, measured here"


def numbers(config, wall, cpu, ours):
    """The result of a timed step."""
    step_seconds = statistics.median(wall)
    costs, needs = ours.compiled.cost_analysis(), flops.step(config)
    rate, source = peak(config)
    return {
        "step_seconds": step_seconds,
        "step_seconds_min": min(wall),
        "cpu_seconds": statistics.median(cpu),
        "real_images_per_second": config.batch_size * config.d_steps / step_seconds,
        "flops_as_written": needs.as_written,
        "flops_needed": needs.needed,
        "flops_of_xla": costs.get("flops"),
        "bytes_of_xla": costs.get("bytes accessed"),
        "mfu": needs.needed / step_seconds / rate,
        "mfu_as_written": needs.as_written / step_seconds / rate,
        "peak": rate,
        "peak_source": source,
        "memory": common.device_memory(),
        "memory_compiled": ours.memory_compiled(),
        "device": jax.devices()[0].device_kind,
        "devices": config.device_count,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_arguments(parser)
    common.add_arguments(parser)
    parser.add_argument("--hlo", help="a file to write the compiled text to")
    args = parser.parse_args(argv)
    config = make_config(args)
    say = (lambda line: None) if args.json else print
    say(f"compiling for {jax.devices()[0].device_kind} x {config.device_count} ...")
    ours = Ours(config)
    if args.hlo:
        pathlib.Path(args.hlo).write_text(ours.compiled.as_text(), "utf-8")
    _, spent, _ = common.side_by_side({"ours": ours}, args)
    common.print_json(numbers(config, spent["wall"]["ours"], spent["cpu"]["ours"], ours), args)


if __name__ == "__main__":
    main()
