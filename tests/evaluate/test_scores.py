"""Scores of features against brute force and against the packages whose names they carry."""

import itertools

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import frechet, neighbours, scores
from tests.evaluate import references


def features(seed, count, dim=64, mean=0.0, spread=1.0, dtype=np.float64):
    """Correlated, so that a covariance is more than a diagonal."""
    draws = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(dim, dim)) / np.sqrt(dim) + np.eye(dim)
    return (draws.normal(mean, spread, (count, dim)) @ mix).astype(dtype)


def gaussian(x):
    moments = frechet.Moments(x.shape[1])
    moments.add(x)
    return moments.gaussian()


def test_moments_are_numpys_however_features_come():
    x = features(0, 2500, dim=20, mean=100.0)
    found = []
    for sizes in ([2500], [1] * 30 + [1000, 1470], [1024, 1024, 452]):
        moments = frechet.Moments(20)
        for start, size in zip(itertools.accumulate([0, *sizes]), sizes, strict=False):
            moments.add(x[start : start + size])
        found.append(moments.gaussian())
    for one in found:
        assert one.count == 2500
        np.testing.assert_allclose(one.mean, x.mean(axis=0), rtol=1e-13)
        np.testing.assert_allclose(one.covariance, np.cov(x, rowvar=False), rtol=1e-10)
        np.testing.assert_array_equal(one.mean, found[0].mean)
        np.testing.assert_array_equal(one.covariance, found[0].covariance)


def test_moments_survive_a_large_mean():
    """The sum of squares minus the square of the sum would lose all digits here."""
    x = features(0, 3000, dim=8)
    np.testing.assert_allclose(gaussian(x + 1e7).covariance, np.cov(x, rowvar=False), rtol=1e-6)


def test_moments_merge_and_go_on_from_their_state():
    x = features(1, 3001, dim=12)
    a, b = frechet.Moments(12), frechet.Moments(12)
    a.add(x[:1700])
    b.add(x[1700:])
    whole = gaussian(x)
    a.merge(b)
    assert a.count == 3001 and b.count == 1301
    np.testing.assert_allclose(a.gaussian().covariance, whole.covariance, rtol=1e-11, atol=1e-13)
    stopped = frechet.Moments(12)
    stopped.add(x[:1100])
    went_on = frechet.Moments.restore({k: v.copy() for k, v in stopped.state().items()})
    went_on.add(x[1100:])
    np.testing.assert_array_equal(went_on.gaussian().covariance, whole.covariance)
    np.testing.assert_array_equal(went_on.gaussian().mean, whole.mean)


def test_moments_refuse_what_is_no_feature():
    moments = frechet.Moments(3)
    with pytest.raises(ValueError, match="finite"):
        moments.add(np.array([[1.0, np.nan, 0.0]]))
    with pytest.raises(ValueError, match="shape"):
        moments.add(np.zeros((2, 4)))
    moments.add(np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="at least 2 images; there are 1"):
        moments.gaussian()


def test_the_frechet_distance_of_known_gaussians():
    # Covariances with the same axes: the distance is that of means and of standard deviations.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    one, two = np.array([1.0, 4.0, 9.0, 0.25, 1.0]), np.array([4.0, 1.0, 9.0, 1.0, 0.0])
    a = frechet.Gaussian(np.zeros(5), turn * one @ turn.T, 0)
    b = frechet.Gaussian(np.arange(5.0), turn * two @ turn.T, 0)
    expected = 30 + ((np.sqrt(one) - np.sqrt(two)) ** 2).sum()
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-12)
    assert frechet.distance(a, a) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match=r"length 5 .* length 4"):
        frechet.distance(a, frechet.Gaussian(np.zeros(4), np.eye(4), 0))


def test_the_frechet_distance_with_fewer_features_than_dimensions():
    """Against the root of the product in exact small matrices: tr (AA' BB')^1/2 = |A'B|_*."""
    x, y = features(0, 20, dim=50), features(1, 30, dim=50, mean=0.3)
    a, b = gaussian(x), gaussian(y)
    cx = (x - x.mean(axis=0)) / np.sqrt(19)
    cy = (y - y.mean(axis=0)) / np.sqrt(29)
    apart = a.mean - b.mean
    traces = (cx**2).sum() + (cy**2).sum()
    nuclear = np.linalg.svd(cx @ cy.T, compute_uv=False).sum()
    expected = apart @ apart + traces - 2 * nuclear
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-11)


def test_inception_score_of_known_tables():
    sure = np.where(np.arange(40)[:, None] % 4 == np.arange(4), 200.0, 0.0)
    mean, deviation = scores.inception_score(sure, splits=1)
    assert mean == pytest.approx(4, rel=1e-12) and deviation == 0
    assert scores.inception_score(np.zeros((40, 4)))[0] == pytest.approx(1, rel=1e-12)
    with pytest.raises(ConfigError, match="10 splits"):
        scores.inception_score(np.zeros((9, 4)))


def test_kernel_distance_by_loops():
    x, y = features(0, 12, dim=3), features(1, 12, dim=3, mean=0.5)
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    pairs = [(i, j) for i in range(12) for j in range(12)]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 132
    expected -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 144
    # Subsets of all images: each is the same.
    mean, deviation = scores.kernel_distance(x, y, subsets=3, size=12)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match="12 generated and 12 real"):
        scores.kernel_distance(x, y, size=13)


