"""The order of the records, held to Grain's own shuffle."""

import tracemalloc

import grain
import numpy as np
import pytest

from biggan_jax.data import order


def by_grain(length, seed, positions):
    """As it is asked of Grain one number at a time; small sets as order.py describes."""
    small = length <= order.SMALL
    row = grain.MapDataset.range(2**16 if small else length).seed(seed).shuffle().repeat()
    if not small:
        return [row[int(i)] for i in positions]
    found = []
    for position in positions:
        epoch, place = divmod(int(position), length)
        first = epoch * 2**16
        found.append(np.argsort([row[i] for i in range(first, first + length)])[place])
    return found


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**40])
@pytest.mark.parametrize(
    "length", [1, 2, 3, 100, 4096, 4097, 65_536, 65_538, 70_000, 262_144, 1_281_167, 2**24 + 5]
)
def test_the_order_is_grains(length, seed):
    rng = np.random.default_rng(length + seed)
    few = 3 if length <= order.SMALL else 40
    positions = np.concatenate(
        [
            rng.integers(0, 20 * length, few),
            length * np.arange(1, 3) - 1,  # Both sides of two borders.
            length * np.arange(1, 3),
            [0, 10**12],
        ]
    )
    found = order.Order(length, seed)(positions)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, by_grain(length, seed, positions))


# At 2^16 + 1, 2^18 + 1, ... Grain takes too small a block: one record comes twice, one never.
@pytest.mark.parametrize("length", [1, 2, 17, 4096, 4097, 2**16, 2**16 + 1, 2**18 + 1])
def test_epochs_are_permutations(length):
    row = order.Order(length, 3)
    epochs = [row(np.arange(length) + e * length) for e in (0, 1, 10**6)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(length))
    if length >= 17:
        assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_shapes_are_kept():
    positions = np.arange(60).reshape(3, 4, 5)
    for length in (9, 5000):
        row = order.Order(length, 0)
        assert row(positions).shape == (3, 4, 5)
        np.testing.assert_array_equal(row(positions).reshape(-1), row(positions.reshape(-1)))
        assert row(positions[:, :0]).shape == (3, 0, 5)


def test_memory_does_not_grow_with_the_records():
    def peak(length, first):
        tracemalloc.start()
        order.Order(length, 0)(np.arange(first, first + 1000))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(5000, 0)  # What is imported on first use is not counted.
    assert peak(2**31, 10**12) < 1.5 * peak(2**16, 0) < 2**20
