"""Compiles one training step for a slice that is not there and says what came out.

`python -m biggan_jax.plan.child` reads one line of JSON, the request of `compile.py`, and prints
one. It is a process of its own: libtpu ends a process that it finds fault with, a compile cannot
be interrupted from Python, and its settings are read once.
"""

import importlib.metadata
import json
import os
import re
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.gan import step as step_lib
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import hlo
from biggan_jax.plan.estimate import device_bytes

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")
_EXCEEDS = re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)")
# Which part of the memory a field of the state is.
_PARTS = {
    "params": ("g_params", "d_params"),
    "optimizer": ("g_opt", "d_opt"),
    "ema": ("ema_params", "ema_batch_stats"),
    "statistics": ("step", "g_batch_stats", "g_spectral", "d_spectral"),
}


def mesh_of(where: slices.Slice) -> Mesh:
    """Returns the mesh ("data",) over the devices of a slice, for compiling only.

    Raises:
      ConfigError: if libtpu knows no such topology.
    """
    chip = where.chip
    options: dict[str, Any] = {}
    if chip.cores == 2 and chip.devices == 1:
        options["chip_config_name"] = "megacore"  # Both cores are one device.
    if where.chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if where.slices > 1:
        options["num_slices"] = where.slices
    name = f"{chip.compiler_name}:{where.topology}"
    try:
        found = topologies.get_topology_desc(name, "tpu", **options)
    except Exception as e:  # libtpu raises what it likes.
        reason = " ".join(str(e).split())[:300]
        raise config_lib.ConfigError(
            f"--slice={where.name}: libtpu knows no topology {name!r}: {reason}"
        ) from e
    if len(found.devices) != where.devices:
        raise config_lib.ConfigError(
            f"--slice={where.name}: libtpu shows {len(found.devices)} devices for {name!r}, not"
            f" {where.devices}."
        )
    return mesh_lib.mesh_of(found.devices)


def abstract_batch(config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes of the batch that the loader gives one step."""
    rounds, size = config.d_steps * config.accumulation, config_lib.micro_batch_size(config)
    side, cut = config.model.resolution, mesh_lib.batch_sharding(mesh, 1)
    return {
        "image": jax.ShapeDtypeStruct((rounds, size, side, side, 3), np.uint8, sharding=cut),
        "label": jax.ShapeDtypeStruct((rounds, size), np.int32, sharding=cut),
    }


def memory_parts(state: state_lib.GanState, batch: Any) -> dict[str, int]:
    """Returns {part: bytes of one device} of what a step is given."""
    parts = {
        part: device_bytes([getattr(state, name) for name in fields])
        for part, fields in _PARTS.items()
    }
    return parts | {"batch": device_bytes(batch)}


def out_of_memory(message: str) -> tuple[float | None, float | None]:
    """Returns (needed, usable) bytes a device out of the compiler's own sentence, where it says."""
    match = _USED.search(message) or _EXCEEDS.search(message)
    if match is None:
        return None, None
    return float(match[1]) * _UNITS[match[2]], float(match[3]) * _UNITS[match[4]]


def compile_step(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles the step of a request and returns the facts; see `compile.facts`.

    Raises:
      ConfigError: if the slice cannot be made.
    """
    config = config_lib.from_json(request["config"])
    mesh = mesh_of(slices.find(request["slice"]))
    state, batch = step_lib.abstract_state(config, mesh), abstract_batch(config, mesh)
    memory: dict[str, Any] = memory_parts(state, batch)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    facts: dict[str, Any] = {
        "parameters": {"G": count(state.g_params), "D": count(state.d_params)},
        "memory": memory,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }
    begun = time.perf_counter()
    # With a Control, as the loop calls it.
    step = step_lib.make_train_step(config, mesh)
    lowered = step.lower(state, batch, step_lib.Control())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        message = " ".join(str(e).split())
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        need, limit = out_of_memory(message)
        seconds = time.perf_counter() - begun
        said = {"need_bytes": need, "limit_bytes": limit, "compiler_says": message[:1000]}
        return facts | {"fits": False, "compile_seconds": seconds} | said
    facts |= {"fits": True, "compile_seconds": time.perf_counter() - begun}
    sizes = compiled.memory_analysis()
    memory["padding"] = sizes.argument_size_in_bytes - sum(memory.values())
    memory["temporaries"] = sizes.temp_size_in_bytes
    memory["program"] = sizes.generated_code_size_in_bytes
    memory["peak"] = sizes.peak_memory_in_bytes
    text = compiled.as_text()
    if request.get("hlo"):
        with open(request["hlo"], "w", encoding="utf-8") as f:
            f.write(text)
    return facts | _account(compiled.cost_analysis(), hlo.Program(text))


def _account(costs, program):
    flop_factor, byte_factor = program.loop_factors()
    looped = flop_factor != 1 or byte_factor != 1 or program.unknown_loops
    roofline = costs.get("optimal_seconds", 0)
    return {
        "flops": costs["flops"] * flop_factor,
        "bytes": costs["bytes accessed"] * byte_factor,
        # The compiler's sum over operations; with loops it is of each loop once.
        "roofline_seconds": roofline if roofline > 0 and not looped else None,
        "cycles": program.cycles(),
        "collectives": program.collectives(),
        "unknown_loops": len(program.unknown_loops),
    }


def _end_with_parent():
    sys.stdin.read()  # Until the parent closes the pipe, or is gone.
    os._exit(1)


def main() -> int:
    """Answers one request."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = compile_step(request)
    except config_lib.ConfigError as e:
        answer = {"error": str(e)}
    print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # libtpu's threads would make a daemon thread at stdin wait.
