"""The device mesh and who holds what: batches are cut over `data`, the state is on every device."""

import contextlib
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from biggan_jax import config as config_lib
from biggan_jax.parallel import distributed

_SMALL = 2**14  # Numbers; a collective for fewer takes longer than the work it saves.


def request_cpu_devices(count: int) -> None:
    """Makes the CPU backend show `count` simulated devices; call it before JAX is used.

    Of several processes each shows its share, or what JAX_NUM_CPU_DEVICES says if that is set.
    Elsewhere, and once the backend is up, it has no effect: `make_mesh` then says what is missing.

    Raises:
      ConfigError: if the processes cannot have equal shares.
    """
    processes = distributed.process_count()
    share = _share(count, processes)
    if processes > 1 and os.environ.get("JAX_NUM_CPU_DEVICES"):
        return
    with contextlib.suppress(RuntimeError):  # The backend is up.
        jax.config.update("jax_num_cpu_devices", share)


def make_mesh(device_count: int) -> Mesh:
    """Returns the mesh ("data",) over the first devices: as many of each process, as it takes.

    Raises:
      ConfigError: if there are fewer, or the processes cannot have equal shares.
    """
    devices = jax.devices()
    if len(devices) < device_count:
        where = "this machine shows"
        if jax.process_count() > 1:
            where = f"{jax.process_count()} processes show"
        raise config_lib.ConfigError(
            f"device_count={device_count}: {where} {len(devices)} {devices[0].platform} device(s)."
        )
    share = _share(device_count, jax.process_count())
    taken = []
    for process in range(jax.process_count()):
        own = [device for device in devices if device.process_index == process][:share]
        if len(own) < share:
            raise config_lib.ConfigError(
                f"device_count={device_count}: process {process} shows {len(own)} device(s), and"
                f" each of the {jax.process_count()} processes would have to give {share}."
            )
        taken += own
    if len(taken) == len(devices):
        taken = devices  # In JAX's order, which is that of the wires.
    return mesh_of(taken)


