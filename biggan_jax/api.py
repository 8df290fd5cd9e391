"""The Python face: `biggan_jax.load(path)` gives a `Model` to sample and to look into."""

import difflib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import formats, huggingface, layout
from biggan_jax.models import networks
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, sampler, sheets, statistics
from biggan_jax.train import export as run_export
from biggan_jax.train import runs

# Bounds of one forward pass: images at 128 px, and floats of G's largest attention map.
MAX_BATCH = 64
MAX_SCORES = 1 << 28
TABLE_ROWS = 51


def load(path: str, step: int | None = None, mesh: Mesh | None = None) -> "Model":
    """Loads a generator, and a discriminator where there is one.

    Args:
      path: a run folder or a bundle.
      step: which checkpoint of a run folder; None for the latest.
      mesh: where it runs; None for one device.

    Raises:
      ConfigError: if the path is neither, or is damaged.
    """
    return Model(read(path, step), mesh)


def read(path: str, step: int | None = None) -> bundle_lib.Bundle:
    """Reads a run folder or a bundle into memory; arguments and errors as for `load`."""
    if bundle_lib.is_bundle(path):
        if step is not None:
            raise ConfigError(f"--step={step}: {path!r} is a bundle, which has no checkpoints.")
        return bundle_lib.read(path)
    if not os.path.isdir(os.path.join(path, runs.CHECKPOINTS)):
        formats.check_not_foreign(path)
    return run_export.to_bundle(path, step)


