"""Times the forms of attention side by side: value and gradients, and the memory each wants.

    python -m benchmarks.attention --json
    python -m benchmarks.attention --side=128 --channels=96 --batch=8 --dtype=bfloat16 --json

Attention after a block with `--channels` at `--side` pixels: queries side x side, keys a quarter of
them, channels / 8 wide, values channels / 2. The last line is JSON: of each form `ms` (median of
`--steps`, in turns; `cpu_ms` is processor time over the cores), `temporary_bytes` as the compiler
says, `flop_per_second`, and `table`, the form that the table names here.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from biggan_jax.models import attend, forms


def programs(args):
    """{form: (compiled, arguments)} of value and gradients."""
    queries, keys = args.side**2, args.side**2 // 4
    narrow, wide = args.channels // 8, args.channels // 2
    rng = np.random.default_rng(0)
    shapes = [(queries, narrow), (keys, narrow), (keys, wide), (queries, wide)]
    arrays = [
        jnp.asarray(rng.standard_normal((args.batch, *s), np.float32), args.dtype) for s in shapes
    ]
    made = {}
    for form in args.only.split(",") if args.only else attend.FORMS:
        wrong_place = form == "cudnn" and jax.default_backend() != "gpu"
        if attend.cannot(form, arrays[2]) or wrong_place:
            continue

        def run(q, k, v, g, form=form):
            y, pull = jax.vjp(lambda *a: attend.attend(*a, side=args.side, form=form), q, k, v)
            return y, *pull(g)

        made[form] = jax.jit(run).lower(*arrays).compile(), arrays
    return made


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", help="with commas; default: all that can run here")
    common.add_arguments(parser)
    args = parser.parse_args(argv)
    made = programs(args)
    calls = {
        form: lambda compiled=compiled, arrays=arrays: jax.block_until_ready(compiled(*arrays))
        for form, (compiled, arrays) in made.items()
    }
    _, _, medians = common.side_by_side(calls, args)
    queries, width = args.side**2, args.channels // 8 + args.channels // 2
    flops = 3 * 2 * args.batch * queries * (queries // 4) * width
    cores = len(os.sched_getaffinity(0))
    rows = {
        form: {
            "ms": 1e3 * medians["wall"][form],
            "cpu_ms": 1e3 * medians["cpu"][form] / cores,
            "temporary_bytes": made[form][0].memory_analysis().temp_size_in_bytes,
            "flop_per_second": flops / medians["wall"][form],
        }
        for form in calls
    }
    named = forms.look_up(
        forms.table(), jax.default_backend(), args.dtype, "attention", args.channels // 2, args.side
    )
    result = {"forms": rows, "table": named, "device": jax.devices()[0].device_kind}
    common.print_json(result | {"flops": flops}, args)


if __name__ == "__main__":
    main()
