"""Which checkpoints of a run are kept."""

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Keep:
    """What one rule keeps, no other removes.

    latest: how many of the latest; at least 1, so that a run can always go on from where it was.
    every: those whose step is a multiple of this; 0 for none.
    best: how many with the best value of `metric`; 0 for none. Only regular checkpoints that were
      saved with a value take part; of equal ones the later is the better.
    metric: its name.
    lowest: whether a lower value is the better one.
    cadence: the steps between two regular saves; 0 if all are. What was saved besides, half-way or
      on a signal, is kept until a later one is there, and is not counted. So it pushes no regular
      one out, and what a rollback finds does not depend on when signals came.
    """

    latest: int
    every: int = 0
    best: int = 0
    metric: str = ""
    lowest: bool = True
    cadence: int = 0

    def __post_init__(self):
        if self.latest < 1:
            raise ValueError(f"keep={self.latest}: must be at least 1, or None for reading only.")
        if self.every < 0 or self.best < 0:
            raise ValueError(f"every={self.every}, best={self.best}: must be at least 0.")

    def choose(self, steps: Sequence[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Returns the steps to keep.

        Args:
          steps: of all checkpoints, ascending.
          metrics: by step, what each was saved with; a step may be missing.
        """
        regular = [s for s in steps if not self.cadence or s % self.cadence == 0]
        kept = {*regular[-self.latest :], *steps[-1:]}  # The newest is where a run goes on from.
        if self.every:
            kept |= {step for step in steps if step % self.every == 0}
        if self.best:
            sign = -1 if self.lowest else 1
            values = [
                (sign * metrics[step][self.metric], step)
                for step in regular
                if self.metric in metrics.get(step, {})
            ]
            kept |= {step for _, step in sorted(values)[-self.best :]}
        return kept
