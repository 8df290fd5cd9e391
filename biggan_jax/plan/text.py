"""Plans as text for people."""

from collections.abc import Mapping
from typing import Any

from biggan_jax.parallel.slices import GIB
from biggan_jax.plan import bounds

_PARTS = {
    "state": "state",
    "params": "parameters",
    "optimizer": "optimizer",
    "ema": "EMA",
    "statistics": "statistics and u",
    "batch": "batch",
    "padding": "padding of layouts",
    "temporaries": "temporaries",
    "program": "program",
    "gradients": "gradients",
    "activations": "activations",
    "reserve": "reserve",
}
_BOUNDS = """\
Bounds are bounds, no predictions: each says what a step cannot beat by one thing alone, and the
run will be slower. Rates are as published (--json has the sources; clocks of v6e and tpu7x are not
published but derived)."""
_ESTIMATED = """\
GPU rows are estimates: nothing was compiled for a GPU, and nothing was measured on one. Memory is
counted from shapes and from what JAX keeps for the backward pass, with a tenth and 1.5 GiB added. A
step is bounded by the FLOPs that the networks need at the published peak alone: no recomputing, no
memory traffic, no links. The run will be slower."""
_NETWORK = "What goes between slices is not bounded: the rate of that network is not published."
_QUICK = "Of a quick compile, bytes, cycles and the compiler's roofline would say nothing."


def text(answer: Mapping[str, Any]) -> str:
    """Returns what `search.compare` found, as text."""
    plans = answer["plans"]
    blocks = [_one(row) for row in plans] if len(plans) == 1 else [_table(plans)]
    for name, tried in answer["tried"].items():
        blocks.append(_tried(name, tried))
    compiled = [row for row in plans if not row["estimated"]]
    if len(compiled) < len(plans):
        blocks.append(_ESTIMATED)
    if any(row["fits"] for row in compiled):
        blocks.append(f"{_BOUNDS}\n{_QUICK}" if compiled[0]["quick"] else _BOUNDS)
    several = [row for row in compiled if row["slice"]["slices"] > 1 and row["fits"]]
    if any("network" not in row["bounds_seconds"] for row in several):
        blocks.append(_NETWORK)
    if "cheapest" in answer:
        best = answer["cheapest"]
        how = "nothing fits" if best is None else f"{_setting(best)}, {_cost(best)}"
        blocks.append(f"cheapest by these bounds: {how}")
    return "\n\n".join(blocks)


def verdict(row: Mapping[str, Any]) -> str:
    """Returns in a line whether a plan fits, or is estimated to, with need and limit."""
    limit = _gib(row["limit_bytes"])
    if row["estimated"]:
        fits = "to fit" if row["fits"] else "not to fit"
        return f"estimated {fits}: needs about {_gib(row['need_bytes'])} of {limit} GiB"
    if row["fits"]:
        return f"fits: needs {_gib(row['need_bytes'])} of {limit} GiB"
    if row["need_bytes"] is None:
        return f"does not fit in {limit} GiB; the compiler says: {row['compiler_says']}"
    return f"does not fit: needs {_gib(row['need_bytes'])} GiB of {limit}"


def _one(row):
    where, chip = row["slice"], row["slice"]["chip"]
    times = f"{where['slices']} slices of " if where["slices"] > 1 else ""
    made_of = (
        f"{where['chips']} {chip['name']} GPU(s)"
        if row["estimated"]
        else f"{where['chips']} {chip['name']} chips ({times}{where['topology']}),"
        f" {where['cores']} cores, {where['devices']} devices"
    )
    lines = [
        f"{row['config']} on {where['name']}: {made_of}, {where['hosts']} host(s)",
        f"batch {row['batch_size']}, {row['images_a_device']} image(s) a device and forward pass,"
        f" accumulation {row['accumulation']}, {row['dtype']} convolutions,"
        f" remat {'on' if row['remat'] else 'off'}; G {row['parameters']['G']:,} and"
        f" D {row['parameters']['D']:,} parameters",
        "",
        f"{'estimated memory' if row['estimated'] else 'HBM'} of a device, GiB",
    ]
    for part, name in _PARTS.items():
        if part in row["memory"]:
            lines.append(f"  {name:<20} {row['memory'][part] / GIB:8.3f}")
    for whole in ("peak", "total"):
        if whole in row["memory"]:
            lines.append(f"  {whole:<20} {row['memory'][whole] / GIB:8.3f}")
    lines.append(verdict(row))
    if row["estimated"]:
        most = row["largest_images_a_device"]
        lines.append(f"largest micro-batch that is estimated to fit: {most} image(s) a device")
    if not row["fits"]:
        return "\n".join(lines)
    lines += ["", *(_needed(row) if row["estimated"] else _counted(row))]
    lines += ["", "a step takes at least, in ms"]
    for name, value in row["bounds_seconds"].items():
        rules = "  <- rules" if name == row["ruling"] else ""
        lines.append(f"  {bounds.NAMES[name]:<30} {1e3 * value:9.2f}{rules}")
    lines.append(
        f"at most {row['images_per_second']:,.0f} real images/s; at least {row['hours']:.1f} hours"
        f" to {row['num_steps']:,} steps, {_cost(row)}"
    )
    return "\n".join(lines)