def by_loops(real, fake, k, closed):
    far = lambda a, b: np.sqrt(((a - b) ** 2).sum())  # noqa: E731
    radius = lambda x, among: sorted(far(x, other) for other in among)[k]  # noqa: E731
    inside = (lambda d, r: d <= r) if closed else (lambda d, r: d < r)
    of_real, of_fake = [radius(x, real) for x in real], [radius(x, fake) for x in fake]
    held = [[inside(far(f, r), of_real[j]) for j, r in enumerate(real)] for f in fake]
    recalled = [any(inside(far(f, r), of_fake[i]) for i, f in enumerate(fake)) for r in real]
    return (
        np.mean([any(row) for row in held]),
        np.mean(recalled),
        np.sum(held) / k / len(fake),
        np.mean([any(row[j] for row in held) for j in range(len(real))]),
    )


@pytest.mark.parametrize("cells", [1 << 23, 500, 1])
def test_neighbours_by_loops(monkeypatch, cells):
    monkeypatch.setattr(neighbours, "_CELLS", cells)
    real, fake = features(0, 60, dim=4), features(1, 45, dim=4, mean=0.4, spread=0.7)
    rules = (neighbours.IMPROVED, neighbours.PRDC, neighbours.Rule(1, False))
    for rule, found in zip(rules, neighbours.compare(real, fake, rules), strict=True):
        assert found == pytest.approx(by_loops(real, fake, *rule), rel=1e-12)
        assert 0 < found.recall < 1 and 0 < found.precision <= 1


def test_precision_and_recall_point_the_right_way():
    """Fakes in a small part of where reals are: all of them good, most reals out of reach."""
    real = features(0, 800, dim=4)
    narrow = features(1, 800, dim=4, spread=0.05)
    ((precision, recall, _, _),) = neighbours.compare(real, narrow, [neighbours.IMPROVED])
    assert precision == 1 and recall < 0.05
    ((precision, recall, _, _),) = neighbours.compare(narrow, real, [neighbours.IMPROVED])
    assert precision < 0.05 and recall == 1


def test_copies_lie_in_closed_balls():
    real = features(0, 50, dim=4)
    ((precision, recall, _, coverage),) = neighbours.compare(
        real, real.copy(), [neighbours.Rule(3, True)]
    )
    assert (precision, recall, coverage) == (1, 1, 1)
    far, places = neighbours.nearest(real[::-1], real)
    np.testing.assert_array_equal(places, np.arange(50)[::-1])
    np.testing.assert_allclose(far, 0, atol=1e-6)
    with pytest.raises(ConfigError, match="more than 5 images; there are 5"):
        neighbours.compare(real, real[:5], [neighbours.PRDC])


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")  # Of clean-fid's sqrtm.
@pytest.mark.parametrize("dim", [64, 300])
def test_the_frechet_distance_is_torch_fidelitys_and_clean_fids(dim):
    torch = pytest.importorskip("torch")
    theirs = references.load("torch_fidelity.metric_fid")
    clean = references.load("cleanfid.fid")
    real, fake = features(0, 3000, dim), features(1, 3000, dim, mean=0.2, spread=0.5)
    ours = frechet.distance(gaussian(fake), gaussian(real))
    for dtype in (torch.float32, torch.float64):
        a, b = (
            theirs.fid_features_to_statistics(torch.tensor(x, dtype=dtype)) for x in (fake, real)
        )
        found = theirs.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]
        assert ours == pytest.approx(found, rel=1e-6)
    moments = [m for x in (fake, real) for m in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert ours == pytest.approx(clean.frechet_distance(*moments), rel=1e-6)


@pytest.mark.interop
def test_kernel_distance_is_torch_fidelitys():
    torch = pytest.importorskip("torch")
    theirs = references.load("torch_fidelity.metric_kid")
    real, fake = features(0, 1500), features(1, 1200, mean=0.2)
    found = theirs.kid_features_to_metric(
        torch.tensor(fake), torch.tensor(real), kid_subsets=10, kid_subset_size=1000, verbose=False
    )
    mean, deviation = scores.kernel_distance(fake, real, subsets=10)
    assert mean == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(found["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.interop
def test_inception_score_is_torch_fidelitys():
    torch = pytest.importorskip("torch")
    theirs = references.load("torch_fidelity.metric_isc")
    logits = features(3, 1003, dim=100, spread=3.0, dtype=np.float32)
    found = theirs.isc_features_to_metric(torch.tensor(logits))
    mean, deviation = scores.inception_score(logits)
    assert mean == pytest.approx(found["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(found["inception_score_std"], rel=1e-6)


@pytest.mark.interop
def test_precision_and_recall_are_torch_fidelitys():
    torch = pytest.importorskip("torch")
    theirs = references.load("torch_fidelity.metric_prc")
    real, fake = features(0, 900, dim=6), features(1, 700, dim=6, mean=0.4, spread=0.8)
    found = theirs.prc_features_to_metric(torch.tensor(fake), torch.tensor(real), verbose=False)
    (ours,) = neighbours.compare(real, fake, [neighbours.IMPROVED])
    assert 0.1 < ours.recall < ours.precision < 0.99
    # It counts exactly and divides in float32.
    assert ours.precision == pytest.approx(found["precision"], rel=1e-6)
    assert ours.recall == pytest.approx(found["recall"], rel=1e-6)


@pytest.mark.interop
@pytest.mark.parametrize("dim", [6, 64])
def test_neighbours_are_prdcs(dim):
    theirs = references.load("prdc")
    real, fake = features(0, 900, dim), features(1, 700, dim, mean=0.2, spread=0.8)
    found = theirs.compute_prdc(real, fake, nearest_k=5)
    (ours,) = neighbours.compare(real, fake, [neighbours.PRDC])
    assert ours._asdict() == {k: float(v) for k, v in found.items()}
