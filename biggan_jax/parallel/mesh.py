"""The device mesh and who holds what: batches are cut over `data`, the state is on every device."""

import contextlib

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from biggan_jax import config as config_lib


def request_cpu_devices(count: int) -> None:
    """Makes the CPU backend show `count` simulated devices; call it before JAX is used.

    Elsewhere, and once the backend is up, it has no effect: `make_mesh` then says what is missing.
    """
    with contextlib.suppress(RuntimeError):  # The backend is up.
        jax.config.update("jax_num_cpu_devices", count)


def make_mesh(device_count: int) -> Mesh:
    """Returns the mesh ("data",) over the first `device_count` devices.

    Raises:
      ConfigError: if there are fewer.
    """
    devices = jax.devices()
    if len(devices) < device_count:
        raise config_lib.ConfigError(
            f"device_count={device_count}: this machine shows {len(devices)}"
            f" {devices[0].platform} device(s)."
        )
    # make_mesh's default is Explicit axes, under which sharding constraints only assert.
    return jax.make_mesh(
        (device_count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:device_count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int) -> NamedSharding:
    """The batch axis, number `axis`, is cut over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def put_batch(batch: dict, mesh: Mesh, axis: int = 1) -> dict:
    """Puts host arrays on the mesh, cut along `axis`."""
    return jax.device_put(batch, batch_sharding(mesh, axis))
