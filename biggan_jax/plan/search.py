"""Plans: a config on a slice, what would make it fit, and the cheapest of several slices.

Nothing here is guessed: every setting that is named has been compiled.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import bounds
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
    """Compiles one config for one slice.

    Args:
      config: as `config.load` gives it, not resolved.
      where: the slice.
      changes: {key: value} of the config that are tried.
      price: of a chip and an hour.
      limit: bytes of HBM a device, where less than the compiler's own limit is to be used.
      quick: see `compile.facts`.
      say: is told what is going on.

    Returns:
      What `compile.facts` and, of a step that fits, `bounds.outlook` return, and config (its name),
      slice (`Slice.describe`), changes, batch_size, accumulation, remat, dtype, num_steps,
      images_a_device, fits, need_bytes and limit_bytes of one device.

    Raises:
      ConfigError: if the config or the slice cannot be used.
    """
    changes = changes or {}
    resolved = _changed(config, where, changes)
    facts = compile_lib.facts(resolved, where, quick, say)
    need = facts["memory"]["peak"] if facts["fits"] else facts["need_bytes"]
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
        "num_steps": resolved.num_steps,
        "images_a_device": config_lib.micro_batch_size(resolved) // where.devices,
        "fits": fits,
        "need_bytes": need,
        "limit_bytes": min(x for x in limits if x is not None),
    }
    return row | bounds.outlook(facts, resolved, where, price) if fits else row


def what_fits(config: ml_collections.ConfigDict, where: slices.Slice, every: bool, **how):
    """Compiles other settings of a config that does not fit.

    Tried are, until something fits: moments and EMA cut up over the devices (ZeRO-1); with it
    recomputing activations, or micro-batches half as large, a quarter, ...; both; smaller batches.
    The first two change no mathematics; micro-batches change what batch norm and u see; a smaller
    batch is another training.

    Args:
      config: as `config.load` gives it.
      where: the slice.
      every: whether to try the rest of a group of settings after one that fits, for the cheapest.
      **how: the other arguments of `plan`.

    Returns:
      the plans of all settings that were tried, in that order.
    """
    tried = []
    for group in _groups(config, where):
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
      ConfigError: as `plan` does, and if one price is given for several generations.
    """
    generations = sorted({s.chip.name for s in where})
    if how.get("price") is not None and len(generations) > 1:
        raise config_lib.ConfigError(
            f"--price-per-chip-hour={how['price']}: cannot be that of {' and '.join(generations)}"
            " chips alike; plan them apart."
        )
    for s in where:  # All of them, before the first compile.
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
    zero1: Changes = {}
    if config.parallel == "data" and where.devices > 1:
        zero1 = {"parallel": "zero1"}  # It costs little and changes no number: kept with the rest.
        yield [[zero1]]
    remat = [] if config.model.remat else [zero1 | {"model.remat": True}]
    yield [remat, [zero1 | {"accumulation": a} for a in more]]
    if remat:
        yield [[*({**remat[0], "accumulation": a} for a in more)]]
    smallest = first * where.devices
    halves = [batch >> i for i in range(1, 20) if not batch % (smallest << i)]
    yield [[zero1 | {"batch_size": b} for b in halves]]


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
