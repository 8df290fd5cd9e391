"""The Python face: `biggan_jax.load(path)` gives a `Model` to sample and to look into."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from biggan_jax import exported, sampling
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import exporting, formats, layout
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, names, statistics, tiles
from biggan_jax.train import export as run_export
from biggan_jax.train import runs

TABLE_ROWS = 51
_STANDING_KEPT = 64  # Truncations whose standing statistics are kept: a slider has many places.


def open_any(path: str, step: int | None = None, devices: int = 1) -> sampling.Sampling:
    """Opens whatever can be sampled: also what `biggan export` wrote for another program.

    Args:
      path: a run folder, a bundle or an export.
      step: see `load`.
      devices: see `load`; an export runs on one, which 0 gives it as well.

    Raises:
      ConfigError: as `load`.
    """
    if exported.is_export(path):
        if step is not None:
            raise ConfigError(f"--step={step}: {path!r} is an export, which has no checkpoints.")
        if devices > 1:
            raise ConfigError(f"--devices={devices}: {path!r} is an export, which runs on one.")
        return exported.Exported(path)
    return load(path, step, devices)


def load(path: str, step: int | None = None, devices: int = 1) -> "Model":
    """Loads a generator, and a discriminator where there is one.

    Args:
      path: a run folder or a bundle.
      step: which checkpoint of a run folder; None for the latest.
      devices: how many compute the images, 0 for all that JAX shows; the images are the same.

    Raises:
      ConfigError: if the path is neither, or is damaged, or there are fewer devices.
    """
    return Model(read(path, step), devices)


def read(path: str, step: int | None = None) -> bundle_lib.Bundle:
    """Reads a run folder or a bundle into memory; arguments and errors as for `load`."""
    if bundle_lib.is_bundle(path):
        if step is not None:
            raise ConfigError(f"--step={step}: {path!r} is a bundle, which has no checkpoints.")
        return bundle_lib.read(path)
    if exported.is_export(path):
        raise ConfigError(
            f"{path!r} is an export, which only makes images: biggan sample, walk and evaluate take"
            " it; this needs a run folder or a bundle."
        )
    if not os.path.isdir(os.path.join(path, runs.CHECKPOINTS)):
        formats.check_not_foreign(path)
    return run_export.to_bundle(path, step)


class Model(sampling.Sampling):
    """A trained model.

    Attributes:
      bundle: everything, as arrays in host memory.
    """

    def __init__(self, bundle: bundle_lib.Bundle, devices: int = 1):
        """Takes a whole bundle; `devices` as in `load`."""
        self.name, self.bundle, self.progress = bundle.name, bundle, False
        config = sampling.model_config(bundle.name, bundle.model)
        self._batch = tiles.largest_batch(config.model)
        config.sample.standing_batch = min(self._batch, bundle.standing_images)
        config.sample.standing_passes = -(-bundle.standing_images // config.sample.standing_batch)
        self.config = ml_collections.FrozenConfigDict(config)
        self.class_names = names.of_model(bundle.class_names, config.model.num_classes)
        self.truncation_mode = bundle.truncation
        mesh = mesh_lib.make_mesh(devices or jax.device_count())
        _, discriminator = networks.build(self.config, mesh.devices.flat[0].platform)
        g = jax.tree.map(jnp.asarray, layout.unflatten(bundle.generator()))
        weights = {"params": g["params"], "spectral": g["spectral"]}
        self._tiles = tiles.Tiles(self.config, weights, mesh)
        self._stored = g["batch_stats"]
        d = layout.unflatten(bundle.part("d"))
        self._d_variables = jax.tree.map(jnp.asarray, d) if d else None
        self._standing: dict[tuple, Any] = {}
        self._judge = jax.jit(discriminator.apply)

    @property
    def step(self) -> int | None:
        """Of the training; None where it is not known."""
        return self.bundle.source.get("itr")

    @property
    def has_discriminator(self) -> bool:
        """Whether `discriminate` can be called."""
        return self._d_variables is not None

    def protocol(self, truncation: float | None, mode: str | None) -> dict[str, Any]:
        """Returns what `sample` does with these arguments, for JSON beside a score."""
        truncation, mode = self._settled(truncation, mode)
        sample = self.config.sample
        made = f"standing, {sample.standing_passes} passes of {sample.standing_batch}"
        return {
            "weights": "averaged" if self.bundle.part("ema") else "raw",
            "truncation": truncation,
            "mode": None if truncation is None else mode,
            "statistics": "the model's own" if self._brings(truncation, mode) else made,
            "dtype": self.config.model.dtype,
        }

    def generate(
        self,
        z: Any,
        labels: Sequence[int] | np.ndarray,
        truncation: float = 1.0,
        statistics: str = "correct",
    ) -> np.ndarray:
        """Generates images from latents of one's own.

        Args:
          z: [N, z_dim], used as it is.
          labels: [N] class numbers, or [N, K] weights of the classes, as of `mix`.
          truncation: which BN statistics, where the model brings a table of them.
          statistics: "correct" (the table, rightly interpolated; without one those stored with the
            weights), "hf-compat" (the table as the Hugging Face program reads it, spec section
            7.4) or "standing" (made anew for the truncation in the model's own mode).

        Returns:
          [N, H, W, 3] float32 in [-1, 1].

        Raises:
          ConfigError: if an argument cannot be used.
        """
        z, labels = np.asarray(z, np.float32), self._checked(labels)
        self._check_z(z, (len(labels), self.config.model.z_dim))
        stats = self._chosen(statistics, truncation)
        blocks = self._tiles.images(stats, z, self._mixes(labels))
        return np.concatenate([images for _, images in blocks])

    def discriminate(self, images: np.ndarray, labels: Sequence[int] | np.ndarray) -> np.ndarray:
        """Judges images.

        Args:
          images: [N, H, W, 3], uint8 or float in [-1, 1].
          labels: [N] class numbers.

        Returns:
          [N] logits, float32: larger is more real.

        Raises:
          ConfigError: if the model has no discriminator or an argument cannot be used.
        """
        if self._d_variables is None:
            raise ConfigError(f"{self.name} has no discriminator.")
        images, labels, size = (
            np.asarray(images),
            self._checked(labels, mixed=False),
            self.config.model.resolution,
        )
        if images.shape != (len(labels), size, size, 3):
            raise ConfigError(
                f"images are of shape {list(images.shape)} and must be"
                f" {[len(labels), size, size, 3]}."
            )
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 127.5 - 1
        call = lambda x, y: self._judge(self._d_variables, x, y)  # noqa: E731
        return _in_batches(call, self._batch, images.astype(np.float32), labels)

    def make_table(self, progress: bool = False) -> None:
        """Gives the bundle standing statistics for 51 truncations in mode hub, as HF files hold.

        Args:
          progress: whether to show a bar with the time left, on stderr.
        """
        import tqdm

        rows = []
        grid = tuple(i / (TABLE_ROWS - 1) for i in range(TABLE_ROWS))
        for truncation in tqdm.tqdm(grid, "standing statistics", disable=not progress):
            stats = self._tiles.standing_statistics(truncation, "hub")
            rows.append(jax.tree.map(np.asarray, stats))
        stacked = layout.flatten(jax.tree.map(lambda *x: np.stack(x), *rows))
        self.bundle.add("table/batch_stats", stacked)
        self.bundle.grid = grid
        self.bundle.truncation = self.truncation_mode = "hub"

    def _chosen(self, name, truncation):
        table = self.bundle.part("table")
        if name == "standing":
            latents.check_truncation(truncation, self.truncation_mode)
            return self._made(truncation, self.truncation_mode)
        if name == "correct" and not table:
            return self._stored
        if name not in ("correct", "hf-compat"):
            raise ConfigError(
                f"statistics={name!r}: must be one of correct, hf-compat and standing."
            )
        if not table:
            raise ConfigError(
                f"statistics={name!r}: {self.name} brings no statistics a truncation."
            )
        found = statistics.lookup(table, self.bundle.grid, truncation, name)
        return layout.unflatten(found)["batch_stats"]

    def _statistics(self, truncation, mode):
        if self._brings(truncation, mode):
            return self._chosen("correct", truncation)
        return self._made(truncation, mode)

    def _brings(self, truncation, mode):
        """Whether the model has statistics for this; a module without a table those of t = 1."""
        if mode != self.truncation_mode or truncation is None:
            return False
        return bool(self.bundle.grid) or (mode == "hub" and truncation == 1.0)

    def _made(self, truncation, mode):
        key = truncation, mode if truncation is not None else None
        if key not in self._standing:
            size, passes = (self.config.sample[f"standing_{k}"] for k in ("batch", "passes"))
            with sampling.progress_bar(size * passes, self.progress, "BN statistics") as bar:
                self._standing[key] = self._tiles.standing_statistics(
                    truncation, mode, lambda done: bar.update(done * size)
                )
            if len(self._standing) > _STANDING_KEPT:
                del self._standing[next(iter(self._standing))]
        return self._standing[key]


def export(path: str, out: str, name: str, step: int | None = None, **options: Any) -> list[str]:
    """Writes a run folder or a bundle in another format, runs what was written and compares it.

    Args:
      path: a run folder or a bundle.
      out: the folder to make.
      name: the format: "bundle", one of `formats.WRITABLE` or of `formats.PROGRAMS`.
      step: which checkpoint of a run folder; None for the latest.
      **options: of `exporting.Request`.

    Returns:
      Sentences that the user should read; the first says how far the images differ.

    Raises:
      ConfigError: if an argument cannot be used, the format cannot hold the model or the images
        differ; nothing has been written then.
    """
    request = exporting.Request(out, name, **options)
    request.check()
    tools = exporting.Tools(
        generate=lambda bundle: Model(bundle).generate,
        statistics=lambda bundle: functools.partial(
            Model(bundle)._statistics, mode=bundle.truncation
        ),
        make_table=lambda bundle: Model(bundle).make_table(progress=True),
    )
    return exporting.export(read(path, step), request, tools)


def _in_batches(call, batch, x, labels):
    """Calls with examples of one size, so that it compiles once."""
    size = min(len(labels), batch)
    done = []
    for start in range(0, len(labels), size):
        part = np.arange(start, start + size) % len(labels)
        done.append(np.asarray(call(x[part], labels[part])))
    return np.concatenate(done)[: len(labels)]
