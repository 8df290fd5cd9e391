"""What an export says of itself: `export.json` for programs, `README.md` for people."""

import os
from typing import Any

import jax
import numpy as np

from biggan_jax import __version__
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import frozen as frozen_lib
from biggan_jax.interop.bundle import Bundle

ABOUT = "export.json"


def about(
    bundle: Bundle, frozen: frozen_lib.Frozen, name: str, difference: dict, folder: str
) -> dict[str, Any]:
    """Returns the metadata of an export."""
    model = bundle.model
    size = model["resolution"]
    return {
        "format": f"biggan-jax export: {name}",
        "version": 1,
        "name": bundle.name,
        "model": frozen.model,
        "inputs": {
            "z": {"shape": ["batch", model["z_dim"]], "dtype": "float32"},
            "y": {"shape": ["batch", model["num_classes"]], "dtype": "float32"},
            "truncation": {"shape": [], "dtype": "float32"},
        },
        "output": {"shape": ["batch", size, size, 3], "dtype": "float32", "range": [-1, 1]},
        "truncation": bundle.truncation,
        "truncations": list(bundle.grid),
        "class_names": list(bundle.class_names),
        "weights": sum(
            v.size
            for k, v in frozen.arrays.items()
            if not k.endswith(("/mean", "/var", frozen_lib.TRUNCATIONS))
        ),
        "difference": difference,
        "source": bundle.source,
        "versions": {"biggan_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
        "files": _hashes(folder),
    }


def _hashes(folder):
    found = {}
    for place, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            found[relative] = {"sha256": bundle_lib.sha256(path), "bytes": os.path.getsize(path)}
    return found


_LATENTS = {
    "threshold": "N(0, 1), drawn again until none is beyond +-truncation",
    "hub": "truncation times N(0, 1), drawn again until none is beyond +-2",
    "std": "N(0, truncation^2)",
    "clamp": "N(0, 1), clipped to [-truncation, truncation]",
}


def card(bundle: Bundle, facts: dict[str, Any], use: str) -> str:
    """Returns the card, Markdown.

    Args:
      bundle: the model.
      facts: of `about`.
      use: Python code that makes images.
    """
    model, size = bundle.model, bundle.model["resolution"]
    grid = facts["truncations"]
    if grid:
        statistics = (
            f"Chooses BN statistics, which are here for {len(grid)} truncations from {grid[0]:g} to"
            f" {grid[-1]:g}; between them they are blended, outside the nearest serve."
        )
    else:
        statistics = "Has no effect: there is one set of BN statistics."
    lines = [
        *bundle_lib.heading(bundle),
        "",
        "## Use",
        "",
        "```python",
        use,
        "```",
        "",
        "| input | shape | what |",
        "| --- | --- | --- |",
        f"| z | [N, {model['z_dim']}] | latents, used as they are: {_LATENTS[bundle.truncation]} |",
        f"| y | [N, {model['num_classes']}] | weights of the classes: a row of the unit matrix"
        " for one class, a mixture for several |",
        f"| truncation | scalar | {statistics} |",
        "",
        f"All are float32. The result is float32 [N, {size}, {size}, 3] in [-1, 1]; N is free.",
        "",
        "## Checked",
        "",
        bundle_lib.difference_line(facts["difference"]),
        "",
        *bundle_lib.provenance(bundle, {k: v["sha256"] for k, v in facts["files"].items()}),
    ]
    return "\n".join(lines)
