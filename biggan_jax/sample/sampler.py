"""Images from a generator in training, with BN statistics made for the truncation asked for."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from biggan_jax.gan.state import GanState
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sheets

Weights = Mapping[str, Any]


def ema_weights(state: GanState) -> Weights:
    """Returns the weights of a state that are sampled: averaged parameters, and u as it is."""
    return {"params": state.ema_params, "spectral": state.g_spectral}


def forgetful(config: Mapping[str, Any], batch: int, platform: str) -> nn.Module:
    """Returns the generator whose running BN statistics are those of its last batch alone."""
    model = {**config["model"], "bn_momentum": 0.0, "bn_group_size": batch}
    return networks.build({"model": model}, platform)[0]


def moments(
    generator: nn.Module,
    weights: Weights,
    i: Any,
    batch: int,
    truncation: float | None,
    mode: str,
    config: Mapping[str, Any],
    cut: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> Any:
    """Returns the batch statistics of pass `i` of the standing statistics, to be traced.

    Args:
      generator: of `forgetful`.
      weights: of the generator.
      i: number of the pass; its latents and labels follow from it.
      batch: images in the pass.
      truncation: see `latents.draw`.
      mode: see `latents.draw`.
      config: resolved.
      cut: what is done to latents and labels where they are made: who holds them.
    """
    c = config["model"]
    index = i * batch + jnp.arange(batch)
    # A seed of its own, so that no latent of a sheet is among those of its statistics.
    z = cut(latents.draw(0x57A7, index, c["z_dim"], truncation, mode))
    key = jax.random.fold_in(jax.random.key(0x1ABE1), i)
    labels = cut(jax.random.randint(key, (batch,), 0, c["num_classes"]))
    stats = jax.eval_shape(
        lambda: generator.init(jax.random.key(0), z[:1], labels[:1], train=False)
    )["batch_stats"]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
    variables = {**weights, "batch_stats": zeros}
    _, moved = generator.apply(variables, z, labels, train=True, mutable=["batch_stats"])
    return moved["batch_stats"]


class Sampler:
    """Samples from generator weights, `{"params": tree, "spectral": tree}`.

    Standing statistics (paper appendix C.1, spec section 7.3): the generator runs
    `sample.standing_passes` times on fresh latents at the truncation and fresh uniform labels, and
    the per-batch means and biased variances are averaged.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        mesh: Mesh,
        passed: Callable[[], None] = lambda: None,
    ):
        """Compiles nothing yet.

        Args:
          config: resolved.
          mesh: where it runs.
          passed: called after each batch, in all processes alike; what it raises ends the work.
        """
        self.config, self.mesh, self._passed = config, mesh, passed
        self.batch_size = config["sample"]["standing_batch"]
        platform = mesh.devices.flat[0].platform
        self._generator, _ = networks.build(config, platform)
        self._fresh = forgetful(config, self.batch_size, platform)
        # Whole on every device: of many processes each can then read all of it.
        whole = mesh_lib.replicated(mesh)
        self._pass = jax.jit(self._moments, static_argnames="mode", out_shardings=whole)
        self._images = jax.jit(self._generate, static_argnames="mode", out_shardings=whole)

    def standing_statistics(
        self, weights: Weights, truncation: float | None = None, mode: str = "threshold"
    ) -> Any:
        """Returns `batch_stats` for a generator at a truncation, see `latents.draw`."""
        passes = self.config["sample"]["standing_passes"]
        total = None
        for i in range(passes):
            moments = self._pass(weights, i, truncation, mode=mode)
            total = moments if total is None else jax.tree.map(jnp.add, total, moments)
            self._passed()
        return jax.tree.map(lambda x: x / passes, total)

    def sample(
        self,
        weights: Weights,
        statistics: Any,
        labels: np.ndarray,
        seed: int,
        truncation: float | None = None,
        mode: str = "threshold",
    ) -> np.ndarray:
        """Generates one image a label.

        Args:
          weights: of the generator.
          statistics: `batch_stats` that fit the truncation, as of `standing_statistics`.
          labels: [N] integers.
          seed: of the latents; image i depends on (seed, i) and its label alone.
          truncation: see `latents.draw`.
          mode: see `latents.draw`.

        Returns:
          [N, R, R, 3] uint8.
        """
        # Few images do not wait for a whole batch; each device has its part all the same.
        devices = self.mesh.size
        images, size = [], min(self.batch_size, -(-len(labels) // devices) * devices)
        for start in range(0, len(labels), size):
            part = np.resize(labels[start : start + size], size).astype(np.int32)
            index = np.arange(start, start + size)
            out = self._images(weights, statistics, index, part, seed, truncation, mode=mode)
            images.append(sheets.to_uint8(np.asarray(out)))
            self._passed()
        return np.concatenate(images)[: len(labels)]

    def _cut(self, x):
        return jax.lax.with_sharding_constraint(x, mesh_lib.batch_sharding(self.mesh, 0))

    def _moments(self, weights, i, truncation, mode):
        return moments(
            self._fresh, weights, i, self.batch_size, truncation, mode, self.config, self._cut
        )

    def _generate(self, weights, statistics, index, labels, seed, truncation, mode):
        z = latents.draw(seed, index, self.config["model"]["z_dim"], truncation, mode)
        variables = {**weights, "batch_stats": statistics}
        return self._generator.apply(variables, self._cut(z), self._cut(labels), train=False)
