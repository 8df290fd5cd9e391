"""How long the steps of a run take, kept in its folder for `biggan plan --run`."""

import collections
import json
import os
import statistics
from collections.abc import Mapping
from typing import Any

from biggan_jax import config as config_lib
from biggan_jax import files

FILE = "step_time.json"
_LAST = 1000  # Progress lines that count.
_FIELDS = {
    "step_seconds": float,
    "reports": int,
    "device_kind": str,
    "devices": int,
    "processes": int,
    "slices": int,
}


class StepTime:
    """The step time of this start of a run."""

    def __init__(
        self, workdir: str | os.PathLike[str], config: Mapping[str, Any], where: Mapping[str, Any]
    ):
        """Writes nothing yet.

        Args:
          workdir: the run folder.
          config: resolved.
          where: what the run runs on; see `mesh.describe`.
        """
        self._path = os.path.join(workdir, FILE)
        self._facts = {"config_sha256": config_lib.fingerprint(config), **where}
        self._seconds: collections.deque[float] = collections.deque(maxlen=_LAST)

    def add(self, seconds: float) -> None:
        """Takes the seconds of a step between two progress lines, and writes the median so far.

        The median, as pictures, checkpoints and evaluations make some lines long.
        """
        self._seconds.append(seconds)
        said = {"step_seconds": statistics.median(self._seconds), "reports": len(self._seconds)}
        files.write_whole(self._path, json.dumps(said | self._facts, indent=2) + "\n")


def read(run: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns step_seconds, reports (progress lines of which it is the median) and `where`.

    Args:
      run: the folder.
      config: the run's.

    Raises:
      ConfigError: if nothing was measured, or not with this config, or the file is damaged.
    """
    path = os.path.join(run, FILE)
    again = "it is written with the second progress line of a start"
    try:
        with open(path, encoding="utf-8") as f:
            said = json.load(f)
        found = {name: kind(said[name]) for name, kind in _FIELDS.items()}
        of = said["config_sha256"]
    except FileNotFoundError:
        raise config_lib.ConfigError(
            f"--run={run}: there is no {FILE}, so no step time was measured; {again}."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise config_lib.ConfigError(
            f"--run={run}: {FILE} is damaged ({type(e).__name__}: {e}); {again}."
        ) from None
    if of != config_lib.fingerprint(config):
        raise config_lib.ConfigError(
            f"--run={run}: {FILE} is of a start with another config, or on other devices, than"
            f" config.json; {again}."
        )
    return found
