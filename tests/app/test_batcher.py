import threading

import numpy as np
import pytest

from biggan_jax.app.batcher import Batcher, Busy, Gate


class Held:
    """A computation that waits until it is let go, and remembers what it was given."""

    def __init__(self, fails=False):
        self.go, self.begun = threading.Event(), threading.Event()
        self.calls, self.fails = [], fails

    def __call__(self, key, z, mix):
        self.begun.set()
        assert self.go.wait(30)
        self.calls.append((key, z[:, 0].tolist()))
        if self.fails:
            raise ValueError("broken")
        return np.uint8(z + mix)


def ask(batcher, results, name, key, numbers):
    z = np.float32(numbers)[:, None]

    def work():
        try:
            results[name] = batcher.images(key, z, np.full_like(z, 100)).images[:, 0].tolist()
        except Exception as e:
            results[name] = e

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def run(batcher, held, requests):
    """Asks for the first, and while that is computed for all others, one after the other."""
    results, threads = {}, []
    for i, (key, numbers) in enumerate(requests):
        threads.append(ask(batcher, results, i, key, numbers))
        assert held.begun.wait(30)
        while i and len(batcher._waiting) < i:
            pass
    held.go.set()
    for thread in threads:
        thread.join(30)
    batcher.close()
    return [results[i] for i in range(len(requests))]


def test_what_waits_for_one_model_is_computed_together():
    held = Held()
    requests = [("a", [1]), ("a", [2, 3]), ("b", [4]), ("a", [5])]
    results = run(Batcher(held, lambda key: 4), held, requests)
    assert results == [[101], [102, 103], [104], [105]]
    assert held.calls == [("a", [1]), ("a", [2, 3, 5]), ("b", [4])]


def test_apart_each_request_is_computed_alone():
    held = Held()
    requests = [("a", [1]), ("a", [2]), ("a", [3])]
    assert run(Batcher(held, lambda key: 4, together=False), held, requests) == [
        [101],
        [102],
        [103],
    ]
    assert [numbers for _, numbers in held.calls] == [[1], [2], [3]]


def test_a_long_request_lets_others_pass():
    held = Held()
    requests = [("a", list(range(9))), ("b", [50])]
    assert run(Batcher(held, lambda key: 4), held, requests) == [
        list(range(100, 109)),
        [150],
    ]
    assert [key for key, _ in held.calls] == ["a", "b", "a", "a"]


def test_an_error_reaches_all_who_wait_and_the_thread_goes_on():
    held = Held(fails=True)
    batcher = Batcher(held, lambda key: 4)
    held.go.set()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            batcher.images("a", np.zeros((1, 1)), np.zeros((1, 1)))
    assert batcher.call(lambda: 7) == 7
    batcher.close()
    with pytest.raises(Busy):
        batcher.images("a", np.zeros((1, 1)), np.zeros((1, 1)))


def test_the_gate_counts_requests_and_bytes():
    gate = Gate(2, 100)
    with gate.admitted(1000), pytest.raises(Busy), gate.admitted(1):  # Alone, of any size.
        pass
    with gate.admitted(50), gate.admitted(50), pytest.raises(Busy), gate.admitted(0):
        pass
    with gate.admitted(50):
        with pytest.raises(Busy), gate.admitted(51):
            pass
        with gate.admitted(50):
            pass
