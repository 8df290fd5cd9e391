"""Rules that tell when a run is lost: numbers in, an alarm out.

A rule must hold for a run of 150,000 steps whose losses drift, so each asks for what no healthy
run does, and for a whole window or several looks of it. What was measured is in docs/watchdog.md.

nan: something is not a finite number, by the step's `bad` or among the numbers themselves. From
  then on nothing is learnt.
d_flat: mean |D(real) - D(fake)| over a window is below `flat_gap`. D says the same of every image,
  so neither network has a gradient. Where logits differ at all, chance alone moves the difference
  further than that.
d_won: D's mean loss over a window is below `won_loss`. The hinge loss is 0 only where all reals
  are above 1 and all fakes below -1: D has nothing left to learn and G does not follow.
runaway: half the steps of a window have D's loss, or the size of G's, above `loss_limit`. Usual are
  0 to 3 (Brock et al. 2018 saw 300 with D frozen); a wild step or two are no alarm.
diversity: in two looks in a row, fakes of one class are nearer to each other than `diversity_drop`
  of what is usual: G makes one image, or one a class. Usual is the median of the looks before, once
  there are five, and after step `diversity_after` also how far reals are apart. Not before: how
  alike the blurs are that a model begins with is nobody's measure.
sigma: the largest singular value of a weight is `sigma_growth` times what it was `sigma_looks`
  looks ago (or 1, if it was less). In the paper those of G explode at collapse, and grow slowly
  before.

Means of low numbers and medians of high ones are what a few odd steps cannot bring about. There
are no jax arrays here; decisions are a function of the numbers seen and of `state`.
"""

import collections
import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from biggan_jax.gan import metrics as gan_metrics

_LOOKS = 50  # Looks whose median diversity is the usual one.
_FEWEST_LOOKS = 5  # That have a median worth the name.
_LOW_LOOKS = 2  # In a row that make an alarm.


@dataclasses.dataclass(frozen=True)
class Alarm:
    """Why a run is lost.

    Attributes:
      rule: its name.
      step: at which it fired.
      since: the step from which the trouble shows; for "nan" the step itself. What was there
        before may be healthy.
      where: the metric, weight or parts.
      text: one sentence with numbers.
    """

    rule: str
    step: int
    since: int
    where: str
    text: str


