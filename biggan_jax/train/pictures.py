"""The sheets of a run: its reals, and its fakes step by step."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from biggan_jax.gan.state import GanState
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import sampler, sheets

REALS = os.path.join("samples", "reals.png")


def fakes_name(step: int) -> str:
    """Returns the path of a step's sheet in the run folder."""
    return os.path.join("samples", f"fakes_{step:06d}.png")


class Pictures:
    """Draws into one run folder; all processes make the images, process 0 writes them."""

    def __init__(
        self,
        config: Mapping[str, Any],
        workdir: str,
        mesh: Mesh,
        class_names: Sequence[str],
        between: Callable[[], None],
    ):
        """Takes what the sheets need.

        Args:
          config: resolved.
          workdir: the run folder.
          mesh: where the states are.
          class_names: of all classes, in order.
          between: called between two batches of samples.
        """
        self._config, self._workdir = config, workdir
        self._class_names = class_names
        self._is_main = jax.process_index() == 0
        self._sampler = sampler.Sampler(config, mesh, between)

    def reals(self, images: np.ndarray, dataset: str) -> None:
        """Writes the sheet of reals, [rows x classes, R, R, 3] in -1..1."""
        self._save(images, REALS, f"{dataset}: reals")

    def fakes(self, state: GanState, name: str) -> Image.Image | None:
        """Writes a sheet from latents and labels that stay the same through the run.

        Args:
          state: its EMA weights are used, with standing statistics.
          name: path in the run folder.

        Returns:
          The sheet; None in other processes than the first.

        Raises:
          ValueError: if the images hold NaN.
        """
        c = self._config
        weights = mesh_lib.gathered(sampler.ema_weights(state), self._sampler.mesh)
        statistics = self._sampler.standing_statistics(weights)
        labels = np.tile(np.arange(c["sample"]["classes"]), c["sample"]["rows"])
        images = self._sampler.sample(weights, statistics, labels, c["seed"])
        return self._save(images, name, f"{c['name']}: step {int(state.step):,}, no truncation")

    def _save(self, images, name, title):
        if not self._is_main:
            return None
        classes = self._config["sample"]["classes"]
        picture = sheets.sheet(
            images, columns=classes, column_labels=self._class_names[:classes], title=title
        )
        sheets.save_png(picture, os.path.join(self._workdir, name))
        return picture
