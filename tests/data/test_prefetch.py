import gc
import threading
import time
import weakref

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.data import loader, prefetch
from biggan_jax.data import source as source_lib
from biggan_jax.parallel import mesh as mesh_lib
from tests.data.made import Made, same


def make(length=10, batch_size=4, num_batches=2, cache_mib=1.0, **kwargs):
    return loader.Loader(
        Made(length, **kwargs),
        batch_size=batch_size,
        num_batches=num_batches,
        seed=0,
        cache_mib=cache_mib,
    )


def _threads():
    return [t for t in threading.enumerate() if t.name == prefetch.NAME]


def _wait_until(true):
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert true()


def _assert_threads_end():
    _wait_until(lambda: not _threads())


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_gives_what_batch_gives(cache_mib):
    loaded = make(length=30, cache_mib=cache_mib)
    got = list(loaded.prefetch(5, 12))
    assert [step for step, _ in got] == list(range(5, 12))
    assert all(same(batch, loaded.batch(step)) for step, batch in got)
    _assert_threads_end()


def test_nothing():
    assert list(make().prefetch(4, 4)) == []
    _assert_threads_end()


def test_what_batches_were_made_from_is_let_go_of():
    class Maker:
        def __call__(self, step):
            return prefetch.Job({}, [])

    for wanted in (3, 10**9):
        make_job = Maker()
        held = weakref.ref(make_job)
        batches = prefetch.Prefetch(make_job, range(wanted))
        del make_job
        assert [next(batches)[0] for _ in range(3)] == [0, 1, 2]
        assert held() is not None
        if wanted == 3:
            assert list(batches) == []
        else:
            batches.close()
        assert held() is None


def test_stays_exhausted():
    batches = make().prefetch(0, 1)
    assert len(list(batches)) == 1
    assert list(batches) == []


def test_works_ahead_by_depth_only():
    loaded = make(length=100, batch_size=1, num_batches=1, cache_mib=0)
    with loaded.prefetch(0, 50, depth=3) as batches:
        _wait_until(lambda: len(loaded.source.decoded) >= 3)
        time.sleep(0.1)
        assert len(loaded.source.decoded) == 3
        next(batches)
        _wait_until(lambda: len(loaded.source.decoded) >= 4)
        time.sleep(0.1)
        assert len(loaded.source.decoded) == 4
    _assert_threads_end()


@pytest.fixture(params=[1, 2, 8])
def workers(request, monkeypatch):
    monkeypatch.setattr(prefetch, "threads", lambda: request.param)


def test_ends_when_the_consumer_stops_early(workers):
    batches = make().prefetch(0, 10**9)
    next(batches)
    batches.close()
    assert not _threads()
    assert list(batches) == []
    batches.close()


def test_ends_when_the_consumer_raises(workers):
    with pytest.raises(KeyError), make().prefetch(0, 10**9) as batches:
        for step, _ in batches:
            if step == 3:
                raise KeyError(step)
    assert not _threads()


def test_ends_when_forgotten(workers):
    batches = make().prefetch(0, 10**9)
    next(batches)
    del batches
    gc.collect()
    _assert_threads_end()


def test_raises_the_threads_error():
    loaded = make(length=20, batch_size=20, num_batches=1, cache_mib=0, broken=(13,))
    batches = loaded.prefetch(0, 10)
    with pytest.raises(ConfigError, match="record 13 is broken"):
        next(batches)
    assert not _threads()
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
    _assert_threads_end()


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth=0"):
        make().prefetch(0, 1, depth=0)


def test_put_is_called_in_a_thread_and_ahead():
    callers = []

    def put(batch):
        callers.append(threading.current_thread().name)
        return batch["label"].sum()

    loaded = make(length=30, cache_mib=0)
    with loaded.prefetch(0, 10, depth=2, put=put) as batches:
        _wait_until(lambda: len(callers) == 2)
        sums = [result for _, result in batches]
    assert callers == [prefetch.NAME] * 10
    assert sums == [loaded.batch(step)["label"].sum() for step in range(10)]


