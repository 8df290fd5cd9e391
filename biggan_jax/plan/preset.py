"""`--config.preset=gpu`: values of a config that suit the memory of the GPUs at hand.

What training computes stays: the batch size and all of the recipe. Set are bfloat16 convolutions,
how many micro-batches a batch is cut into, and whether activations are computed again. Batch norm
sees micro-batches, so they stay at `ENOUGH` images or more as long as anything fits so; the
author's own runs had 256.
"""

import copy
import functools
import subprocess
from collections.abc import Callable
from typing import Any

import ml_collections

from biggan_jax import config as config_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import estimate

ENOUGH = 256


def apply(
    config: ml_collections.ConfigDict, say: Callable[[str], None] = lambda line: None
) -> ml_collections.ConfigDict:
    """Returns a config with its preset's values.

    Args:
      config: as `config.load` gives it, not resolved; without a preset it comes back as it is.
      say: is told what was chosen, and the estimate by parts.

    Raises:
      ConfigError: if the preset is unknown, there is no GPU to ask, or nothing fits.
    """
    if not config.preset:
        return config
    name, memory, devices, hosts = _hardware(config.preset)
    config = copy.deepcopy(config)
    if config.device_count not in (None, devices):
        devices, hosts = config.device_count, 1
    config.model.dtype = "bfloat16"
    chosen, parts = choose(config, memory, devices, hosts)
    for key, value in chosen.items():
        config_lib.override(config, key, str(value))
    gib = ", ".join(f"{part} {size / slices.GIB:.1f}" for part, size in parts.items())
    say(
        f"preset for {devices} x {name} of {memory / slices.GIB:.0f} GiB: bfloat16,"
        f" accumulation={config.accumulation}, model.remat={config.model.remat}; estimated GiB a"
        f" device, not measured: {gib}"
    )
    return config


def choose(
    config: ml_collections.ConfigDict, memory: float, devices: int, hosts: int = 1
) -> tuple[dict[str, Any], dict[str, int]]:
    """Returns the first setting that fits, {key: value}, and its estimate by parts.

    They are tried in the order of `settings`.

    Args:
      config: not resolved.
      memory: bytes of a device.
      devices: how many.
      hosts: on so many hosts.

    Raises:
      ConfigError: if none fits.
    """

    @functools.cache
    def estimator(remat):
        changed = copy.deepcopy(config)
        changed.accumulation, changed.model.remat = 1, remat
        return estimate.Estimator(config_lib.resolve(changed, devices), hosts=hosts)

    estimator(False)  # Says what is wrong with the config.
    for group in settings(config, devices):
        for setting in group:
            images = config.batch_size // setting["accumulation"] // devices
            parts = estimator(setting["model.remat"]).parts(images)
            if parts["total"] <= memory:
                return setting, parts
    least = estimator(True).parts(1)["total"]
    raise config_lib.ConfigError(
        f"preset={config.preset}: {config.name} is estimated to need {least / slices.GIB:.1f} GiB"
        f" a device with one image on each and activations recomputed, and there are"
        f" {memory / slices.GIB:.1f}; use a smaller model."
    )


def settings(config: ml_collections.ConfigDict, devices: int) -> list[list[dict[str, Any]]]:
    """Returns groups of settings, {key: value}, in the order in which they are to be tried.

    Large micro-batches without recomputing come first, then large ones with it, then smaller ones.

    Args:
      config: its batch can be cut over the devices.
      devices: how many.
    """
    cuts = estimate.micro_batches(config, devices)
    large = [a for a in cuts if config.batch_size // a >= ENOUGH]
    rest = [a for a in cuts if a not in large]
    return [
        [{"accumulation": a, "model.remat": remat} for a in some]
        for some in (large, rest)
        for remat in (False, True)
    ]


def _hardware(preset):
    """(name, bytes of a device, devices, hosts) of `gpu` or `gpu:h100x8`."""
    if preset == "gpu":
        return _installed()
    if preset.startswith("gpu:"):
        try:
            where = slices.find(preset)
        except config_lib.ConfigError as e:
            raise config_lib.ConfigError(str(e).replace("--slice=", "preset=", 1)) from None
        return where.chip.name, where.chip.hbm_bytes, where.devices, where.slices
    raise config_lib.ConfigError(
        f"preset={preset!r}: must be gpu, for the GPUs of this machine, or named ones such as"
        " gpu:h100x8."
    )


def _installed():
    # Not by JAX: its backend may not wake before processes have found each other.
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
        rows = [line.rsplit(",", 1) for line in said.splitlines() if line.strip()]
        found = [(name.strip(), int(mib) * 2**20) for name, mib in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        found = []
    if not found:
        raise config_lib.ConfigError(
            "preset=gpu: nvidia-smi shows no GPU on this machine; name them, as in"
            " --config.preset=gpu:h100x8."
        )
    name, memory = min(found, key=lambda gpu: gpu[1])
    return name, memory, len(found), 1
