"""What trained models and exported programs share: sampling, whatever computes the images."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.sample import latents, names, sheets, walk


class Sampling(abc.ABC):
    """What can be sampled.

    Attributes:
      name: of the model.
      config: its `config.model` and how it is sampled.
      class_names: K texts; ImageNet's names of 1,000 classes without any, and numbers where
        nothing is known.
      truncation_mode: the convention it was made for, see `sample.latents`.
      progress: whether what takes long shows a bar on stderr; off unless set.
    """

    name: str
    config: Any
    class_names: Sequence[str]
    truncation_mode: str
    progress: bool
    _tiles: Any  # A `sample.tiles.Tiles`, or what has its `latents` and `images`.

    @property
    @abc.abstractmethod
    def step(self) -> int | None:
        """Of the training; None where it is not known."""

    @abc.abstractmethod
    def protocol(self, truncation: float | None, mode: str | None) -> dict[str, Any]:
        """Returns what `sample` does with these arguments, for JSON beside a score."""

    @abc.abstractmethod
    def _statistics(self, truncation: float | None, mode: str) -> Any:
        """What `self._tiles.images` wants for a truncation.

        Raises:
          ConfigError: if there is nothing for it.
        """

    @property
    def title(self) -> str:
        """The name and, where it is known, the step, for a sheet."""
        return self.name if self.step is None else f"{self.name}: step {self.step:,}"

    @property
    def devices(self) -> int:
        """How many devices compute the images."""
        return self._tiles.mesh.size

    @property
    def tile(self) -> int:
        """How many images a device computes together; fewer take as long."""
        return self._tiles.size

    def sample(
        self,
        labels: Sequence[int] | np.ndarray,
        truncation: float | None = None,
        seed: int = 0,
        mode: str | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """Generates one image a label.

        BN statistics fit the truncation: those that the model brings for it in this mode, else
        standing statistics, made once a truncation (which takes as long as some hundred images).

        Args:
          labels: [N] class numbers, or [N, K] weights of the classes, as of `mix`.
          truncation: see `sample.latents`; None for the plain normal, but for models made for mode
            hub, whose largest t is 1, for that.
          seed: of the latents; image i depends on (seed, first + i) and its label alone, to the
            byte: not on N nor on the devices.
          mode: what the truncation means; None for the model's own convention.
          first: place of the first image in the series of `seed`.

        Returns:
          [N, H, W, 3] uint8, `round(127.5 (x + 1))`.

        Raises:
          ConfigError: if a label is none of the model's, or another argument cannot be.
        """
        blocks = self.stream(labels, truncation, seed, mode, first)
        return np.concatenate([images for _, images in blocks])

    def render(
        self,
        z: Any,
        labels: Sequence[int] | np.ndarray,
        truncation: float | None = None,
        mode: str | None = None,
    ) -> np.ndarray:
        """Generates images from latents of one's own, with the BN statistics that `sample` takes.

        Args:
          z: [N, z_dim], used as it is.
          labels: [N] class numbers, or [N, K] weights of the classes, as of `mix`.
          truncation: see `sample`; which BN statistics.
          mode: see `sample`.

        Returns:
          [N, H, W, 3] uint8; of the latents and labels of `sample` the same images.

        Raises:
          ConfigError: if an argument cannot be used.
        """
        truncation, mode = self.check(truncation, mode, 0)
        z, labels = np.asarray(z, np.float32), self._checked(labels)
        self._check_z(z, (len(labels), self.config.model.z_dim))
        blocks = self._tiles.images(self._statistics(truncation, mode), z, self._mixes(labels))
        return np.concatenate([sheets.to_uint8(images) for _, images in blocks])

    def stream(
        self,
        labels: Sequence[int] | np.ndarray,
        truncation: float | None = None,
        seed: int = 0,
        mode: str | None = None,
        first: int = 0,
        batch: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """As `sample`, block by block, for more images than memory holds.

        Args:
          labels: see `sample`.
          truncation: see `sample`.
          seed: see `sample`.
          mode: see `sample`.
          first: see `sample`.
          batch: images on their way at once, rounded up to what the devices take; changes no byte.

        Returns:
          Yields the number of the block's first image and its images, in order. Arguments are
          checked and statistics made before it returns.

        Raises:
          ConfigError: as `sample`.
        """
        truncation, mode = self.check(truncation, mode, seed)
        if first < 0:
            raise ConfigError(f"first={first}: must be at least 0.")
        if batch is not None and batch < 1:
            raise ConfigError(f"--batch={batch}: must be at least 1.")
        labels = self._checked(labels)
        stats = self._statistics(truncation, mode)
        index = np.arange(first, first + len(labels))
        z = self._tiles.latents(index, seed, truncation, mode)
        blocks = self._tiles.images(stats, z, self._mixes(labels), first, batch)
        return ((number, sheets.to_uint8(block)) for number, block in blocks)

    def check(
        self, truncation: float | None, mode: str | None, seed: int
    ) -> tuple[float | None, str]:
        """Returns the truncation and the mode that `sample` takes these for, without any work.

        Raises:
          ConfigError: if it would not take them.
        """
        truncation, mode = self._settled(truncation, mode)
        latents.check_truncation(truncation, mode)
        if not 0 <= seed < 2**31:
            raise ConfigError(f"--seed={seed}: must be at least 0 and below 2**31.")
        return truncation, mode

    def latents(
        self, count: int, truncation: float | None = None, seed: int = 0, mode: str | None = None
    ) -> np.ndarray:
        """Returns the latents [count, z_dim] that `sample` uses with these arguments."""
        truncation, mode = self._settled(truncation, mode)
        latents.check_truncation(truncation, mode)
        return self._tiles.latents(np.arange(count), seed, truncation, mode)

    def mix(self, weights: Mapping[int | str, float]) -> np.ndarray:
        """Returns a class between classes, for `sample` and `generate`.

        Args:
          weights: `{class number or name: weight}`; divided by their sum, which must be above 0.

        Returns:
          [K] float32: the class tables give the weighted sum of their rows.

        Raises:
          ConfigError: if a class is none of the model's, or the weights cannot be.
        """
        row = np.zeros(self.config.model.num_classes, np.float32)
        for key, weight in weights.items():
            row[names.pick(str(key), self.class_names)[0]] += weight
        if not (np.isfinite(row).all() and (row >= 0).all() and row.sum() > 0):
            raise ConfigError("a mix: needs weights of at least 0, and one above it.")
        return row / row.sum()

    def walk(
        self,
        points: Sequence[walk.Point],
        frames: int = 16,
        truncation: float | None = None,
        mode: str | None = None,
        how: str = "spherical",
        loop: bool = False,
        batch: int | None = None,
    ) -> np.ndarray:
        """Generates the images of a path through latents and classes.

        Args:
          points: two or more of `sample.walk.Point`, pairs of a latent [z_dim] and a class number
            or mix [K].
          frames: from a point to the next.
          truncation: which BN statistics; the latents are taken as they are.
          mode: see `sample`.
          how: the way between latents, "spherical" or "linear"; classes always mix linearly.
          loop: whether to go back to the first point in the end.
          batch: see `stream`.

        Returns:
          [F, H, W, 3] uint8; F is `frames` a leg, and one more at the end unless it is a loop.

        Raises:
          ConfigError: if an argument cannot be used.
        """
        truncation, mode = self._settled(truncation, mode)
        latents.check_truncation(truncation, mode)
        ends = [np.asarray(z, np.float32) for z, _ in points]
        for end in ends:
            self._check_z(end, (self.config.model.z_dim,))
        classes = [self._checked(np.asarray(c)[None]) for _, c in points]
        mixes = [self._mixes(c)(np.arange(1))[0] for c in classes]
        z, mix = walk.path(ends, mixes, frames, how, loop)
        stats = self._statistics(truncation, mode)
        done = []
        with progress_bar(len(z), self.progress) as bar:
            for _, block in self._tiles.images(stats, z, mix.__getitem__, batch=batch):
                done.append(sheets.to_uint8(block))
                bar.update(len(block))
        return np.concatenate(done)

    @property
    def slots(self) -> int:
        """In how many chunks z is split, each for a part of the network; 1 for one whole."""
        return config_lib.slots(self.config)

    def describe(self, truncation: float | None, mode: str | None) -> str:
        """Returns in words what `sample` does with these arguments, for a sheet."""
        return latents.describe(*self._settled(truncation, mode))

    def _settled(self, truncation, mode):
        mode = self.truncation_mode if mode is None else mode
        if truncation is None and mode == self.truncation_mode == "hub":
            truncation = 1.0  # These models know no plain normal (spec section 14.1).
        return truncation, mode

    def _check_z(self, z, shape):
        if z.shape != shape or not np.isfinite(z).all():
            raise ConfigError(f"z is of shape {list(z.shape)} and must be {list(shape)}, finite.")

    def _checked(self, labels, mixed=True):
        """Class numbers [N], int32, or, where they may be `mixed`, mixes [N, K], float32."""
        labels = np.asarray(labels)
        classes = self.config.model.num_classes
        if mixed and labels.ndim == 2 and labels.shape[1] == classes and len(labels):
            if not np.isfinite(labels).all():
                raise ConfigError("a mix of classes must be finite.")
            return labels.astype(np.float32)
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
            raise ConfigError("labels must be a list of class numbers, one an image.")
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise ConfigError(f"class {wrong[0]}: this model has classes 0 to {classes - 1}.")
        return labels.astype(np.int32)

    def _mixes(self, labels):
        """What makes the mixes of some of the images: of 50,000 at once they would fill memory."""
        if labels.ndim == 2:
            return labels.__getitem__
        classes = np.arange(self.config.model.num_classes)
        return lambda number: np.float32(labels[number][:, None] == classes)


def model_config(name: str, model: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a config, to be resolved, of a `config.model` as JSON holds it."""
    config = config_lib.default()
    config.name = name
    config.model.update({k: tuple(v) if isinstance(v, list) else v for k, v in model.items()})
    return config


def progress_bar(total: int, shown: bool, what: str | None = None) -> Any:
    """Returns a bar for stderr: images done, images a second, time left; after two seconds."""
    import tqdm

    return tqdm.tqdm(total=total, desc=what, unit=" images", delay=2, disable=not shown)
