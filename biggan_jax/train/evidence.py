"""What is kept of a run's trouble before a rollback or the end of the run takes it away."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from biggan_jax import files
from biggan_jax.train import curves, report
from biggan_jax.train.watchdog import Alarm

_FOLDER = "evidence"


def name(number: int, alarm: Alarm) -> str:
    """Returns the path in the run folder for the evidence of a run's `number`-th alarm."""
    return os.path.join(_FOLDER, f"{number}-{alarm.rule}-{alarm.step}")


def write(workdir: str, folder: str, alarm: Alarm, numbers: Mapping[str, Any]) -> None:
    """Writes `alarm.json` with the step's numbers, copies of the logs, and their curves.

    Args:
      workdir: the run folder.
      folder: as `name` gives it.
      alarm: what the watchdog said.
      numbers: the step's, scalars or arrays by name.
    """
    folder = os.path.join(workdir, folder)
    os.makedirs(folder, exist_ok=True)
    about = {**dataclasses.asdict(alarm), "numbers": jax.tree.map(_plain, numbers)}
    files.write_whole(os.path.join(folder, "alarm.json"), json.dumps(about, indent=2) + "\n")
    for log in (report.METRICS, report.SPECTRA):
        if os.path.exists(os.path.join(workdir, log)):
            shutil.copy(os.path.join(workdir, log), folder)
    curves.draw(folder)


def _plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
