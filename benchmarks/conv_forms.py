"""Measures the forms of convolutions, resizing and attention; writes the table that chooses them.

    python -m benchmarks.conv_forms                 # what the table says, and the times beside it
    python -m benchmarks.conv_forms --write         # measures, and writes this backend's part of it
    python -m benchmarks.conv_forms --quick --write=FILE

For each operation, number of channels and size all forms that can take the shape run in turn: the
value and both gradients in one program. Compared is, on a CPU, the processor time divided by the
number of cores (what the wall time would be on an idle machine with perfect sharing, and the
steadier number on a busy one), elsewhere the wall time; of each the least of the rounds. A round
calls a program so often that it takes about 30 ms. A form has to beat the plain one by 10 %. A
batch holds so many images that the plain form has `--gflop` to do. The last line is JSON.
"""

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.models import attend, conv, forms, resample

ROUND = 0.03  # Seconds that a round of a program takes, about.
GAIN = 1.1  # What a form must be faster by than the plain one.
# Thresholds of the table: (from so many channels on, measured with so many).
CHANNELS = ((1, 3), (9, 16), (24, 24), (48, 48), (96, 96), (192, 192))
SIDES = (4, 8, 16, 32, 64)
ATTENTION_SIDES = (16, 32, 64)
WHOLE_BELOW = {"tpu": 128}  # Attention at this many pixels is in blocks;
WHOLE_BELOW_ELSEWHERE = 64  # on TPUs later, as a core has few images and plans were made so.
HOLD_THE_MAP = (forms.PLAIN, "whole")
IMAGE_SIDE = 64  # Channels on the other side of an image.


def shapes(operation, channels):
    """The pairs (input channels, output channels) that stand for a row of the table."""
    if channels == 3 and operation == "conv3x3":
        return [(3, IMAGE_SIDE), (IMAGE_SIDE, 3)]
    return [(channels, IMAGE_SIDE if channels == 3 else channels)]


def draw(*shape, dtype):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def with_gradients(f):
    return lambda g, *args: (*jax.vjp(f, *args)[1](g), f(*args))


