"""Scores that another process gives a run's checkpoints, beside the run; it may have them kept.

`watch_scores.jsonl` in the run folder holds a line a checkpoint: `{"step", "rollbacks", "scores":
{name: value}, "protocol"}`. Manifests do not change once they are written, so the scores are not in
them; the same step after as many rollbacks is the same checkpoint.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from biggan_jax import files
from biggan_jax.train import curves

NAME = "watch_scores.jsonl"
MARK = "_watch/"  # In the name of every such score.


def read(run: str) -> list[dict[str, Any]]:
    """Returns the whole lines of a run, in the order in which they were written."""
    return [line for line in curves.read(os.path.join(run, NAME)) if "scores" in line]


def append(run: str, line: Mapping[str, Any]) -> None:
    """Adds a line, whole or not at all."""
    text = "".join(json.dumps(one) + "\n" for one in (*read(run), line))
    files.write_whole(os.path.join(run, NAME), text)


def of_checkpoints(run: str, manifests: Mapping[int, Mapping[str, Any]]) -> dict[int, dict]:
    """Returns all numbers known of each checkpoint: those it was saved with, and its scores.

    Args:
      run: the run folder.
      manifests: by step.
    """
    found = {step: dict(content["metrics"]) for step, content in manifests.items()}
    for line in read(run):
        step = line["step"]
        if step in found and line["rollbacks"] == rollbacks(manifests[step]):
            found[step] |= line["scores"]
    return found


def rollbacks(manifest: Mapping[str, Any]) -> int:
    """Returns how often the run had gone back when it made a checkpoint."""
    return manifest["meta"].get("rollbacks", 0)
