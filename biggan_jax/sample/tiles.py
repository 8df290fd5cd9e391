"""The same bytes for an image in any batch, on any number of devices.

A product of matrices rounds in another way when it has more rows: of BigGAN-deep-128 most floats
change in the last places between a batch of 4 and one of 16, and some pixels with them. So images
are never computed in batches of the size asked for. A tile is a fixed number of images, on one
device, by one compiled program; image i is at place i % tile of its tile, whatever is beside it
there. Batches are how many tiles are on their way at once, devices are who computes them. Standing
statistics go the same way: a pass is one device's, and the passes are added in their order.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import folding, latents, sampler

# Pixels of a tile: on a CPU, few images shall not wait for many; elsewhere small tiles are slow.
_PIXELS = {"cpu": 4 * 128**2}
_PIXELS_ELSEWHERE = 64 * 128**2
_MOST = {"cpu": 16}
_MOST_ELSEWHERE = 64
MAX_BATCH = 64  # Images at 128 px in one forward pass,
MAX_SCORES = 1 << 28  # and floats of its largest attention map: both fit any memory.


def largest_batch(model: Mapping[str, Any]) -> int:
    """Images a forward pass, so that neither activations nor attention maps fill the memory."""
    batch = MAX_BATCH * 128**2 // max(128, model["resolution"]) ** 2
    for size in (*model["g_attention"], *model["d_attention"]):
        batch = min(batch, MAX_SCORES // (size**4 // 4))
    return max(1, batch)


def tile_size(model: Mapping[str, Any], platform: str) -> int:
    """Returns how many images are computed together, from the model and the kind of device."""
    pixels = _PIXELS.get(platform, _PIXELS_ELSEWHERE) // model["resolution"] ** 2
    most = _MOST.get(platform, _MOST_ELSEWHERE)
    return max(1, min(pixels, most, largest_batch(model)))


def blocks(
    call: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    size: int,
    devices: int = 1,
    first: int = 0,
    batch: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Calls with whole tiles, and yields what of them was asked for, in order.

    Args:
      call: takes a tile a device of each array and gives an array as long.
      arrays: one or more, [N, ...].
      size: of a tile.
      devices: how many compute.
      first: the place of the first element in its series, which settles the place in its tile.
      batch: elements on their way at once, rounded up to tiles; None for one tile a device.

    Yields:
      The number of the first element and the results of a block.
    """
    count, step = len(arrays[0]), size * devices
    at_once = max(1, -(-(batch or 1) // step))
    on_the_way: list[tuple[int, int, int, Any]] = []
    for start in range(-(first % size), count, step):
        low, high = max(start, 0), min(start + step, count)
        # Beside the edges stand elements that are asked for anyway: any will do.
        number = np.clip(np.arange(start, start + step), 0, count - 1)
        result = call(*(array[number] for array in arrays))
        on_the_way.append((start, low, high, result))
        if len(on_the_way) == at_once or high == count:
            for begin, low, high, done in on_the_way:
                yield low, np.asarray(done)[low - begin : high - begin]
            on_the_way = []


class Tiles:
    """A generator that is sampled tile by tile.

    Attributes:
      size: images of a tile.
      mesh: the devices.
    """

    def __init__(self, config: Mapping[str, Any], weights: sampler.Weights, mesh: Mesh):
        """Folds the weights; the rest is compiled when it is first called.

        Args:
          config: resolved.
          weights: `{"params": tree, "spectral": tree}` of the generator.
          mesh: where it runs; not the bytes.
        """
        platform = mesh.devices.flat[0].platform
        self.mesh, self.size = mesh, tile_size(config["model"], platform)
        self._config, self._weights = config, weights
        generator, _ = networks.build(config, platform)
        self._params = folding.fold(generator, weights)
        standing = config["sample"]["standing_batch"]
        fresh = sampler.forgetful(config, standing, platform)
        z_dim = config["model"]["z_dim"]

        def moments(weights, number, truncation, *, mode):
            found = sampler.moments(fresh, weights, number[0], standing, truncation, mode, config)
            return jax.tree.map(lambda x: x[None], found)

        def draw(index, seed, truncation, *, mode):
            return latents.draw(seed, index, z_dim, truncation, mode)

        def images(params, statistics, z, mix):
            return folding.apply(generator, params, statistics, z, mix)

        self._moments = self._each_alone(moments, 1, "mode")
        self._draw = self._each_alone(draw, 0, "mode")
        self._images = self._each_alone(images, (2, 3))

    def _each_alone(self, function, cut, *static):
        """Compiles a function that each device runs on its part of the arguments `cut`."""
        cut = (cut,) if isinstance(cut, int) else cut
        whole = mesh_lib.replicated(self.mesh)

        def call(*args, **named):
            specs = tuple(PartitionSpec("data") if i in cut else PartitionSpec() for i in range(9))
            return jax.shard_map(
                lambda *parts: function(*parts, **named),
                mesh=self.mesh,
                in_specs=specs[: len(args)],
                out_specs=PartitionSpec("data"),
                check_vma=False,
            )(*args)

        return jax.jit(call, static_argnames=static, out_shardings=whole)

    def standing_statistics(
        self,
        truncation: float | None,
        mode: str,
        done: Callable[[int], Any] = lambda passes: None,
    ) -> Any:
        """Returns `batch_stats` for a truncation (spec section 7.3), see `latents.draw`.

        Args:
          truncation: see `latents.draw`.
          mode: see `latents.draw`.
          done: told how many passes have been added since it was told last.
        """
        passes, devices = self._config["sample"]["standing_passes"], self.mesh.size
        total = None
        for start in range(0, passes, devices):
            numbers = np.arange(start, start + devices)
            found = self._moments(self._weights, numbers, truncation, mode=mode)
            for i in range(min(devices, passes - start)):
                one = jax.tree.map(lambda x, i=i: np.asarray(x[i], np.float64), found)
                total = one if total is None else jax.tree.map(np.add, total, one)
            done(min(devices, passes - start))
        return jax.tree.map(lambda x: np.float32(x / passes), total)

    def latents(
        self, index: np.ndarray, seed: int, truncation: float | None, mode: str
    ) -> np.ndarray:
        """Returns the latents [N, z_dim] of images `index` [N], see `latents.draw`."""
        draw = lambda part: self._draw(part, seed, truncation, mode=mode)  # noqa: E731
        found = blocks(draw, [np.asarray(index)], self.size, self.mesh.size)
        return np.concatenate([z for _, z in found])

    def images(
        self,
        statistics: Any,
        z: np.ndarray,
        mix: Callable[[np.ndarray], np.ndarray],
        first: int = 0,
        batch: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Generates images.

        Args:
          statistics: `batch_stats`.
          z: [N, z_dim].
          mix: makes the weights of the classes [B, K] of images number [B], of 0..N - 1.
          first: the place of the first image in its series, which settles the place in its tile.
          batch: images on their way at once, rounded up to tiles; None for one tile a device.

        Yields:
          The number of the first image and the images, float32 [B, H, W, 3], block by block.
        """
        statistics = jax.device_put(statistics, mesh_lib.replicated(self.mesh))
        call = lambda z, number: self._images(self._params, statistics, z, mix(number))  # noqa: E731
        arrays = [z, np.arange(len(z))]
        yield from blocks(call, arrays, self.size, self.mesh.size, first, batch)
