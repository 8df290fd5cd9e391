"""What was written against what it was written from: images for the same latents and classes."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.interop.bundle import Bundle
from biggan_jax.sample import latents

LIMIT = 1e-4  # Of pixels in [-1, 1].

Generate = Callable[..., np.ndarray]  # Of z [N, z_dim], labels [N] and truncation.


def on_cpu() -> AbstractContextManager:
    """Makes what is put on a device inside the block and run there go to the CPU.

    Accelerators multiply with fewer bits unless told otherwise, more than `LIMIT` allows.

    Raises:
      ConfigError: if JAX was told to do without a CPU.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError as e:
        raise ConfigError(
            "the images are compared on the CPU, which JAX_PLATFORMS leaves out; add cpu to it."
        ) from e


@dataclasses.dataclass(frozen=True)
class Point:
    """Latents [N, z_dim] and labels [N] that are tried at a truncation."""

    z: np.ndarray
    labels: np.ndarray
    truncation: float


def points(bundle: Bundle) -> list[Point]:
    """Returns what an export is tried on: rows of the table, between them, batches of 3 and 1."""
    grid = bundle.grid or (1.0,)
    between = sum(grid[-2:]) / len(grid[-2:])
    classes = bundle.model["num_classes"]
    found = []
    for i, truncation in enumerate((between, grid[len(grid) // 2], grid[-1])):
        index = np.arange(3 if i == 0 else 1) + 3 * i
        z = latents.draw(
            0xC0DE, jnp.asarray(index), bundle.model["z_dim"], truncation, bundle.truncation
        )
        labels = (index * (classes // 3 + 1) + i) % classes
        found.append(Point(np.asarray(z), labels.astype(np.int32), float(truncation)))
    return found


def compare(
    source: Generate, written: Generate, tried: Sequence[Point], name: str
) -> dict[str, Any]:
    """Compares images.

    Args:
      source: the model that was written.
      written: what reads it.
      tried: what to compare on.
      name: of the format.

    Returns:
      For the card: "largest" difference of a pixel, "images" compared, "limit".

    Raises:
      ConfigError: if an image differs by more than `LIMIT` or is not finite.
    """
    worst = []
    for p in tried:
        wanted, got = (call(p.z, p.labels, p.truncation) for call in (source, written))
        if got.shape != wanted.shape:
            raise ConfigError(
                f"--format={name}: the export makes images of shape {list(got.shape)} where the"
                f" source makes {list(wanted.shape)}; nothing was kept."
            )
        worst.append(np.abs(got - wanted).max())
    largest = float(np.max(worst))  # NaN if one is.
    if not largest <= LIMIT:
        raise ConfigError(
            f"--format={name}: pixels of the export differ from the source's by up to"
            f" {largest:.2g}, and {LIMIT:g} is allowed; nothing was kept."
        )
    return {"largest": largest, "images": sum(len(p.z) for p in tried), "limit": LIMIT}


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns class weights [N, K] of labels [N]."""
    return np.eye(classes, dtype=np.float32)[labels]