def mesh_of(devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh ("data",) over devices, those of a slice side by side in its wires' order.

    Raises:
      ConfigError: if several slices do not have equally many of them.
    """
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(slice_index(device), []).append(device)
    if len({len(own) for own in slices.values()}) > 1:
        parts = ", ".join(f"{len(own)} of slice {index}" for index, own in sorted(slices.items()))
        raise config_lib.ConfigError(
            f"device_count={len(devices)}: these are {parts}; each slice must have as many."
        )
    rings = [mesh_utils.create_device_mesh((len(own),), own) for _, own in sorted(slices.items())]
    # Explicit axes, the default elsewhere, make sharding constraints assertions.
    return Mesh(np.concatenate(rings), ("data",), axis_types=(AxisType.Auto,))


def slice_index(device: jax.Device) -> int:
    """Returns which of several slices a device is in: those that only a slower network connects.

    Slices of TPUs; of GPUs, what NVLink connects, which mostly is a host. CPUs are one.
    """
    if device.platform == "cpu":
        return 0
    # The second is the name that XLA's GPU plugin is to keep.
    return getattr(device, "slice_index", getattr(device, "partition_index", 0))


def slice_count(mesh: Mesh | AbstractMesh) -> int:
    """Returns how many slices a mesh spans.

    One without devices has an axis "slice" of so many, before its axis "data", or is one slice.
    """
    if isinstance(mesh, AbstractMesh):
        return mesh.shape.get("slice", 1)
    return len({slice_index(device) for device in mesh.devices.flat})


def _share(device_count, processes):
    if device_count % processes:
        nearest = max(1, round(device_count / processes)) * processes
        raise config_lib.ConfigError(
            f"device_count={device_count}: must be a multiple of the {processes} processes, each of"
            f" which gives as many; nearest is {nearest}."
        )
    return device_count // processes


def describe(mesh: Mesh) -> dict[str, Any]:
    """Returns device_kind, as JAX calls it, and how many devices, processes and slices it has."""
    devices = list(mesh.devices.flat)
    return {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": len({device.process_index for device in devices}),
        "slices": slice_count(mesh),
    }


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def spread(mesh: Mesh | AbstractMesh, shape: Sequence[int]) -> NamedSharding:
    """Every device holds an equal part of an array of weights, or all of it.

    One axis is cut into as many parts as divide both it and the number of devices; where these are
    fewer than the devices, several hold the same part. The last axis is not cut, as TPUs pad it to
    128, nor two axes, as gathering such parts costs a transpose. What is small is held whole. Of
    several slices each holds all parts, so that none is gathered over the slower network.

    A kernel's parts have a multiple of eight input channels where that can be: a TPU lays out eight
    rows as one tile, and whole tiles are gathered into their places, others copied there again.

    Args:
      mesh: the mesh ("data",); one without devices is enough to ask who would hold what.
      shape: of the array.
    """
    slices = slice_count(mesh)
    most_parts = mesh.size // slices
    rows = [8 if len(shape) > 2 and not size % 8 else 1 for size in shape[:-1]]
    parts = [math.gcd(size // n, most_parts) for size, n in zip(shape[:-1], rows, strict=True)]
    most = max(parts, default=1)
    if most == 1 or math.prod(shape) < _SMALL:
        return replicated(mesh)
    axis = len(parts) - 1 - parts[::-1].index(most)
    cut = _regrouped(mesh, {"slice": slices, "part": most, "copy": most_parts // most})
    return NamedSharding(cut, PartitionSpec(*[None] * axis, "part"))


def rows_in_slice(mesh: Mesh) -> NamedSharding:
    """The first axis is cut over the devices of a slice, and each slice has all of it."""
    slices = slice_count(mesh)
    if slices == 1:
        return batch_sharding(mesh, 0)
    cut = _regrouped(mesh, {"slice": slices, "data": mesh.size // slices})
    return NamedSharding(cut, PartitionSpec("data"))


def _regrouped(mesh, axes):
    """The same devices in the same order, so that both meshes can be used in one program."""
    names, kinds = tuple(axes), (AxisType.Auto,) * len(axes)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(tuple(axes.values()), names, axis_types=kinds)
    return Mesh(mesh.devices.reshape(tuple(axes.values())), names, axis_types=kinds)


def placed(tree, mesh: Mesh, parallel: str):
    """Constrains arrays of weights, within a program, to who holds them.

    Args:
      tree: of arrays.
      mesh: the mesh ("data",).
      parallel: "data": every device all of it; "zero1" or "fsdp": its part.
    """
    where = (lambda mesh, shape: replicated(mesh)) if parallel == "data" else spread
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where(mesh, x.shape)), tree)


def gathered(tree, mesh: Mesh):
    """Returns a tree of arrays whole on every device; those that are so already are not copied."""
    if all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def batch_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """The batch axis, number `axis`, is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def local_columns(mesh: Mesh, batch_size: int) -> slice:
    """Returns which columns of a global batch the devices of this process hold.

    Raises:
      ConfigError: if the mesh has no device of this process, or its columns are no neighbours.
    """
    held = batch_sharding(mesh, 0).addressable_devices_indices_map((batch_size,))
    parts = sorted(index[0].indices(batch_size)[:2] for index in held.values() if index)
    if not parts:
        raise config_lib.ConfigError(
            f"device_count={mesh.size}: process {jax.process_index()} of {jax.process_count()} has"
            " no device among them; leave it open to use all devices."
        )
    for (_, end), (start, _) in itertools.pairwise(parts):
        if end != start:
            raise config_lib.ConfigError(
                f"device_count={mesh.size}: the devices of process {jax.process_index()} do not"
                " stand side by side in the mesh, so it would have to read apart columns."
            )
    return slice(parts[0][0], parts[-1][1])


def put_batch(batch, mesh: Mesh, axis: int = 1):
    """Puts host arrays on the mesh, cut along `axis`.

    Args:
      batch: a tree of arrays whose axis `axis` holds the columns that this process needs, see
        `local_columns`; of a single process, all of them.
      mesh: the mesh; every process holds as many columns as any other.
      axis: the batch axis.

    Returns:
      The same tree, of global arrays.
    """
    sharding = batch_sharding(mesh, axis)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