def convolution(operation, form, side, cin, cout, gflop, dtype):
    """A form's program and its arguments, or None if it cannot take the shape."""
    k = 1 if operation == "conv1x1" else 3
    x_side = max(1, side // 2) if operation == "up_conv3x3" else side
    each = 3 * 2 * side * side * cin * cout * k * k
    batch = int(np.clip(gflop * 1e9 / each, 4, 256))
    x, w = draw(batch, x_side, x_side, cin, dtype=dtype), draw(k, k, cin, cout, dtype=dtype)
    if conv.cannot(form, x, w):
        return None
    f = lambda x, w: getattr(conv, operation)(x, w, form=form)  # noqa: E731
    g = draw(*jax.eval_shape(f, x, w).shape, dtype=dtype)
    return with_gradients(f), (g, x, w)


def resizing(operation, form, side, channels, gflop, dtype):
    """As `convolution`, of a change of size alone; a number of it counts as 100 FLOPs."""
    batch = int(np.clip(gflop * 1e9 / (100 * side * side * channels), 1, 256))
    x = draw(batch, side, side, channels, dtype=dtype)
    f = lambda x: getattr(resample, operation)(x, form=form)  # noqa: E731
    return with_gradients(f), (draw(*jax.eval_shape(f, x).shape, dtype=dtype), x)


def attention(form, side, channels, gflop, dtype):
    """As `convolution`, of softmax(q k^T) v with the widths that `channels` values have."""
    queries, keys, narrow = side * side, side * side // 4, max(1, channels // 4)
    each = 3 * 2 * queries * keys * (channels + narrow)
    batch = int(np.clip(gflop * 1e9 / each, 2, 256))
    q, k = (draw(batch, n, narrow, dtype=dtype) for n in (queries, keys))
    v = draw(batch, keys, channels, dtype=dtype)
    if attend.cannot(form, v) or (form == "cudnn" and jax.default_backend() != "gpu"):
        return None
    f = lambda q, k, v: attend.attend(q, k, v, side=side, form=form)  # noqa: E731
    return with_gradients(f), (draw(batch, queries, channels, dtype=dtype), q, k, v)


def timed(parts, clock):
    start = clock()
    for run, args in parts:
        jax.block_until_ready(run(*args))
    return clock() - start


def measure(programs, repeats):
    """{form: milliseconds} of {form: programs whose times are added}, in turns."""
    compiled = {
        form: [(jax.jit(f).lower(*args).compile(), args) for f, args in parts]
        for form, parts in programs.items()
    }
    on_cpu = jax.default_backend() == "cpu"
    cores = len(os.sched_getaffinity(0)) if on_cpu else 1
    clock = time.process_time if on_cpu else time.perf_counter
    seconds = lambda parts: timed(parts, clock) / cores  # noqa: E731
    for parts in compiled.values():
        seconds(parts)
    calls = {form: math.ceil(ROUND / max(1e-4, seconds(parts))) for form, parts in compiled.items()}
    seen = {form: [] for form in compiled}
    for _ in range(repeats):
        for form, parts in compiled.items():
            seen[form].append(sum(seconds(parts) for _ in range(calls[form])) / calls[form])
    return {form: round(1e3 * min(times), 3) for form, times in seen.items()}


def rows(quick, gflop, dtype):
    """Yields (operation, channels from, side, {form: programs})."""
    channels = CHANNELS[1:5:3] if quick else CHANNELS
    sides = (8,) if quick else SIDES
    for operation, known in conv.FORMS.items():
        for (at, width), side in itertools.product(channels, sides):
            programs = {}
            for form in known:
                parts = [
                    convolution(operation, form, side, *pair, gflop, dtype)
                    for pair in shapes(operation, width)
                ]
                if None not in parts:
                    programs[form] = parts
            at_side = max(1, side // 2) if operation == "up_conv3x3" else side
            yield operation, at, at_side, programs
    for operation in ("nearest_up2", "avg_pool2"):
        for (at, width), side in itertools.product(channels, sides):
            found = {
                form: [resizing(operation, form, side, width, gflop, dtype)]
                for form in resample.FORMS
            }
            yield operation, at, side, found
    for side in (8,) if quick else ATTENTION_SIDES:
        found = {form: attention(form, side, 48, gflop, dtype) for form in attend.FORMS}
        yield "attention", 1, side, {form: [p] for form, p in found.items() if p}


def best(times):
    form = min(times, key=lambda form: times[form])
    return form if times[form] * GAIN <= times[forms.PLAIN] else forms.PLAIN


def merged(cells):
    """{threshold: value} without those that repeat the one below; the first one begins at 1."""
    kept, last = {}, None
    for i, (at, value) in enumerate(sorted(cells.items())):
        if value != last:
            kept[str(at if i else 1)] = value
        last = value
    return kept


def as_table(winners):
    """{operation: {channels: {side: form}}} of {(operation, channels, side): form}."""
    table = {}
    for operation in sorted({key[0] for key in winners}):
        by_channels = {}
        for (name, channels, side), form in winners.items():
            if name == operation:
                by_channels.setdefault(channels, {})[side] = form
        whole = merged({channels: merged(sides) for channels, sides in by_channels.items()})
        if any(form != forms.PLAIN for sides in whole.values() for form in sides.values()):
            table[operation] = whole
    return table


def never_whole(part, backend):
    """Large maps are held in blocks, whatever is faster: they would not fit."""
    limit = WHOLE_BELOW.get(backend, WHOLE_BELOW_ELSEWHERE)
    sides = part.setdefault("attention", {"1": {"1": forms.PLAIN}})["1"]
    for side in sorted(sides, key=int):
        if int(side) >= limit and sides[side] in HOLD_THE_MAP:
            del sides[side]
    if forms.look_up({"b": {"d": part}}, "b", "d", "attention", 1, limit) in HOLD_THE_MAP:
        sides[str(limit)] = "blocked"


def write(path, backend, dtype, part, gflop):
    path = pathlib.Path(path)
    table = json.loads(path.read_text("utf-8")) if path.exists() else {}
    entry = table.setdefault(backend, {})
    entry["about"] = (
        f"measured on {jax.devices()[0].device_kind}, {jax.device_count()} device(s), jax"
        f" {importlib.metadata.version('jax')}, {gflop:g} GFLOP a program"
    )
    entry[dtype] = part
    path.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", "utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two widths, one size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gflop", type=float, help="default: 3 on a CPU, else 300")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", default="", help="the operations whose name begins so")
    parser.add_argument(
        "--write",
        nargs="?",
        const=str(pathlib.Path(forms.__file__).with_name(forms.FILE)),
        help="the table to write to; default: the package's",
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    backend = jax.default_backend()
    gflop = args.gflop or (3 if backend == "cpu" else 300)
    seen, winners = [], {}
    for operation, channels, side, programs in rows(args.quick, gflop, args.dtype):
        if not operation.startswith(args.only):
            continue
        times = measure(programs, args.repeats)
        winners[operation, channels, side] = best(times)
        now = forms.look_up(forms.table(), backend, args.dtype, operation, channels, side)
        row = {"operation": operation, "channels": channels, "side": side, "ms": times}
        seen.append(row | {"fastest": best(times), "table": now})
        if not args.json:
            text = "  ".join(f"{form} {ms:.2f}" for form, ms in times.items())
            print(f"{operation:13s} channels {channels:3d} side {side:3d}: {text} ms; {now}")
    part = as_table(winners)
    never_whole(part, backend)
    if args.write and not args.only:
        write(args.write, backend, args.dtype, part, gflop)
    result = {"benchmark": "conv_forms", "backend": backend, "dtype": args.dtype}
    device = {"device": jax.devices()[0].device_kind, "gflop": gflop}
    print(json.dumps(result | device | {"rows": seen, "part": part}))


if __name__ == "__main__":
    main()
