import gc
import threading
import time

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.data import loader
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.source import Source


class Made(Source):
    """Record i is an image of the value i with the label i % 3."""

    def __init__(self, length, resolution=4, broken=()):
        super().__init__("made", "train", "memory", "abc", Recipe(resolution))
        self._length = length
        self._broken = broken
        self.decoded = []

    def __len__(self):
        return self._length

    def __getitem__(self, i):
        if i in self._broken:
            raise ConfigError(f"record {i} is broken.")
        self.decoded.append(i)
        return np.full((self.resolution, self.resolution, 3), i % 256, np.uint8), i % 3

    def label(self, i):
        return i % 3

    def labels(self):
        return np.arange(self._length, dtype=np.int32) % 3


def make(length=10, batch_size=4, num_batches=2, seed=0, cache_mib=1.0, **kwargs):
    return loader.Loader(
        Made(length, **kwargs),
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        cache_mib=cache_mib,
    )


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in ("image", "label"))


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
    assert loader._SMALL < 5000
    loaded = make(length=5000, batch_size=1000, num_batches=1, resolution=1)
    seen = np.concatenate([loaded.indices(step)[0] for step in range(10)]).reshape(2, 5000)
    for epoch in seen:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(5000))
    assert not np.array_equal(*seen)


def test_epochs_cross_batches():
    # 12 images a step of 8 records: epochs end inside batches.
    loaded = make(length=8, batch_size=6, num_batches=2)
    seen = np.concatenate([loaded.indices(step).ravel() for step in range(10)])
    for epoch in seen.reshape(-1, 8):
        assert sorted(epoch) == list(range(8))


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


def test_how_work_is_cut_into_batches_does_not_change_the_images():
    whole = make(length=30, batch_size=8, num_batches=1)
    cut = make(length=30, batch_size=2, num_batches=4)
    for step in range(8):
        np.testing.assert_array_equal(whole.indices(step).ravel(), cut.indices(step).ravel())


def test_data_set_smaller_than_a_batch():
    batch = make(length=3, batch_size=7, num_batches=1).batch(0)
    assert sorted(np.bincount(batch["image"][0, :, 0, 0, 0])) == [2, 2, 3]


def test_far_steps_cost_the_same():
    loaded = make(length=1000, batch_size=64)
    loaded.batch(0)

    def seconds(step):
        times = []
        for i in range(5):
            start = time.perf_counter()
            loaded.batch(step + i)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(10**9) < 10 * seconds(0)


def test_empty_source_is_refused():
    with pytest.raises(ConfigError, match="holds no images"):
        make(length=0)


def _prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "biggan-prefetch"]


def _assert_threads_end():
    deadline = time.monotonic() + 10
    while _prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _prefetch_threads()


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_prefetch_gives_what_batch_gives(cache_mib):
    loaded = make(length=30, cache_mib=cache_mib)
    got = list(loaded.prefetch(5, 12))
    assert [step for step, _ in got] == list(range(5, 12))
    assert all(same(batch, loaded.batch(step)) for step, batch in got)
    _assert_threads_end()


def test_prefetch_of_nothing():
    assert list(make().prefetch(4, 4)) == []
    _assert_threads_end()


def test_prefetch_stays_exhausted():
    batches = make().prefetch(0, 1)
    assert len(list(batches)) == 1
    assert list(batches) == []


def test_prefetch_works_ahead_by_depth_only():
    loaded = make(length=100, batch_size=1, num_batches=1, cache_mib=0)
    with loaded.prefetch(0, 50, depth=3) as batches:
        deadline = time.monotonic() + 10
        while len(loaded.source.decoded) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(loaded.source.decoded) == 3
        next(batches)
        time.sleep(0.1)
        assert len(loaded.source.decoded) == 4
    _assert_threads_end()


def test_prefetch_ends_when_the_consumer_stops_early():
    batches = make().prefetch(0, 10**9)
    next(batches)
    batches.close()
    assert not _prefetch_threads()
    assert list(batches) == []
    batches.close()


def test_prefetch_ends_when_the_consumer_raises():
    with pytest.raises(KeyError), make().prefetch(0, 10**9) as batches:
        for step, _ in batches:
            if step == 3:
                raise KeyError(step)
    assert not _prefetch_threads()


def test_prefetch_ends_when_forgotten():
    batches = make().prefetch(0, 10**9)
    next(batches)
    del batches
    gc.collect()
    _assert_threads_end()


def test_prefetch_raises_the_workers_error():
    loaded = make(length=20, batch_size=20, num_batches=1, cache_mib=0, broken=(13,))
    batches = loaded.prefetch(0, 10)
    with pytest.raises(ConfigError, match="record 13 is broken"):
        next(batches)
    assert not _prefetch_threads()
    with pytest.raises(StopIteration):
        next(batches)


def test_errors_come_after_the_good_batches():
    loaded = make(length=20, batch_size=1, num_batches=1, cache_mib=0, broken=(13,))
    bad = [int(loaded.indices(step)[0, 0]) for step in range(20)].index(13)
    got = []
    with pytest.raises(ConfigError):
        for step, _ in loaded.prefetch(0, 20):
            got.append(step)
    assert got == list(range(bad))


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth=0"):
        make().prefetch(0, 1, depth=0)


def test_a_broken_record_stops_caching():
    with pytest.raises(ConfigError, match="record 2 is broken"):
        make(broken=(2,))
