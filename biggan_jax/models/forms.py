"""Which form of an operation is used: a table a backend, measured, in `forms.json`.

`python -m benchmarks.conv_forms --write` measures the machine it runs on and writes that backend's
part. The table reads

    {backend: {dtype: {operation: {channels: {side: form}}}}}

where the channels are the smaller of input's and output's and the side is the smaller one of the
input; an entry holds from its number up to the next. What is not in the table, and a form that
cannot take a shape, means `"plain"`: the native operation, the tested truth.
"""

import functools
import importlib.resources
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from biggan_jax.config import ConfigError

PLAIN = "plain"
FILE = "forms.json"


@functools.cache
def table() -> Mapping[str, Any]:
    """Returns the table that the package ships."""
    return json.loads(importlib.resources.files(__package__).joinpath(FILE).read_text("utf-8"))


def look_up(
    table: Mapping[str, Any], backend: str, dtype: str, operation: str, channels: int, side: int
) -> str:
    """Returns the form that a table names, "plain" if none.

    Args:
      table: as in `forms.json`.
      backend: "cpu", "gpu" or "tpu".
      dtype: of the operation's input, "float32" or "bfloat16".
      operation: "conv3x3", "up_conv3x3", "conv3x3_down", "conv1x1", "nearest_up2", "avg_pool2" or
        "attention".
      channels: the smaller of input's and output's.
      side: the smaller side of the input, in pixels.
    """
    by_channels = table.get(backend, {}).get(dtype, {}).get(operation, {})
    return _at(_at(by_channels, channels) or {}, side) or PLAIN


def _at(thresholds, value):
    reached = [key for key in thresholds if int(key) <= value]
    return thresholds[max(reached, key=int)] if reached else None


def pick(
    operation: str, x: jax.Array, cout: int, backend: str | None, takes: Callable[[str], bool]
) -> str:
    """Returns the form for an input.

    Args:
      operation: as in `look_up`.
      x: the input `[B, H, W, Cin]`.
      cout: output channels.
      backend: of the devices that will run it; None for JAX's default one.
      takes: whether a form can take this shape.
    """
    backend = backend or jax.default_backend()
    channels, side = min(x.shape[-1], cout), min(x.shape[1:3])
    form = look_up(table(), backend, x.dtype.name, operation, channels, side)
    return form if takes(form) else PLAIN


def check(operation: str, form: str, known: Mapping[str, Any]) -> None:
    """Checks a form's name.

    Raises:
      ConfigError: if it is not one of `known`.
    """
    if form not in known:
        raise ConfigError(
            f"{operation}: unknown form {form!r}; allowed: {', '.join(map(repr, known))}, None"
        )
