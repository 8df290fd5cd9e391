"""What published hardware figures let a step take at the least, and what that costs."""

from collections.abc import Mapping
from typing import Any

from biggan_jax.parallel import slices
from biggan_jax.plan import hlo

# How the bounds are called in text.
NAMES = {
    "flops": "FLOPs at the published peak",
    "hbm": "bytes at the HBM rate",
    "links": "collectives at the link rate",
    "network": "bytes between slices",
    "roofline": "the compiler's roofline",
    "cycles": "the compiler's cycles",
}


def seconds(facts: Mapping[str, Any], where: slices.Slice) -> dict[str, float]:
    """Returns {bound: seconds of one step}; see `NAMES`.

    Each says that a step cannot be faster, by one thing alone, if all else were free: the FLOPs
    that the compiler counts at the peak of the matrix units (float32 convolutions run there too);
    the bytes its operations take and make at the rate of the HBM; the bytes of collectives through
    all links of a chip at once, without latency; the compiler's sum over operations of the larger
    of the first two; and its cycles, which see padding, at the clock. Of several slices, where the
    rate of the network between them is published, the bytes that it carries. Of a quick compile
    only those that do not depend on how operations are fused. Of an estimate the FLOPs alone, those
    that the networks need.

    Args:
      facts: of `compile.facts` or `gpu.facts`, of a step that fits.
      where: the slice.
    """
    chip = where.chip
    if facts.get("estimated"):
        return {"flops": facts["flops"] / facts["peak_flops"]}
    found = {"flops": facts["flops"] / (chip.bf16 / chip.devices)}
    if chip.link_rate:
        found["links"] = link_bytes(facts["collectives"], where) / chip.link_rate
    if where.slices > 1 and chip.network_rate:
        sent = facts["collectives"].get(hlo.BETWEEN_SLICES, {"bytes": 0.0})["bytes"]
        found["network"] = sent * chip.devices / chip.network_rate
    if not facts["quick"]:
        found["hbm"] = facts["bytes"] / (chip.hbm_rate / chip.devices)
        if facts["roofline_seconds"]:
            found["roofline"] = facts["roofline_seconds"]
        if chip.clock:
            found["cycles"] = sum(facts["cycles"].values()) / chip.clock
    return found


def link_bytes(collectives: Mapping[str, Mapping[str, float]], where: slices.Slice) -> float:
    """Returns the least that a chip must send, whatever the algorithm.

    The devices of a chip share its links, so what an all-reduce sums is summed in the chip first.
    Of n chips each then sends (n - 1) / n of the bytes twice, to gather sums and to spread them;
    other collectives once. An all-to-all and a permutation do not become fewer in the chip. Several
    slices each do this by themselves; what goes between them takes another network.
    """
    chips = where.chips // where.slices
    share = (chips - 1) / chips
    total = 0.0
    for kind, entry in collectives.items():
        if kind == hlo.BETWEEN_SLICES:
            continue
        times = 2 if kind == "all-reduce" else 1
        if kind in ("all-to-all", "ragged-all-to-all", "collective-permute"):
            times = where.chip.devices
        total += times * share * entry["bytes"]
    return total


def outlook(
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    where: slices.Slice,
    price: float | None = None,
) -> dict[str, Any]:
    """Returns what the bounds mean for a run.

    Args:
      facts: of a step that fits.
      config: resolved.
      where: the slice.
      price: of a chip and an hour, in any currency.

    Returns:
      bounds_seconds, ruling (the name of the largest), step_seconds (at least),
      images_per_second (real images, at most), hours to `num_steps` (at least), chip_hours, and,
      with a price, cost (at least).
    """
    found = seconds(facts, where)
    ruling = max(found, key=lambda name: found[name])
    step = found[ruling]
    hours = step * config["num_steps"] / 3600
    answer = {
        "bounds_seconds": found,
        "ruling": ruling,
        "step_seconds": step,
        "images_per_second": config["batch_size"] * config["d_steps"] / step,
        "hours": hours,
        "chip_hours": hours * where.chips,
    }
    return answer if price is None else answer | {"cost": hours * where.chips * price}
