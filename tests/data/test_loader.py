import tracemalloc

import jax
import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.data import crops, loader, order
from biggan_jax.parallel import mesh as mesh_lib
from tests.data.made import Made, same


def make(length=10, batch_size=4, num_batches=2, seed=0, cache_mib=1.0, **kwargs):
    ours = {k: kwargs.pop(k) for k in ("crop", "columns") if k in kwargs}
    return loader.Loader(
        Made(length, **kwargs),
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        cache_mib=cache_mib,
        **ours,
    )


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_shapes_and_types(cache_mib):
    batch = make(cache_mib=cache_mib).batch(3)
    assert batch["image"].shape == (2, 4, 4, 4, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["label"].shape == (2, 4)
    assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_images_and_labels_belong_together(cache_mib):
    batch = make(length=100, cache_mib=cache_mib).batch(5)
    values = batch["image"]
    assert (values == values[..., :1, :1, :1]).all()
    np.testing.assert_array_equal(values[..., 0, 0, 0] % 3, batch["label"])


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_every_epoch_is_a_permutation(length, seed):
    epochs = 5
    loaded = make(length=length, batch_size=1, num_batches=1, seed=seed)
    seen = [int(loaded.indices(step)[0, 0]) for step in range(epochs * length)]
    for epoch in np.reshape(seen, (epochs, length)):
        assert sorted(epoch) == list(range(length))


def test_every_epoch_of_a_large_set_is_a_permutation():
    assert order.SMALL < 5000
    loaded = make(length=5000, batch_size=1000, num_batches=1, resolution=1)
    seen = np.concatenate([loaded.indices(step)[0] for step in range(10)]).reshape(2, 5000)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(5000))
    assert not np.array_equal(*seen)


def test_epochs_and_seeds_differ():
    orders = set()
    for seed in range(4):
        loaded = make(length=50, batch_size=50, num_batches=1, seed=seed)
        orders |= {tuple(loaded.indices(epoch)[0]) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(50)) not in orders


