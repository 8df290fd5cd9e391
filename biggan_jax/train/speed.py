"""How much of the hardware a run uses: model FLOP utilisation."""

from collections.abc import Mapping
from typing import Any

import jax

from biggan_jax.gan import flops
from biggan_jax.parallel import slices


class Speed:
    """Turns the seconds of a step into model FLOP utilisation (MFU).

    Attributes:
      why_not: why MFU is not told, "" where it is.
    """

    def __init__(self, config: Mapping[str, Any], kind: str | None = None):
        """Counts what a step needs and looks up what the devices can do.

        Args:
          config: resolved.
          kind: what JAX calls the devices; those at hand, if not given.
        """
        kind = kind or jax.devices()[0].device_kind
        chip = slices.of_device(kind)
        self.why_not = "" if chip else f"no published peak is known for {kind!r}"
        self._peak = None
        if chip:
            rate = slices.matrix_rate(chip, config["model"]["dtype"])
            self._peak = rate / chip.devices * config["device_count"]
            self._flops = flops.step(config).needed

    def mfu(self, step_seconds: float) -> float | None:
        """Returns the FLOPs needed over those that the devices could have done, or None.

        Needed are those of `gan/flops.py`, at the devices' published peak for the dtype of
        convolutions.
        """
        return self._flops / step_seconds / self._peak if self._peak else None
