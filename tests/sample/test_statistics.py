import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.sample import statistics

GRID = tuple(k / 50 for k in range(51))
# Spec section 7.4: the row at each truncation, and the row that the program takes.
ROWS = {0.14: (7, 8), 0.28: (14, 15), 0.5: (25, 25), 0.56: (28, 29), 0.58: (29, 28)}
ROWS |= {0.94: (47, 46), 1.0: (50, 50)}


def table(rows=51):
    rng = np.random.default_rng(0)
    return {
        "batch_stats/bn/mean": rng.normal(size=(rows, 5)).astype(np.float32),
        "batch_stats/bn/var": rng.uniform(0.5, 2, size=(rows, 3)).astype(np.float32),
    }


def rows_are(found, wanted):
    """Each place of `found` is `wanted` of its table, bit for bit."""
    for place, values in table().items():
        assert found[place].dtype == np.float32
        np.testing.assert_array_equal(found[place], wanted(values))


@pytest.mark.parametrize("truncation", ROWS)
def test_truncations_on_the_grid_are_rows(truncation):
    right, wrong = ROWS[truncation]
    rows_are(statistics.lookup(table(), GRID, truncation), lambda v: v[right])
    rows_are(statistics.lookup(table(), GRID, truncation, "hf-compat"), lambda v: v[wrong])


def test_the_correct_mode_finds_every_row_whatever_the_rounding():
    for row in range(1, 51):
        for truncation in (row / 50, row * 0.02, float(np.float32(row / 50))):
            rows_are(statistics.lookup(table(), GRID, truncation), lambda v, row=row: v[row])


def test_halfway_is_the_mean_in_both_modes():
    for mode in statistics.MODES:
        rows_are(
            statistics.lookup(table(), GRID, 0.55, mode),
            lambda v: v[27] * np.float32(0.5) + v[28] * np.float32(0.5),
        )


def test_between_rows_the_nearer_one_weighs_more_but_for_the_program():
    for mode, near, far in (("correct", 0.75, 0.25), ("hf-compat", 0.25, 0.75)):
        found = statistics.lookup(table(), GRID, 0.505, mode)  # A quarter from row 25 to 26.
        for place, values in table().items():
            wanted = near * values[25].astype(np.float64) + far * values[26]
            np.testing.assert_allclose(found[place], wanted, atol=1e-6, rtol=0)


def test_any_grid_is_interpolated():
    grid, values = (0.02, 0.1, 1.0), {"x": np.array([[0], [8], [98]], np.float32)}
    found = [statistics.lookup(values, grid, t)["x"][0] for t in (0.02, 0.03, 0.1, 0.55, 1.0)]
    np.testing.assert_allclose(found, [0, 1, 8, 53, 98], rtol=1e-6)


@pytest.mark.parametrize("truncation", [0.0, -0.5, 1.0001, float("nan"), float("inf")])
@pytest.mark.parametrize("mode", statistics.MODES)
def test_truncations_outside_are_refused(truncation, mode):
    with pytest.raises(ConfigError, match=r"must be above 0 and from 0 to 1.*\.$"):
        statistics.lookup(table(), GRID, truncation, mode)


def test_below_the_first_row_is_refused():
    with pytest.raises(ConfigError, match=r"from 0\.02 to 1"):
        statistics.lookup(table(50), GRID[1:], 0.01)


def test_compatibility_needs_the_programs_grid():
    with pytest.raises(ConfigError, match="equal steps from truncation 0 to 1"):
        statistics.lookup(table(50), GRID[1:], 0.5, "hf-compat")


def test_an_unknown_mode_is_refused():
    with pytest.raises(ConfigError, match=r"'nearest': must be one of correct, hf-compat\.$"):
        statistics.lookup(table(), GRID, 0.5, "nearest")


def test_what_the_program_reads_beyond_its_rows_is_refused():
    grid = tuple(k / 49 for k in range(50))
    statistics.lookup(table(50), grid, 0.99, "hf-compat")
    with pytest.raises(ConfigError, match="beyond the last of 50 rows"):
        statistics.lookup(table(50), grid, 1.0, "hf-compat")


@pytest.mark.interop
@pytest.mark.parametrize("rows", [2, 11, 50, 51])
def test_compatibility_mode_is_the_program_bit_for_bit(rows, monkeypatch):
    torch = pytest.importorskip("torch")
    program = pytest.importorskip("pytorch_pretrained_biggan.model")
    seen = []
    monkeypatch.setattr(
        program.F, "batch_norm", lambda x, mean, var, *a, **k: seen.append((mean, var))
    )
    values, grid = table(rows), tuple(k / (rows - 1) for k in range(rows))
    layer = program.BigGANBatchNorm(5, n_stats=rows, conditional=False)
    layer.running_means = torch.from_numpy(values["batch_stats/bn/mean"])
    layer.running_vars = torch.from_numpy(values["batch_stats/bn/var"])
    for truncation in np.linspace(0, 1, 501)[1:-1].tolist() + [t for t in ROWS if t < 1]:
        layer(None, truncation)
        found = statistics.lookup(values, grid, truncation, "hf-compat")
        for theirs, place in zip(seen.pop(), values, strict=True):
            np.testing.assert_array_equal(found[place], theirs.numpy())
