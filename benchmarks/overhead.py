"""Times what the watchdog and the checkpoints add to training, at the default cadence.

`python -m benchmarks.overhead --resolution=64 --ch=32 --batch=32 --json`

The last line is JSON. `watch_share`: a look at singular values and diversity every `watch_every`
steps, reading and judging the numbers of each step, and the `bad` flag with the gradients' norms
(steps with and without, in turn), as a part of the step's time. `checkpoint_share`: what a call of
`save` takes and by how much the steps beside it are longer, twice in `checkpoint_every` steps, as a
part of theirs (a save that takes half of them is waited for besides). `save_per_step`: what a call
of `save` takes, in steps. A share below 0 is noise.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from benchmarks import common
from biggan_jax import config as config_lib
from biggan_jax.gan import spectra
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train.watchdog import Watchdog

_FLAGS = ("bad", "d_grad_norm", "g_grad_norm")


def without_flags(config, mesh):
    """The step as it would be: what nobody asks for is not computed."""
    update = step_lib.Update(config, mesh)

    def step(state, batch, control):
        state, metrics = update.step(state, batch, control)
        return state, {k: v for k, v in metrics.items() if k not in _FLAGS}

    whole, cut = mesh_lib.replicated(mesh), mesh_lib.batch_sharding(mesh, 1)
    return jax.jit(
        step, in_shardings=(whole, cut, whole), out_shardings=(whole, whole), donate_argnums=0
    )


def measure_watch(config, mesh, state, batch, warmup, rounds):
    """Returns the state and the seconds of steps with and without flags, of looks, of judging."""
    control = step_lib.Control(np.int32(0), np.float32(1))
    steps = {
        "with": step_lib.make_train_step(config, mesh).lower(state, batch, control).compile(),
        "without": without_flags(config, mesh).lower(state, batch, control).compile(),
    }
    costs = {name: step.cost_analysis() for name, step in steps.items()}
    look = spectra.make_look(config, mesh)
    vectors = spectra.start(config, mesh)
    seconds = {"with": [], "without": [], "look": [], "judge": []}
    dog = Watchdog(config.watch)
    for i in range(warmup + rounds):
        for name in steps:
            (state, metrics), took = common.timed(steps[name], state, batch, control)
            seconds[name].append(took)
            if name == "with":
                start = time.perf_counter()
                numbers = {k: float(v) for k, v in jax.device_get(metrics).items()}
                dog.see(i + 1, numbers)
                seconds["judge"].append(time.perf_counter() - start)
        (_, vectors), took = common.timed(look, state, vectors)
        seconds["look"].append(took)
    medians = {name: statistics.median(values[warmup:]) for name, values in seconds.items()}
    ratio = lambda key: costs["with"][key] / costs["without"][key] - 1  # noqa: E731
    medians["flag_flops_share"], medians["flag_bytes_share"] = map(
        ratio, ("flops", "bytes accessed")
    )
    return state, steps["with"], medians


def measure_saves(step, state, batch, saves):
    """Returns seconds: of a call of `save`, of all that a save adds, of a step alone."""
    from biggan_jax.train.checkpoint import Checkpoints

    control = step_lib.Control(np.int32(0), np.float32(1))
    calls, alone, added = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as saved:
        for i in range(saves):
            for _ in range(3):
                (state, _), took = common.timed(step, state, batch, control)
                alone.append(took)
            start = time.perf_counter()
            saved.save(i + 1, state, {})
            calls.append(time.perf_counter() - start)
            beside = []
            while saved.busy():
                (state, _), took = common.timed(step, state, batch, control)
                beside.append(took)
            added.append(calls[-1] + sum(beside) - len(beside) * statistics.median(alone))
    return statistics.median(calls), statistics.median(added), statistics.median(alone)


def save_numbers(config, saves):
    """What `measure_saves` returned as a part of the result; nothing where it was left out."""
    if saves is None:
        return {}
    call, added, alone = saves
    return {
        "checkpoint_share": 2 * added / (config.checkpoint_every * alone),  # One is half-way.
        "save_per_step": call / alone,
        "save_call_seconds": call,
        "save_added_seconds": added,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--ch", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--saves", type=int, default=3, help="0: none, which needs no Orbax")
    common.add_arguments(parser, steps=5)
    args = parser.parse_args(argv)
    c = config_lib.default()
    c.batch_size = args.batch
    c.model.update(resolution=args.resolution, g_ch=args.ch, d_ch=args.ch)
    c.model.update(g_attention=(), d_attention=(), z_dim=20 * config_lib.slots(c))
    config = config_lib.resolve(c, jax.device_count())
    mesh = mesh_lib.make_mesh(config.device_count)
    if not args.json:
        print(f"compiling for {jax.devices()[0].device_kind} x {config.device_count} ...")
    batch = common.made_up_batch(config, mesh)
    state = step_lib.init_state(config, mesh)
    with common.profiled(args.profile):
        state, step, watch = measure_watch(config, mesh, state, batch, args.warmup, args.steps)
    saves = measure_saves(step, state, batch, args.saves) if args.saves else None
    flags = watch["with"] - watch["without"]
    per_step = watch["look"] / config.watch_every + watch["judge"] + flags
    result = {
        "watch_share": per_step / watch["without"],
        "watch_share_without_flag_timing": (per_step - flags) / watch["without"],
        "step_seconds": watch["with"],
        "step_seconds_without_flags": watch["without"],
        "look_seconds": watch["look"],
        "judge_seconds": watch["judge"],
        "flag_flops_share": watch["flag_flops_share"],
        "flag_bytes_share": watch["flag_bytes_share"],
        **save_numbers(config, saves),
        "watch_every": config.watch_every,
        "checkpoint_every": config.checkpoint_every,
        "device": jax.devices()[0].device_kind,
        "devices": config.device_count,
    }
    common.print_json(result, args)


if __name__ == "__main__":
    main()