class Model:
    """A trained model.

    Attributes:
      name: of the model.
      config: its `config.model` and how it is sampled.
      class_names: K texts; numbers where the names are not known.
      truncation_mode: the convention it was made for, see `sample.latents`.
      bundle: everything, as arrays in host memory.
    """

    def __init__(self, bundle: bundle_lib.Bundle, mesh: Mesh | None = None):
        """Takes a whole bundle, and the mesh it runs on; None for one device."""
        self.name, self.bundle = bundle.name, bundle
        mesh = mesh_lib.make_mesh(1) if mesh is None else mesh
        config = config_lib.default()
        config.name = bundle.name
        config.model.update({k: _tuple(v) for k, v in bundle.model.items()})
        self._batch = _largest_batch(config.model)
        each = -(-min(self._batch, bundle.standing_images) // mesh.size)
        config.sample.standing_batch = each * mesh.size  # Every device has its part.
        config.sample.standing_passes = -(-bundle.standing_images // config.sample.standing_batch)
        self.config = ml_collections.FrozenConfigDict(config)
        classes = self.config.model.num_classes
        self.class_names = bundle.class_names or tuple(str(i) for i in range(classes))
        self.truncation_mode = bundle.truncation
        self._generator, self._discriminator = networks.build(self.config)
        self._sampler = sampler.Sampler(self.config, mesh)
        g = jax.device_put(layout.unflatten(bundle.generator()), mesh_lib.replicated(mesh))
        self._weights = {"params": g["params"], "spectral": g["spectral"]}
        self._stored = g["batch_stats"]
        d = layout.unflatten(bundle.part("d"))
        self._d_variables = jax.tree.map(jnp.asarray, d) if d else None
        self._standing: dict[tuple, Any] = {}
        self._generate = jax.jit(
            lambda weights, stats, z, labels: self._generator.apply(
                {**weights, "batch_stats": stats}, z, labels, train=False
            )
        )
        self._judge = jax.jit(self._discriminator.apply)

    @property
    def title(self) -> str:
        """The name and, where it is known, the step, for a sheet."""
        step = self.bundle.source.get("itr")
        return self.name if step is None else f"{self.name}: step {step:,}"

    @property
    def has_discriminator(self) -> bool:
        """Whether `discriminate` can be called."""
        return self._d_variables is not None

    def sample(
        self,
        labels: Sequence[int] | np.ndarray,
        truncation: float | None = None,
        seed: int = 0,
        mode: str | None = None,
    ) -> np.ndarray:
        """Generates one image a label.

        BN statistics fit the truncation: those that the model brings for it in this mode, else
        standing statistics, made once a truncation (which takes as long as some hundred images).

        Args:
          labels: [N] class numbers.
          truncation: see `sample.latents`; None for the plain normal, but for models made for mode
            hub, whose largest t is 1, for that.
          seed: of the latents; image i depends on (seed, i) and its label alone.
          mode: what the truncation means; None for the model's own convention.

        Returns:
          [N, H, W, 3] uint8, `round(127.5 (x + 1))`.

        Raises:
          ConfigError: if a label is none of the model's, or truncation or mode cannot be.
        """
        truncation, mode = self.check(truncation, seed, mode)
        images_of = self._checked(labels)
        stats = self._statistics(truncation, mode)
        return self._sampler.sample(self._weights, stats, images_of, seed, truncation, mode)

    def maker(
        self, truncation: float | None, seed: int, mode: str | None = None
    ) -> Callable[[np.ndarray, np.ndarray], jax.Array]:
        """Returns what makes the images of `sample` without bringing them to the host.

        Args:
          truncation: see `sample`; BN statistics for it are made now.
          seed: of the latents.
          mode: what the truncation means.

        Returns:
          A function of places in the series of latents and labels, both [N] with N a multiple of
          the devices, that gives [N, H, W, 3] floats in -1..1, cut over the mesh.

        Raises:
          ConfigError: see `sample`.
        """
        truncation, mode = self.check(truncation, seed, mode)
        stats = self._statistics(truncation, mode)
        return lambda index, labels: self._sampler.on_mesh(
            self._weights, stats, index, self._checked(labels), seed, truncation, mode
        )

    def check(
        self, truncation: float | None, seed: int, mode: str | None
    ) -> tuple[float | None, str]:
        """Returns the truncation and mode that `sample` takes these for.

        Raises:
          ConfigError: if it would take none of them.
        """
        truncation, mode = self._settled(truncation, mode)
        latents.check_truncation(truncation, mode)
        if not 0 <= seed < 2**31:
            raise ConfigError(f"--seed={seed}: must be at least 0 and below 2**31.")
        return truncation, mode

    def protocol(self, truncation: float | None, mode: str | None) -> dict[str, Any]:
        """Returns what `sample` does with these arguments, for JSON beside a score."""
        truncation, mode = self._settled(truncation, mode)
        return {
            "weights": "averaged" if self.bundle.part("ema") else "raw",
            "truncation": truncation,
            "mode": None if truncation is None else mode,
            "statistics": self._statistics_text(truncation, mode),
            "dtype": self.config.model.dtype,
        }

    def describe(self, truncation: float | None, mode: str | None) -> str:
        """Returns in words what `sample` does with these arguments, for a sheet."""
        return latents.describe(*self._settled(truncation, mode))

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
          labels: [N] class numbers.
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
        if z.shape != (len(labels), self.config.model.z_dim):
            raise ConfigError(
                f"z is of shape {list(z.shape)} and must be"
                f" {[len(labels), self.config.model.z_dim]}."
            )
        stats = self._chosen(statistics, truncation)
        call = lambda z, y: self._generate(self._weights, stats, z, y)  # noqa: E731
        return _in_batches(call, self._batch, z, labels)

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
            self._checked(labels),
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
            stats = self._sampler.standing_statistics(self._weights, truncation, "hub")
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

    def _settled(self, truncation, mode):
        mode = self.truncation_mode if mode is None else mode
        if truncation is None and mode == self.truncation_mode == "hub":
            truncation = 1.0  # These models know no plain normal (spec section 14.1).
        return truncation, mode

    def _statistics(self, truncation, mode):
        own = mode == self.truncation_mode and truncation is not None
        if own and self.bundle.grid:
            return self._chosen("correct", truncation)
        if own and mode == "hub" and truncation == 1.0:
            return self._stored  # Without a table the modules hold those of t = 1.
        return self._made(truncation, mode)

    def _statistics_text(self, truncation, mode):
        own = mode == self.truncation_mode and truncation is not None
        if own and (self.bundle.grid or (mode == "hub" and truncation == 1.0)):
            return "the model's own"
        sample = self.config.sample
        return f"standing, {sample.standing_passes} passes of {sample.standing_batch}"

    def _made(self, truncation, mode):
        key = truncation, mode if truncation is not None else None
        if key not in self._standing:
            made = self._sampler.standing_statistics(self._weights, truncation, mode)
            self._standing[key] = made
        return self._standing[key]

    def _checked(self, labels):
        labels = np.asarray(labels)
        classes = self.config.model.num_classes
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
            raise ConfigError("labels must be a list of class numbers, one an image.")
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ConfigError(f"class {wrong[0]}: this model has classes 0 to {classes - 1}.")
        return labels.astype(np.int32)


def write_sheet(
    model: Model,
    out: str,
    classes: str | None = None,
    num: int = 8,
    seed: int = 0,
    truncation: float | None = None,
    mode: str | None = None,
) -> str:
    """Writes a sheet of images, one class a column.

    Args:
      model: from `load`.
      out: the PNG to write.
      classes: numbers or names with commas between; None for the first ten.
      num: images a class.
      seed: of the latents.
      truncation: see `Model.sample`.
      mode: see `Model.sample`.

    Returns:
      `out`.

    Raises:
      ConfigError: if an argument cannot be used; nothing has been written then.
    """
    if num < 1:
        raise ConfigError(f"--num={num}: must be at least 1.")
    if not out.lower().endswith(".png"):
        raise ConfigError(f"--out={out}: must end in .png.")
    files.check_folder(os.path.dirname(out) or ".", "--out")
    picked = pick_classes(classes, model.class_names)
    # Row by row, so that the latents of a sheet's first rows stay when more rows are asked for.
    images = model.sample(np.tile(picked, num), truncation, seed, mode)
    picture = sheets.sheet(
        images,
        len(picked),
        column_labels=[model.class_names[i] for i in picked],
        title=", ".join([model.title, f"seed {seed}", model.describe(truncation, mode)]),
    )
    sheets.save_png(picture, out)
    return out


def export(path: str, out: str, name: str, step: int | None = None) -> list[str]:
    """Writes a run folder or a bundle in another format.

    Args:
      path: a run folder or a bundle.
      out: the folder to make.
      name: "bundle" or one of `formats.WRITABLE`.
      step: which checkpoint of a run folder; None for the latest.

    Returns:
      Sentences that the user should read.

    Raises:
      ConfigError: if an argument cannot be used or the format cannot hold the model; nothing has
        been written then.
    """
    formats.check_writable(name)
    files.check_new_folder(out, "OUT")
    bundle = read(path, step)
    if name == formats.BUNDLE:
        bundle_lib.write(bundle, out)
        return []
    if name == huggingface.NAME and not bundle.grid:
        huggingface.check(bundle)  # Now, as the statistics take a while.
        Model(bundle).make_table(progress=True)
    return formats.write(bundle, out, name)


def pick_classes(text: str | None, names: Sequence[str]) -> list[int]:
    """Reads `--classes`: numbers or names with commas between, the first ten where there is none.

    Raises:
      ConfigError: naming what is no class, and the nearest name.
    """
    if text is None:
        return list(range(min(10, len(names))))
    picked = []
    for word in (w.strip() for w in text.split(",")):
        if word.isdecimal() and int(word) < len(names):
            picked.append(int(word))
        elif word in names:
            picked.append(list(names).index(word))
        else:
            near = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"--classes: {word!r} is no class: there are 0 to {len(names) - 1}{hint}."
            )
    return picked


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _largest_batch(model):
    """Images a forward pass, so that neither activations nor attention maps fill the memory."""
    batch = MAX_BATCH * 128**2 // max(128, model.resolution) ** 2
    for size in (*model.g_attention, *model.d_attention):
        batch = min(batch, MAX_SCORES // (size**4 // 4))
    return max(1, batch)


def _in_batches(call, batch, x, labels):
    """Calls with examples of one size, so that it compiles once."""
    size = min(len(labels), batch)
    done = []
    for start in range(0, len(labels), size):
        part = np.arange(start, start + size) % len(labels)
        done.append(np.asarray(call(x[part], labels[part])))
    return np.concatenate(done)[: len(labels)]