def _needed(row):
    units = "TF32" if row["dtype"] == "float32" else "bfloat16"
    return [
        f"{row['flops']:.3e} FLOPs needed a device and step;"
        f" {row['peak_flops'] / 1e12:,.0f} TFLOP/s published for {units}"
    ]


def _counted(row):
    lines = [f"{row['flops']:.3e} FLOPs, {row['bytes']:.3e} bytes a device and step"]
    for kind, entry in row["collectives"].items():
        lines.append(f"{entry['count']:.0f} x {kind}, {entry['bytes'] / GIB:.3f} GiB a device")
    if row["unknown_loops"]:
        lines.append(f"{row['unknown_loops']} loop(s) of unknown length count once")
    return lines


def _table(plans):
    head = ("slice", "by", "devices", "images", "peak GiB", "limit", "fits", "step ms", "rules",
            "images/s", "hours", "chip-hours", "cost")  # fmt: skip
    rows = [list(head if any("cost" in row for row in plans) else head[:-1])]
    for row in plans:
        need = _gib(row["need_bytes"])
        cells = [row["slice"]["name"], "estimate" if row["estimated"] else "compile"]
        cells += [row["slice"]["devices"], row["images_a_device"], need]
        cells += [_gib(row["limit_bytes"]), "yes" if row["fits"] else "NO"]
        if row["fits"]:
            cells += [f"{1e3 * row['step_seconds']:.1f}", row["ruling"]]
            cells += [f"{row['images_per_second']:,.0f}", f"{row['hours']:.1f}"]
            cells += [f"{row['chip_hours']:,.0f}"]
            cells += [f"{row['cost']:,.2f}"] if "cost" in row else []
        rows.append([str(c) for c in cells])
    widths = [max(len(r[i]) for r in rows if i < len(r)) for i in range(len(rows[0]))]
    lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=False)) for r in rows]
    first = plans[0]
    return "\n".join([f"{first['config']}, batch {first['batch_size']}", *lines])


def _tried(name, tried):
    if not tried:
        return f"{name}: there is no smaller setting to try"
    estimated = tried[0]["estimated"]
    lines = [f"{name}: tried by {'estimating' if estimated else 'compiling'}"]
    lines += [f"  {_setting(row)}: {verdict(row)}" for row in tried]
    fitting = [row for row in tried if row["fits"]]
    if fitting:
        flags = " ".join(f"--config.{k}={v}" for k, v in fitting[0]["changes"].items())
        fits = "is estimated to fit" if estimated else "fits"
        lines.append(f"{name}: {fits} with {flags}")
        if "accumulation" in fitting[0]["changes"]:
            lines.append("  (batch norm and u then see micro-batches)")
    else:
        larger = "a larger slice"
        if estimated:  # One image a device was tried: more devices help only to cut up the state.
            larger = "GPUs with more memory, several with parallel=fsdp, or a smaller model"
        lines.append(f"{name}: nothing that was tried fits; take {larger}")
    return "\n".join(lines)


def _setting(row):
    changes = ", ".join(f"{k}={v}" for k, v in row["changes"].items()) or "as it is"
    return f"{row['slice']['name']}, {changes}"


def _cost(row):
    cost = f", cost {row['cost']:,.2f}" if "cost" in row else ""
    return f"{row['chip_hours']:,.0f} chip-hours{cost}"


def _gib(value):
    return "?" if value is None else f"{value / GIB:.2f}"
