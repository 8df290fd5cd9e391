"""The facts of a training step on GPUs, estimated: no compiler for them is at hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from biggan_jax import config as config_lib
from biggan_jax.gan import flops
from biggan_jax.parallel import slices
from biggan_jax.plan import estimate
from biggan_jax.plan.compile import Say


def check(where: Sequence[slices.Slice], quick: bool, sweep: bool) -> None:
    """Says whether what is asked of some slices makes sense for the GPUs among them.

    Raises:
      ConfigError: if it does not.
    """
    gpus = [s.name for s in where if s.chip.platform == "gpu"]
    if gpus and quick:
        raise config_lib.ConfigError(
            f"--quick: {gpus[0]} is estimated, not compiled, so there is no compile to shorten;"
            " leave it out."
        )
    if gpus and sweep:
        raise config_lib.ConfigError(
            f"--sweep: {gpus[0]} is estimated, with a bound by FLOPs alone, by which all settings"
            " and numbers of GPUs cost the same; compare them with --slices instead."
        )


def facts(
    config: Mapping[str, Any],
    where: slices.Slice,
    limit: float | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Estimates what `compile.facts` would find, as far as that goes.

    Args:
      config: resolved for the slice's devices.
      where: GPUs.
      limit: bytes a device, where less than all of its memory is to be used.
      say: is told what is going on.

    Returns:
      estimated (True), quick (False), fits, parameters {"G", "D"}, memory (`Estimator.parts`),
      need_bytes and limit_bytes of one device, and largest_images_a_device, of a micro-batch that
      fits with the config's other settings.
      And flops_needed of a step over all devices (`gan/flops.py`), flops of one device, and
      peak_flops, FLOP/s of one device as published for the dtype.
    """
    say(f"estimating {config['name']} for {where.name} ...")
    estimator = estimate.Estimator(config, hosts=where.slices)
    memory = estimator.parts(config_lib.micro_batch_size(config) // where.devices)
    room = min(where.chip.hbm_bytes, limit or where.chip.hbm_bytes)
    found = {
        "estimated": True,
        "quick": False,
        "fits": memory["total"] <= room,
        "parameters": estimator.parameters,
        "memory": memory,
        "need_bytes": memory["total"],
        "limit_bytes": room,
        "largest_images_a_device": estimator.largest(room),
    }
    needed = flops.step(config).needed
    return found | {
        "flops_needed": needed,
        "flops": needed / where.devices,
        "peak_flops": slices.matrix_rate(where.chip, config["model"]["dtype"]) / where.chip.devices,
    }