class Watchdog:
    """The rules with what they remember of the run."""

    def __init__(self, watch: Mapping[str, Any], real_diversity: float | None = None):
        """Remembers nothing yet.

        Args:
          watch: `config.watch`.
          real_diversity: how far two reals of one class lie apart, as `spectra.diversity` has it;
            None where they tell nothing.
        """
        self._watch = watch
        self._real_diversity = real_diversity
        self._window: collections.deque = collections.deque(maxlen=watch["window"])
        self._diversities: collections.deque = collections.deque(maxlen=_LOOKS)
        self._low: list[int] = []  # Steps of the low looks in a row.
        self._sigmas: collections.deque = collections.deque(maxlen=watch["sigma_looks"])

    def see(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Takes the numbers of one finished step; called for each, in order.

        Args:
          step: how many steps are done.
          metrics: of that step: `bad`, `d_loss`, `g_loss`, `d_real`, `d_fake` at least.
        """
        lost = gan_metrics.bad_text(int(metrics["bad"])) if math.isfinite(metrics["bad"]) else "bad"
        lost = lost or ", ".join(k for k, v in metrics.items() if not math.isfinite(v))
        if lost:
            return Alarm("nan", step, step, lost, f"step {step:,}: not a finite number: {lost}.")
        gap = abs(metrics["d_real"] - metrics["d_fake"])
        self._window.append((gap, float(metrics["d_loss"]), abs(metrics["g_loss"])))
        if len(self._window) < self._watch["window"]:
            return None
        gap, d_loss = (statistics.fmean(row[i] for row in self._window) for i in (0, 1))
        if gap < self._watch["flat_gap"]:
            what = "mean |D(real) - D(fake)|"
            return self._window_alarm("d_flat", step, "d_real - d_fake", what, gap, "flat_gap")
        if d_loss < self._watch["won_loss"]:
            return self._window_alarm("d_won", step, "d_loss", "D's mean loss", d_loss, "won_loss")
        for i, name in ((1, "d_loss"), (2, "g_loss")):
            median = statistics.median(row[i] for row in self._window)
            if median > self._watch["loss_limit"]:
                return self._window_alarm(
                    "runaway", step, name, f"the median of |{name}|", median, "loss_limit"
                )
        return None

    def look(
        self,
        step: int,
        sigmas: Sequence[Sequence[float]],
        names: Sequence[str],
        diversity: float,
    ) -> Alarm | None:
        """Takes what one look at the weights and the fakes found.

        Args:
          step: how many steps are done; larger than at the look before.
          sigmas: [weights, 3] singular values, the largest first.
          names: the weights'.
          diversity: of the fakes.
        """
        top = {name: float(values[0]) for name, values in zip(names, sigmas, strict=True)}
        found = {"diversity": diversity, **{f"sigma of {k}": v for k, v in top.items()}}
        lost = ", ".join(k for k, v in found.items() if not math.isfinite(v))
        if lost:
            return Alarm("nan", step, step, lost, f"step {step:,}: not a finite number: {lost}.")
        return self._look_at_diversity(step, float(diversity)) or self._look_at_sigmas(step, top)

    def state(self) -> dict[str, Any]:
        """Returns what is remembered, for JSON: at most `window` steps and 50 looks.

        Kept with a checkpoint and loaded with it, a restart changes no decision.
        """
        return {
            "window": [list(row) for row in self._window],
            "diversities": [list(pair) for pair in self._diversities],
            "low": list(self._low),
            "sigmas": [[step, dict(top)] for step, top in self._sigmas],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave, in place of what is remembered; {} forgets all."""
        refill(self._window, state.get("window", ()), tuple)
        refill(self._diversities, state.get("diversities", ()), tuple)
        self._low = list(state.get("low", ()))
        refill(self._sigmas, state.get("sigmas", ()), lambda pair: (pair[0], dict(pair[1])))

    def after_rollback(self, step: int) -> None:
        """Forgets what was seen after `step`, the checkpoint's, and begins a new window.

        The same whether the checkpoint's own state was loaded before or not. A window is begun as
        the steps that come now have other draws.
        """
        self._window.clear()
        refill(self._diversities, [pair for pair in self._diversities if pair[0] <= step])
        self._low = []
        refill(self._sigmas, [pair for pair in self._sigmas if pair[0] <= step])

    def _window_alarm(self, rule, step, where, what, value, key):
        count = len(self._window)
        self._window.clear()  # Where the alarm is ignored, the next needs a window of its own.
        side = "above" if key == "loss_limit" else "below"
        text = (
            f"step {step:,}: {what} over {count:,} steps is {value:.3g}, {side} watch.{key} ="
            f" {self._watch[key]:g}."
        )
        return Alarm(rule, step, max(0, step - count), where, text)

    def _look_at_diversity(self, step, diversity):
        usual = {}
        if len(self._diversities) >= _FEWEST_LOOKS:
            before = statistics.median(value for _, value in self._diversities)
            usual["its median before,"] = before
        if self._real_diversity is not None and step > self._watch["diversity_after"]:
            usual["the reals'"] = self._real_diversity
        what = max(usual, key=lambda name: usual[name], default="")
        share = self._watch["diversity_drop"]
        if not what or not diversity < share * usual[what]:
            self._low = []
            self._diversities.append((step, diversity))
            return None
        # Low looks are not remembered as usual ones.
        self._low.append(step)
        if len(self._low) < _LOW_LOOKS:
            return None
        limit = share * usual[what]
        since = max((at for at, value in self._diversities if value >= limit), default=0)
        self._low = []
        text = (
            f"step {step:,}: fakes of one class are {diversity:.3g} apart, for {_LOW_LOOKS} looks"
            f" below watch.diversity_drop = {share:g} of {what} {usual[what]:.3g}."
        )
        return Alarm("diversity", step, since, "diversity", text)

    def _look_at_sigmas(self, step, top):
        full = len(self._sigmas) == self._watch["sigma_looks"]
        since, past = self._sigmas[0] if full else (step, {})
        self._sigmas.append((step, top))
        growth = {name: value / max(1.0, past[name]) for name, value in top.items() if name in past}
        name = max(growth, key=lambda name: growth[name], default="")
        if not name or growth[name] <= self._watch["sigma_growth"]:
            return None
        self._sigmas.clear()
        text = (
            f"step {step:,}: the largest singular value of {name} is {top[name]:.3g}, at step"
            f" {since:,} it was {past[name]:.3g}: above watch.sigma_growth ="
            f" {self._watch['sigma_growth']:g} times that."
        )
        return Alarm("sigma", step, since, name, text)


def refill(
    memory: collections.deque, items: Sequence[Any], make: Callable[[Any], Any] = lambda item: item
) -> None:
    """Replaces what a deque holds."""
    made = [make(item) for item in items]
    memory.clear()
    memory.extend(made)
