"""Times every form of the convolutions in `biggan_jax.models.conv`, and blocks made of them.

    python -m benchmarks.conv_forms [--quick] [--repeats=5] [--channels=128] [--only=block]

All variants of a row run in turn, so that a busy machine disturbs them alike. Printed are the
median wall time, and the processor time divided by the number of cores: what the wall time would be
on an idle machine with perfect sharing, and the steadier number on a busy one. The last line is
JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.models import conv

FORMS = {
    "conv3x3": ("plain", "winograd", "thin"),
    "up_conv3x3": ("plain", "fused"),
    "conv3x3_down": ("plain", "fused"),
    "conv1x1": ("plain", "matmul"),
}


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def g_block(x: jax.Array, w: dict, form: str | None) -> jax.Array:
    """`[B, H, W, C]` -> `[B, 2H, 2W, C]`, without normalisation."""
    h = conv.up_conv3x3(jax.nn.relu(x), w["one"], form=form)
    h = conv.conv3x3(jax.nn.relu(h), w["two"], form=form)
    return h + conv.nearest_up2(conv.conv1x1(x, w["skip"], form=form))


def d_block(x: jax.Array, w: dict, form: str | None) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H/2, W/2, C]`."""
    h = conv.conv3x3(jax.nn.relu(x), w["one"], form=form)
    h = conv.conv3x3_down(jax.nn.relu(h), w["two"], form=form)
    return h + conv.conv1x1(conv.avg_pool2(x), w["skip"], form=form)


def with_gradients(f: Callable) -> Callable:
    def run(x, w):
        return jax.value_and_grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1))(x, w)

    return run


def passes(f: Callable, x: jax.Array, w: jax.Array) -> dict[str, tuple[Callable, tuple]]:
    """Forward pass, input gradient and kernel gradient, each alone."""
    g = draw(*jax.eval_shape(f, x, w).shape)
    return {
        "value": (f, (x, w)),
        "dx": (lambda x, w, g: jax.vjp(lambda x: f(x, w), x)[1](g), (x, w, g)),
        "dw": (lambda x, w, g: jax.vjp(lambda w: f(x, w), w)[1](g), (x, w, g)),
    }


def measure(variants: dict[str, tuple[Callable, tuple]], repeats: int) -> dict[str, dict]:
    compiled, times = {}, {}
    for name, (f, args) in variants.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(f).lower(*args).compile()
        times[name] = {"compile_s": time.perf_counter() - start, "wall": [], "cpu": []}
        jax.block_until_ready(compiled[name](*args))
    for _ in range(repeats):
        for name, (_, args) in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(compiled[name](*args))
            times[name]["wall"].append(time.perf_counter() - wall)
            times[name]["cpu"].append(time.process_time() - cpu)
    cores = len(os.sched_getaffinity(0))
    return {
        name: {
            "wall_ms": round(1e3 * float(np.median(t["wall"])), 2),
            "cpu_ms": round(1e3 * float(np.median(t["cpu"])) / cores, 2),
            "compile_s": round(t["compile_s"], 2),
        }
        for name, t in times.items()
    }


def rows(channels: int, quick: bool) -> dict[str, dict[str, tuple[Callable, tuple]]]:
    """The variants of each row of the table, by the name of the row."""
    c = channels
    table: dict[str, dict] = {}
    shapes = [(64, 16, c, c)] if quick else [(64, 32, c, c), (64, 16, c, c), (128, 8, c, c)]
    image = [] if quick else [(64, 32, 3, c), (64, 32, c, 3)]
    for name, forms in FORMS.items():
        k = 1 if name == "conv1x1" else 3
        for b, size, cin, cout in shapes + (image if name == "conv3x3" else []):
            size_in = size // 2 if name == "up_conv3x3" else size
            x, w = draw(b, size_in, size_in, cin), draw(k, k, cin, cout)
            row = {}
            for form in forms:
                if form == ("winograd" if min(cin, cout) <= 8 else "thin"):
                    continue
                f = lambda x, w, name=name, form=form: getattr(conv, name)(x, w, form=form)  # noqa: E731
                for label, variant in passes(f, x, w).items():
                    row[f"{form} {label}"] = variant
            table[f"{name} {b}x{size_in}x{size_in}x{cin}->{cout}"] = row
    for name, block, b, size in (("g", g_block, 64, 16), ("d", d_block, 128, 16)):
        w = {"one": draw(3, 3, c, c), "two": draw(3, 3, c, c), "skip": draw(1, 1, c, c)}
        w = {key: 0.03 * value for key, value in w.items()}
        x = draw(b, size, size, c)
        table[f"{name} block {b}x{size}x{size}x{c}"] = {
            f"{form or 'chosen'} forward+backward": (
                with_gradients(lambda x, w, block=block, form=form: block(x, w, form)),
                (x, w),
            )
            for form in ("plain", None)
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape of each only")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    args = parser.parse_args()
    result = {}
    for name, variants in rows(args.channels, args.quick).items():
        if args.only not in name:
            continue
        result[name] = measure(variants, args.repeats)
        print(name)
        for variant, numbers in result[name].items():
            print(
                f"  {variant:28s} wall {numbers['wall_ms']:9.2f} ms   cpu/cores "
                f"{numbers['cpu_ms']:9.2f} ms   compile {numbers['compile_s']:5.1f} s"
            )
    print(json.dumps({"benchmark": "conv_forms", "channels": args.channels, "rows": result}))


if __name__ == "__main__":
    main()