@pytest.mark.parametrize("length", [10, 1000, 5000])
def test_positions_are_drawn_evenly(length):
    # In which tenth of an epoch the first tenth of the records lands: 200 times in each over as
    # many epochs as that takes, give or take five standard deviations of 13.
    epochs = 20_000 // length
    loaded = make(length=length, batch_size=length, num_batches=1, resolution=1)
    first = [np.flatnonzero(loaded.indices(e)[0] < length // 10) for e in range(epochs)]
    tenths = [places * 10 // length for places in first]
    assert np.abs(np.bincount(np.concatenate(tenths), minlength=10) - 200).max() < 67


def test_batch_is_a_function_of_seed_and_step():
    forward = make(length=30, seed=7)
    in_order = [forward.batch(step) for step in range(12)]
    for step in (11, 0, 5, 5, 2):
        assert same(make(length=30, seed=7).batch(step), in_order[step])
        assert same(forward.batch(step), in_order[step])
    assert not same(in_order[0], in_order[1])
    assert not same(make(length=30, seed=8).batch(0), in_order[0])


# Of a set, a batch size and a step: what was given before order.py computed Grain's shuffle itself.
@pytest.mark.parametrize(
    ("length", "seed", "step", "records"),
    [
        (10, 0, 0, [5, 1, 4, 0, 7, 9, 2, 6]),
        (1437, 0, 0, [612, 1007, 1278, 416, 1384, 978, 285, 610]),
        (5000, 3, 137, [2292, 176, 1392, 1518, 2960, 4141, 4370, 2785]),
        (
            1_281_167,
            7,
            1_000_000,
            [1202613, 1225876, 129474, 452161, 705029, 1171882, 827396, 878069],
        ),
    ],
)
def test_the_order_of_before(length, seed, step, records):
    found = make(length=length, seed=seed, cache_mib=0).indices(step).ravel().tolist()
    assert found == records


# Tails. A step of 12 images; an epoch of 8 ends inside a batch, one of 5 twice inside a step.


@pytest.mark.parametrize("cache_mib", [0, 1])
@pytest.mark.parametrize("length", [1, 5, 8, 12])
def test_no_record_is_left_out_where_epochs_end(length, cache_mib):
    loaded = make(length=length, batch_size=6, num_batches=2, cache_mib=cache_mib)
    values = [loaded.batch(step)["image"][..., 0, 0, 0].ravel() for step in range(length)]
    for epoch in np.concatenate(values).reshape(-1, length):
        assert sorted(epoch) == list(range(length))


def test_a_batch_of_a_smaller_data_set_holds_every_record_evenly():
    batch = make(length=3, batch_size=7, num_batches=1).batch(0)
    assert sorted(np.bincount(batch["image"][0, :, 0, 0, 0])) == [2, 2, 3]


def test_one_record_and_one_class():
    batch = make(length=1, batch_size=4, num_batches=1, names="a").batch(10**6)
    assert (batch["image"] == 0).all() and (batch["label"] == 0).all()
    batch = make(length=9, labels=[0] * 9, names="a").batch(4)
    assert (batch["label"] == 0).all()


def test_how_work_is_cut_into_batches_does_not_change_the_images():
    whole = make(length=30, batch_size=8, num_batches=1)
    cut = make(length=30, batch_size=2, num_batches=4)
    for step in range(8):
        np.testing.assert_array_equal(whole.indices(step).ravel(), cut.indices(step).ravel())


# The cache


def test_cache_changes_nothing_but_speed():
    cached, direct = make(length=40), make(length=40, cache_mib=0)
    assert cached.images is not None
    assert direct.images is None
    assert all(same(cached.batch(step), direct.batch(step)) for step in (0, 3, 100))
    assert sorted(cached.source.decoded) == list(range(40))


def test_cache_limit_is_exact():
    # 1,024 images of 4 x 4 x 3 bytes are 48 KiB.
    assert make(length=1024, cache_mib=48 / 1024).images is not None
    assert make(length=1025, cache_mib=48 / 1024).images is None
    assert make(length=1024, cache_mib=48 / 1024, crop="random_zoom").images is None


def test_a_broken_record_stops_caching():
    with pytest.raises(ConfigError, match="record 2 is broken"):
        make(broken=(2,))


def test_empty_source_is_refused():
    with pytest.raises(ConfigError, match="holds no images"):
        make(length=0)


# Columns


@pytest.mark.parametrize("cache_mib", [0, 1])
@pytest.mark.parametrize("processes", [1, 2, 4, 64])
def test_columns_make_up_the_global_batch(processes, cache_mib):
    # 100 records, 2 x 64 images a step: every step holds the border of two epochs.
    kwargs = {"length": 100, "batch_size": 64, "cache_mib": cache_mib}
    whole = make(**kwargs)
    each = 64 // processes
    parts = [make(columns=slice(p * each, (p + 1) * each), **kwargs) for p in range(processes)]
    for step in (0, 1, 137, 10**6):
        expected = whole.batch(step)
        for part in parts:
            part.source.decoded.clear()
        batches = [part.batch(step) for part in parts]
        for key in expected:
            np.testing.assert_array_equal(
                np.concatenate([b[key] for b in batches], axis=1), expected[key]
            )
        if not cache_mib:
            assert [len(part.source.decoded) for part in parts] == [2 * each] * processes


def test_columns_must_be_neighbours():
    for columns in (slice(0, 4, 2), slice(2, 2), slice(4, None)):
        with pytest.raises(ValueError, match="columns="):
            make(columns=columns)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_columns_of_a_mesh(devices):
    mesh = mesh_lib.make_mesh(devices)
    assert mesh_lib.local_columns(mesh, 16) == slice(0, 16)


def test_columns_of_a_mesh_that_are_no_neighbours(monkeypatch):
    class Sharding:
        def addressable_devices_indices_map(self, shape):
            return {0: (slice(0, 4),), 1: (slice(8, 12),)}

    monkeypatch.setattr(mesh_lib, "batch_sharding", lambda mesh, axis: Sharding())
    with pytest.raises(ConfigError, match=r"device_count=4.*side by side"):
        mesh_lib.local_columns(mesh_lib.make_mesh(4), 16)


def test_batches_are_put_on_the_mesh_ahead_of_need():
    mesh = mesh_lib.make_mesh(8)
    whole = make(length=100, batch_size=16, cache_mib=0)
    expected = [whole.batch(step) for step in range(30)]
    with whole.prefetch(0, 30, put=lambda b: mesh_lib.put_batch(b, mesh)) as batches:
        put = [batch for _, batch in batches]
    for batch, global_batch in zip(put, expected, strict=True):
        for key, array in batch.items():
            assert array.sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh, 1), array.ndim)
            assert len(array.addressable_shards) == 8
            np.testing.assert_array_equal(jax.device_get(array), global_batch[key])


# Size


def _work_of(length, step):
    """The records of a step, and the most memory that finding them took, in bytes."""
    tracemalloc.start()
    loaded = make(length=length, batch_size=256, num_batches=2, cache_mib=0, seed=5)
    found = loaded.indices(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


def test_memory_and_work_do_not_grow_with_records_and_steps(monkeypatch):
    computed = []

    class Counted(order.Order):
        def __call__(self, positions):
            computed.append(positions.size)
            return super().__call__(positions)

    monkeypatch.setattr(loader, "Order", Counted)
    _work_of(5000, 0)  # What is made once in a process is not counted.
    small, peak = _work_of(5000, 0)
    large, peak_of_large = _work_of(1_281_167, 0)
    late, peak_of_late = _work_of(1_281_167, 1_000_000)
    assert max(peak_of_large, peak_of_late) < 1.5 * peak < 2**22
    assert computed == [8192] * 4
    assert small.max() < 5000 < min(large.max(), late.max())
    assert not np.array_equal(large, late)
    np.testing.assert_array_equal(
        late.ravel(), order.Order(1_281_167, 5)(np.arange(512 * 10**6, 512 * (10**6 + 1)))
    )


def test_a_step_of_a_huge_set_reads_its_images_alone():
    loaded = make(length=1_281_167, batch_size=16, num_batches=2, cache_mib=0)
    batch = loaded.batch(1_000_000)
    chosen = loaded.indices(1_000_000)
    np.testing.assert_array_equal(batch["image"][..., 0, 0, 0], chosen % 256)
    assert sorted(loaded.source.decoded) == sorted(chosen.ravel())


# Crops


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_crops_are_functions_of_seed_and_position(processes):
    each = 8 // processes
    found = {}
    for p in range(processes):
        columns = slice(p * each, (p + 1) * each)
        loaded = make(length=20, batch_size=8, crop="random_zoom", columns=columns)
        for step in (0, 1, 2):
            positions = loaded._positions(step, step + 1).ravel().tolist()
            found.update(zip(positions, map(tuple, loaded._crops(step).tolist()), strict=True))
    assert sorted(found) == list(range(48))
    expected = crops.random_zoom(0, 0, 48)
    np.testing.assert_array_equal([found[i] for i in range(48)], expected)
    loaded.batch(1)
    wanted = {found[int(i)] for i in loaded._positions(1, 2).ravel()}
    assert set(loaded.source.crops) == wanted
