"""Plans: a config on a slice, what would make it fit, and the cheapest of several slices.

Every setting that is named has been compiled for TPUs, and estimated for GPUs.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import bounds, gpu, preset
from biggan_jax.plan import compile as compile_lib
from biggan_jax.plan.compile import Say

Changes = dict[str, Any]


def plan(
    config: ml_collections.ConfigDict,
    where: slices.Slice,
    changes: Changes | None = None,
    price: float | None = None,
    limit: float | None = None,
    quick: bool = False,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Compiles one config for one slice of TPUs, or estimates it for GPUs.

    Args:
      config: as `config.load` gives it, not resolved.
      where: the slice.
      changes: {key: value} of the config that are tried.
      price: of a chip and an hour.
      limit: bytes of HBM a device, where less than the compiler's own limit is to be used.
      quick: see `compile.facts`; of TPUs alone.
      say: is told what is going on.

    Returns:
      What `compile.facts` (`gpu.facts` of GPUs) and, of a step that fits, `bounds.outlook` return,
      and config (its name), slice (`Slice.describe`), changes, batch_size, accumulation, remat,
      dtype, parallel, num_steps, images_a_device, estimated, fits, need_bytes and limit_bytes of
      one device.

    Raises:
      ConfigError: if the config or the slice cannot be used.
    """
    changes = changes or {}
    resolved = _changed(config, where, changes)
    estimated = where.chip.platform == "gpu"
    if estimated:
        facts = gpu.facts(resolved, where, limit, say)
    else:
        facts = compile_lib.facts(resolved, where, quick, say)
    need = facts["need_bytes"] if "need_bytes" in facts else facts["memory"]["peak"]
    fits = facts["fits"] and (limit is None or need <= limit)
    limits = (limit, facts.get("limit_bytes"), where.chip.usable_bytes)
    row = facts | {
        "config": resolved.name,
        "slice": where.describe(),
        "changes": changes,
        "batch_size": resolved.batch_size,
        "accumulation": resolved.accumulation,
        "remat": resolved.model.remat,
        "dtype": resolved.model.dtype,
        "parallel": resolved.parallel,
        "num_steps": resolved.num_steps,
        "images_a_device": config_lib.micro_batch_size(resolved) // where.devices,
        "estimated": estimated,
        "fits": fits,
        "need_bytes": need,
        "limit_bytes": min(x for x in limits if x is not None),
    }
    return row | bounds.outlook(facts, resolved, where, price) if fits else row


def what_fits(config: ml_collections.ConfigDict, where: slices.Slice, every: bool, **how):
    """Compiles, or estimates, other settings of a config that does not fit.

    Tried are for TPUs, until something fits: moments, EMA and perhaps weights cut up over the
    devices (see `_cut`); with it recomputing activations, or micro-batches half as large, a
    quarter, ...; both; smaller batches. The first two change no mathematics but what bfloat16
    rounds; micro-batches change what batch norm and u see; a smaller batch is another training.

    For GPUs, those of `preset.settings`.

    Args:
      config: as `config.load` gives it.
      where: the slice.
      every: whether to try the rest of a group of settings after one that fits, for the cheapest.
      **how: the other arguments of `plan`.

    Returns:
      the plans of all settings that were tried, in that order.
    """
    tried = []
    gpus = where.chip.platform == "gpu"
    for group in _preset_groups(config, where) if gpus else _groups(config, where):
        for family in group:
            for changes in family:
                row = plan(config, where, changes, **how)
                tried.append(row)
                if row["fits"]:
                    break
            if tried and tried[-1]["fits"] and not every:
                return tried
        if any(row["fits"] for row in tried):
            return tried
    return tried


def compare(
    config: ml_collections.ConfigDict,
    where: Sequence[slices.Slice],
    sweep: bool = False,
    **how,
) -> dict[str, Any]:
    """Plans one config on several slices.

    Args:
      config: as `config.load` gives it.
      where: the slices.
      sweep: look for the cheapest setting that fits, by cost, or chip-hours without a price.
      **how: the other arguments of `plan`.

    Returns:
      plans, one a slice; tried, {slice: plans of other settings} for those that do not fit; and,
      of a sweep, cheapest, a plan or None.

    Raises:
      ConfigError: as `plan` does, if one price is given for several generations, and if GPUs are
        named and `gpu.check` refuses what is asked.
    """
    generations = sorted({s.chip.name for s in where})
    if how.get("price") is not None and len(generations) > 1:
        raise config_lib.ConfigError(
            f"--price-per-chip-hour={how['price']}: cannot be that of {' and '.join(generations)}"
            " chips alike; plan them apart."
        )
    gpu.check(where, how.get("quick", False), sweep)
    for s in where:  # All of them, before the first compile.
        if s.chip.platform != "gpu":
            compile_lib.check(s)
        _changed(config, s, {})
    plans, tried = [], {}
    for s in where:
        row = plan(config, s, **how)
        plans.append(row)
        if not row["fits"]:
            tried[s.name] = what_fits(config, s, sweep, **how)
    answer: dict[str, Any] = {"plans": plans, "tried": tried}
    if sweep:
        fitting = [row for row in [*plans, *itertools.chain(*tried.values())] if row["fits"]]
        answer["cheapest"] = min(
            fitting, key=lambda row: row.get("cost", row["chip_hours"]), default=None
        )
    return answer


def _groups(config, where) -> Iterator[list[list[Changes]]]:
    batch, first = config.batch_size, config.accumulation
    more = [first << i for i in range(1, 20) if not batch % ((first << i) * where.devices)]
    cut = _cut(config, where)
    if cut:
        yield [[cut]]  # It costs little or nothing: kept with the rest.
    remat = [] if config.model.remat else [cut | {"model.remat": True}]
    yield [remat, [cut | {"accumulation": a} for a in more]]
    if remat:
        yield [[*({**remat[0], "accumulation": a} for a in more)]]
    smallest = first * where.devices
    halves = [batch >> i for i in range(1, 20) if not batch % (smallest << i)]
    yield [[cut | {"batch_size": b} for b in halves]]


def _cut(config, where) -> Changes:
    """How to cut up what every device holds whole; {} where nothing is left to cut.

    In bfloat16 by FSDP: the kernels, nearly all of the weights, are then held in parts and gathered
    at half their size, and it is the faster of the two for BigGAN-128 (docs/performance.md). In
    float32 by ZeRO-1: FSDP would gather kernels as large as those it cuts, once a pass.
    """
    if where.devices == 1:
        return {}
    if config.model.dtype == "bfloat16":
        return {} if config.parallel == "fsdp" else {"parallel": "fsdp"}
    return {"parallel": "zero1"} if config.parallel == "data" else {}


def _preset_groups(config, where) -> Iterator[list[list[Changes]]]:
    """The settings of `preset.settings` that differ from the config's, but no larger micro-batch.

    One family a group, so that the first that fits ends the search.
    """
    own = {"accumulation": config.accumulation, "model.remat": config.model.remat}
    for group in preset.settings(config, where.devices):
        kept = [s for s in group if s["accumulation"] >= config.accumulation and s != own]
        yield [[{k: v for k, v in setting.items() if v != own[k]} for setting in kept]]


def _changed(config, where, changes):
    """The config with changes, resolved for a slice."""
    if config.device_count not in (None, where.devices):
        raise config_lib.ConfigError(
            f"device_count={config.device_count}: {where.name} has {where.devices} devices; leave"
            " it open."
        )
    # Deep: `resolve` fills in what is left open, and a plain copy shares those fields.
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        config_lib.override(changed, key, str(value))
    return config_lib.resolve(changed, where.devices)
