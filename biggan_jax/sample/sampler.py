"""Images from the averaged generator, with BN statistics made for the truncation asked for."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from biggan_jax import config as config_lib
from biggan_jax.gan.state import GanState
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sheets


class Sampler:
    """Samples from the EMA generator of a state.

    Standing statistics (paper appendix C.1, spec section 7.3): the EMA generator runs
    `sample.standing_passes` times on fresh latents at the truncation and fresh uniform labels, and
    the per-batch means and biased variances are averaged.
    """

    def __init__(self, config: Mapping[str, Any], mesh: Mesh):
        """Compiles nothing yet; the config is resolved."""
        self.config, self.mesh = config, mesh
        self.batch_size = config["sample"]["standing_batch"]
        platform = mesh.devices.flat[0].platform
        self._generator, _ = networks.build(config, platform)
        # Momentum 0 makes the running statistics those of the last batch.
        model = {**config["model"], "bn_momentum": 0.0, "bn_group_size": self.batch_size}
        self._fresh, _ = networks.build({"model": model}, platform)
        self._pass = jax.jit(self._moments, static_argnames="truncation")
        self._images = jax.jit(self._generate, static_argnames="truncation")

    def standing_statistics(self, state: GanState, truncation: float | None = None) -> Any:
        """Returns `batch_stats` for the EMA generator at a truncation."""
        passes = self.config["sample"]["standing_passes"]
        total = None
        for i in range(passes):
            moments = self._pass(state.ema_params, state.g_spectral, i, truncation=truncation)
            total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        return jax.tree.map(lambda x: x / passes, total)

    def sample(
        self,
        state: GanState,
        statistics: Any,
        labels: np.ndarray,
        seed: int,
        truncation: float | None = None,
    ) -> np.ndarray:
        """Generates one image a label.

        Args:
          state: whose EMA generator draws.
          statistics: of `standing_statistics` at the same truncation.
          labels: [N] integers.
          seed: of the latents; image i depends on (seed, i) and its label alone.
          truncation: threshold on |z_i|, or None.

        Returns:
          [N, R, R, 3] uint8.
        """
        images, size = [], self.batch_size
        for start in range(0, len(labels), size):
            part = np.resize(labels[start : start + size], size).astype(np.int32)
            out = self._images(
                state.ema_params,
                statistics,
                state.g_spectral,
                np.arange(start, start + size),
                part,
                seed,
                truncation=truncation,
            )
            images.append(sheets.to_uint8(np.asarray(out)))
        return np.concatenate(images)[: len(labels)]

    def _cut(self, x):
        return jax.lax.with_sharding_constraint(x, mesh_lib.batch_sharding(self.mesh, 0))

    def _moments(self, params, spectral, i, truncation):
        c = self.config["model"]
        index = i * self.batch_size + jnp.arange(self.batch_size)
        # A seed of its own, so that no latent of a sheet is among those of its statistics.
        z = self._cut(latents.draw(0x57A7, index, c["z_dim"], truncation))
        key = jax.random.fold_in(jax.random.key(0x1ABE1), i)
        labels = self._cut(jax.random.randint(key, (self.batch_size,), 0, c["num_classes"]))
        stats = jax.eval_shape(
            lambda: self._fresh.init(jax.random.key(0), z[:1], labels[:1], train=False)
        )["batch_stats"]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), stats)
        variables = {"params": params, "batch_stats": zeros, "spectral": spectral}
        _, moved = self._fresh.apply(variables, z, labels, train=True, mutable=["batch_stats"])
        return moved["batch_stats"]

    def _generate(self, params, statistics, spectral, index, labels, seed, truncation):
        z = latents.draw(seed, index, self.config["model"]["z_dim"], truncation)
        variables = {"params": params, "batch_stats": statistics, "spectral": spectral}
        return self._generator.apply(variables, self._cut(z), self._cut(labels), train=False)


class Samples:
    """A state's EMA generator with statistics made once a truncation."""

    def __init__(self, config: ml_collections.FrozenConfigDict, state: GanState, mesh: Mesh):
        """Takes a resolved config and a whole state."""
        self.config, self.state = config, state
        self._sampler = Sampler(config, mesh)
        self._statistics: dict[float | None, Any] = {}

    def sample(
        self, labels: np.ndarray, seed: int = 0, truncation: float | None = None
    ) -> np.ndarray:
        """Generates one image a label; see `Sampler.sample`.

        Raises:
          ConfigError: if a label is none of the model's or the truncation is not above 0.
        """
        latents.check_truncation(truncation)
        labels = np.asarray(labels)
        classes = self.config["model"]["num_classes"]
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise config_lib.ConfigError(
                f"class {wrong[0]}: this model has classes 0 to {classes - 1}."
            )
        if truncation not in self._statistics:
            made = self._sampler.standing_statistics(self.state, truncation)
            self._statistics[truncation] = made
        return self._sampler.sample(
            self.state, self._statistics[truncation], labels, seed, truncation
        )
