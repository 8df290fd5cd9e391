"""The rollbacks of a run: which there were, and what they change for good.

They are a list in `rollbacks.json`, written before anything else of a rollback happens: whenever
the process dies, the next start finishes what the list says. A run's draws and rates follow from
its config, the step and this list: a rollback holds from the step it went back to. A run that has
to go on from before that step, as its checkpoints were damaged, comes to it by the draws of then.
"""

import dataclasses
import json
import os

from biggan_jax import files
from biggan_jax.config import ConfigError

NAME = "rollbacks.json"


@dataclasses.dataclass(frozen=True)
class Rollback:
    """One way back.

    Attributes:
      number: 1 for a run's first.
      at: the step whose numbers raised the alarm.
      to: the step gone back to; 0 for the start.
      rule: which of the watchdog's rules it was.
      text: what the alarm said.
    """

    number: int
    at: int
    to: int
    rule: str
    text: str


class Ledger:
    """The rollbacks of a run folder."""

    def __init__(self, workdir: str, is_main: bool):
        """Reads what there is; `is_main` says whether this process is the one that writes.

        Raises:
          ConfigError: if the file is damaged.
        """
        self._path = os.path.join(workdir, NAME)
        self._is_main = is_main
        self.rollbacks: list[Rollback] = []
        try:
            with open(self._path, encoding="utf-8") as f:
                self.rollbacks = [Rollback(**entry) for entry in json.load(f)]
        except FileNotFoundError:
            pass
        except (ValueError, TypeError) as e:
            raise ConfigError(
                f"{self._path}: is damaged ({e}); without it nobody knows which random numbers the"
                " run goes on with. Restore it, or remove it to go on as if there had been none."
            ) from e

    def until(self, step: int) -> list[Rollback]:
        """Returns the rollbacks up to the newest that holds in step `step` + 1."""
        number = max((back.number for back in self.rollbacks if back.to <= step), default=0)
        return [back for back in self.rollbacks if back.number <= number]

    def next_after(self, step: int) -> int | None:
        """Returns the first step after `step` from which on another rollback holds, if any."""
        later = self.rollbacks[len(self.until(step)) :]
        return min((back.to for back in later), default=None)

    def add(self, rollback: Rollback) -> None:
        """Writes one more down, for good."""
        self.rollbacks.append(rollback)
        if self._is_main:
            entries = [dataclasses.asdict(entry) for entry in self.rollbacks]
            files.write_whole(self._path, json.dumps(entries, indent=2) + "\n")
            files.make_durable(os.path.dirname(self._path))
