"""Profiles of a run: whole, cut short, and none."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from biggan_jax.train import profile


def traces(folder):
    return list(folder.rglob("*.trace.json.gz"))


@pytest.mark.parametrize("steps", [2, 100])
def test_the_steps_asked_for_are_recorded(tmp_path, steps):
    """Two of ten; or as many as there were, where the run ends before."""
    said = []
    step = jax.jit(lambda x: jnp.tanh(x @ x))
    x = jnp.ones((64, 64))
    with profile.Profile(steps, str(tmp_path), said.append) as recorded:
        for i in range(10):
            with jax.profiler.StepTraceAnnotation("step", step_num=i):
                x = step(x)
            recorded.after_step(x)
    (trace,) = traces(tmp_path / "profile")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    seen = {int(e["args"]["step_num"]) for e in events if "step_num" in e.get("args", {})}
    assert seen == set(range(3, 5 if steps == 2 else 10))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert bool(said) == (steps == 2)


def test_none_writes_nothing(tmp_path):
    with profile.Profile(0, str(tmp_path), print) as recorded:
        for _ in range(10):
            recorded.after_step(None)
    assert not list(tmp_path.iterdir())
