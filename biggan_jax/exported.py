"""Sampling what `biggan export` wrote for other programs, by those programs."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from biggan_jax import sampling
from biggan_jax.config import ConfigError
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import export_card, formats, stablehlo
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import latents, names, tiles

_FORMAT = "biggan-jax export: "
_NO_BOUND = 4.0  # Of a normal's draws 6 in 100,000 are beyond: as good as all are within.


def is_export(path: str) -> bool:
    """Returns whether a folder was written by `biggan export` for another program."""
    return os.path.isfile(os.path.join(path, export_card.ABOUT))


class Exported(sampling.Sampling):
    """An export, run on one device by the program it was written for.

    Attributes:
      about: what its `export.json` says.
      format: one of `formats.PROGRAMS`.
    """

    def __init__(self, path: str):
        """Reads a folder, every byte of it checked; runs no Python of it.

        Raises:
          ConfigError: if it is damaged, or what runs it is not installed.
        """
        self.about = _read(path)
        model = self.about["model"]
        config = sampling.model_config(self.about["name"], model)
        self.config = ml_collections.FrozenConfigDict(config)
        self.name, self.progress = self.about["name"], False
        self.class_names = names.of_model(self.about["class_names"], model["num_classes"])
        self.truncation_mode = self.about["truncation"]
        self.format = self.about["format"].removeprefix(_FORMAT)
        program = formats.program(self.format)
        load = stablehlo.open_program if program is stablehlo else program.load
        try:
            generate = load(path)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as e:
            raise ConfigError(f"{path!r}: {self.format} cannot run it: {e}.") from e
        self._tiles = _Program(generate, self.config)

    @property
    def step(self) -> int | None:
        """Of the training; None where it is not known."""
        return self.about["source"].get("itr")

    def protocol(self, truncation: float | None, mode: str | None) -> dict[str, Any]:
        """Returns what `sample` does with these arguments, for JSON beside a score."""
        truncation, mode = self._settled(truncation, mode)
        return {
            "weights": f"those of an export, {self.format}",
            "truncation": truncation,
            "mode": None if truncation is None else mode,
            "statistics": "the model's own",
            "dtype": "float32",
        }

    def _statistics(self, truncation, mode):
        """The truncation whose BN statistics the program is to take."""
        if truncation is not None and mode != self.truncation_mode:
            raise ConfigError(
                f"--mode={mode}: this export has BN statistics for {self.truncation_mode} alone."
            )
        grid = self.about["truncations"]
        if not grid:
            return 1.0  # It takes those stored with the weights, whatever this is.
        low, high = grid[0], grid[-1]
        if truncation is None:
            bound = self.truncation_mode in ("threshold", "clamp")
            if high < (_NO_BOUND if bound else 1.0):
                raise ConfigError(
                    "--truncation: this export has no BN statistics for the plain normal; it has"
                    f" those for {low:g} to {high:g}."
                )
            return high if bound else 1.0
        if not low <= truncation <= high:
            raise ConfigError(
                f"--truncation={truncation:g}: must be from {low:g} to {high:g}, for which this"
                " export has BN statistics."
            )
        return truncation


class _Program:
    """As `tiles.Tiles`, around `generate(z, y, truncation)`."""

    def __init__(self, generate: Callable[..., np.ndarray], config: Any):
        self.mesh = mesh_lib.make_mesh(1)
        self.size = tiles.tile_size(config.model, self.mesh.devices.flat[0].platform)
        self._generate = generate
        z_dim = config.model.z_dim
        self._draw = jax.jit(
            lambda index, seed, truncation, mode: latents.draw(
                seed, index, z_dim, truncation, mode
            ),
            static_argnames="mode",
        )

    def latents(
        self, index: np.ndarray, seed: int, truncation: float | None, mode: str
    ) -> np.ndarray:
        draw = lambda part: self._draw(part, seed, truncation, mode=mode)  # noqa: E731
        return np.concatenate([z for _, z in tiles.blocks(draw, [index], self.size)])

    def images(
        self,
        truncation: float,
        z: np.ndarray,
        mix: Callable[[np.ndarray], np.ndarray],
        first: int = 0,
        batch: int | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        call = lambda z, number: self._generate(z, mix(number), truncation)  # noqa: E731
        return tiles.blocks(call, [z, np.arange(len(z))], self.size, first=first, batch=batch)


def _read(path):
    place = os.path.join(path, export_card.ABOUT)
    try:
        with open(place) as f:
            about = json.load(f)
        if not about["format"].startswith(_FORMAT) or about["version"] != 1:
            raise ValueError(f"its format is {about['format']!r}, version {about['version']}")
        if about["format"].removeprefix(_FORMAT) not in formats.PROGRAMS:
            raise ValueError(f"its format is {about['format']!r}")
        for key in ("name", "model", "class_names", "truncation", "truncations", "source"):
            about[key]
        for name, facts in about["files"].items():
            file = os.path.join(path, name)
            if not os.path.isfile(file) or bundle_lib.sha256(file) != facts["sha256"]:
                raise ConfigError(f"{file!r} is damaged or missing: see {export_card.ABOUT}.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{place!r} cannot be read: {e!r}.") from e
    return about
