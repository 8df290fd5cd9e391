import jax.numpy as jnp
import pytest

from biggan_jax.train.checkpoint import Checkpoints
from biggan_jax.train.keep import Keep

# A GAN's FID: worse again after its best, and not known at one step.
FID = {0: 90, 10: 50, 20: 20, 30: 25, 40: 60, 60: 70}
STEPS = range(0, 70, 10)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(1), [60]),
        (Keep(2), [50, 60]),
        (Keep(2, every=30), [0, 30, 50, 60]),
        (Keep(2, best=1, metric="fid"), [20, 50, 60]),
        (Keep(1, best=2, metric="fid"), [20, 30, 60]),
        (Keep(1, best=2, metric="fid", lowest=False), [0, 60]),
        (Keep(2, every=40, best=1, metric="fid"), [0, 20, 40, 50, 60]),
        (Keep(2, best=3, metric="unknown"), [50, 60]),
        (Keep(9), list(STEPS)),
    ],
)
def test_what_is_kept(tmp_path, keep, kept):
    with Checkpoints(tmp_path, keep) as checkpoints:
        for step in STEPS:
            metrics = {"fid": FID[step], "d_loss": 1.0} if step in FID else None
            checkpoints.save(step, {"x": jnp.float32(step)}, {}, metrics)
        checkpoints.wait()
        assert checkpoints.steps() == kept


def test_the_best_is_known_after_a_start(tmp_path):
    keep = Keep(1, best=1, metric="fid")
    for step, fid in ((1, 5.0), (2, float("nan")), (3, 4.0), (4, 6.0)):
        with Checkpoints(tmp_path, keep) as checkpoints:
            checkpoints.save(step, {"x": jnp.float32(step)}, {}, {"fid": fid})
    with Checkpoints(tmp_path, None) as checkpoints:
        assert checkpoints.steps() == [3, 4]
        assert [m["metrics"] for m in checkpoints.manifests().values()] == [{"fid": 4}, {"fid": 6}]


def test_of_equal_values_the_later_is_the_better():
    metrics = {step: {"is": 2.0} for step in (1, 2, 3)}
    assert Keep(1, best=1, metric="is").choose([1, 2, 3, 4], metrics) == {3, 4}
    assert Keep(1, best=1, metric="is", lowest=False).choose([1, 2, 3, 4], metrics) == {3, 4}


def test_what_was_saved_besides_pushes_no_regular_one_out():
    """A rollback goes to regular ones alone; half-way ones and those of signals are the newest."""
    keep = Keep(1, best=1, metric="is", cadence=20)
    metrics = {step: {"is": float(step)} for step in (20, 30, 40, 50)}
    assert keep.choose([40], metrics) == {40}
    assert keep.choose([20, 40, 50], metrics) == {20, 40, 50}
    assert keep.choose([20, 30, 40], metrics) == {20, 40}
    two = Keep(2, cadence=20)
    assert two.choose([20, 40, 50], {}) == {20, 40, 50}
    assert two.choose([20, 40, 50, 60], {}) == {40, 60}
    assert Keep(1, every=10, cadence=20).choose([30, 40, 47], {}) == {30, 40, 47}