@pytest.mark.parametrize(
    ("where", "handed_out"), [("make", 0), ("pieces", 0), ("pieces", 3), ("put", 0)]
)
def test_errors_of_all_kinds_of_work(where, handed_out, workers):
    def fail(*_):
        raise KeyError(where)

    def job(step):
        if step == 2 and where == "make":
            fail()
        calls = (fail() if i == handed_out else int for i in range(4))
        if step != 2 or where != "pieces":
            calls = []
        return prefetch.Job({"step": np.array(step)}, calls)

    def put(arrays):
        return fail() if arrays["step"] == 2 and where == "put" else int(arrays["step"])

    got = []
    with pytest.raises(KeyError, match=where):
        for item in prefetch.Prefetch(job, range(9), put=put):
            got.append(item)
    assert got == [(0, 0), (1, 1)]
    _assert_threads_end()


def test_threads_stay_and_cross_the_borders_of_batches(monkeypatch):
    # The slow piece of batch 0 ends only once a piece of batch 1 is done.
    monkeypatch.setattr(prefetch, "threads", lambda: 2)
    second, workers = threading.Event(), set()

    def piece(step, slow):
        workers.add(threading.current_thread())
        if slow:
            assert second.wait(10)
        elif step == 1:
            second.set()

    def job(step):
        slow = (step == 0, False, False)
        return prefetch.Job({}, [lambda s=s: piece(step, s) for s in slow])

    assert len(list(prefetch.Prefetch(job, range(50)))) == 50
    assert len(workers) == 2


def test_handing_out_is_done_by_one_thread_at_a_time(monkeypatch):
    # Pieces may come of a generator that reads files, which no two threads may run at once.
    monkeypatch.setattr(prefetch, "threads", lambda: 8)
    inside, steps = threading.Lock(), []

    def alone(value):
        assert inside.acquire(blocking=False), "two threads at once"
        time.sleep(0.0005)
        inside.release()
        return value

    def job(step):
        steps.append(alone(step))
        return prefetch.Job({}, (alone(lambda: time.sleep(0.0005)) for _ in range(step % 6)))

    assert [step for step, _ in prefetch.Prefetch(job, range(20))] == list(range(20))
    assert steps == list(range(20))


def test_pieces_are_small_enough_for_all_threads(monkeypatch):
    monkeypatch.setattr(prefetch, "threads", lambda: 16)
    for count in (0, 1, 7, 64, 1000, 10_000):
        parts = list(source_lib.parts(count, 32))
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
        assert len(parts) >= min(count, 16)
        assert all(part.stop - part.start <= 32 for part in parts)


def test_memory_is_used_again_once_it_is_let_go_of():
    buffers = prefetch.Buffers()
    first = buffers.take((2, 3))
    address = first.ctypes.data
    view = first[1]
    del first
    assert buffers.take((2, 3)).ctypes.data != address, "a part of it was still held"
    del view
    again = buffers.take((3, 2))
    assert again.ctypes.data == address
    assert again.shape == (3, 2) and again.flags.writeable and again.dtype == np.uint8


def test_batches_that_are_kept_stay_as_they_are():
    loaded = make(length=50, batch_size=8, cache_mib=0)
    kept = list(loaded.prefetch(0, 20))
    fresh = make(length=50, batch_size=8, cache_mib=0)
    assert all(same(batch, fresh.batch(step)) for step, batch in kept)


def test_the_memory_of_many_batches_is_that_of_few():
    loaded = make(length=50, cache_mib=0)
    addresses = set()
    with loaded.prefetch(0, 40) as batches:
        for _, batch in batches:
            addresses.add(batch["image"].ctypes.data)
            del batch
    # Two in the making, one in our hand, and what threads are about to let go of.
    assert len(addresses) <= 3 + prefetch.threads()


def test_memory_that_devices_look_into_is_not_used_again():
    # JAX on a CPU takes aligned arrays as they are, without a copy.
    mesh = mesh_lib.make_mesh(4)
    buffers = prefetch.Buffers()
    memory = np.empty(4 * 64 * 64 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    buffers._free.append(memory[start : start + 4 * 64 * 64])
    image = buffers.take((1, 4 * 64, 64))
    image[...] = 7
    address = image.ctypes.data
    held = mesh_lib.put_batch({"image": image}, mesh)["image"]
    shards = held.addressable_shards
    assert min(s.data.unsafe_buffer_pointer() for s in shards) == address, "it was copied"
    del image, shards
    gc.collect()
    assert buffers.take((1, 4 * 64, 64)).ctypes.data != address
    assert (np.asarray(held) == 7).all()
    del held
    gc.collect()
    assert address in (buffers.take((1, 4 * 64, 64)).ctypes.data for _ in range(2))
