import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, sys, time
from biggan_jax.train.preemption import Preempted, Preemption, Requested
what = sys.argv[1]
with Preemption(grace_seconds=float(sys.argv[2])) as preemption:
    if what == "unjoined":
        print("ready", flush=True)
        time.sleep(1)
    preemption.join(None, 0, 1)
    if what == "startup":
        print("ready", flush=True)
        # One instruction of the interpreter for minutes, without its lock, as a compilation is.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    preemption.something_to_save()
    print("ready", flush=True)
    if what == "hangs":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    while True:
        try:
            preemption.tick()
        except Requested:
            break
        time.sleep(0.01)
    print("saved", flush=True)
    if what == "asked":
        raise Preempted(7)
    time.sleep(60)
"""


@contextlib.contextmanager
def started(what, grace):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("what", "grace", "printed", "said"),
    [
        ("unjoined", 30, "", "nothing new to save"),
        ("startup", 30, "", "nothing new to save"),
        ("asked", 30, "saved\n", "saving, then leaving with code 75"),
        ("hangs", 0.5, "", "not done within 0.5 seconds"),
        ("slow", 0.5, "saved\n", "not done within 0.5 seconds"),
    ],
)
def test_leaves_with_75(number, what, grace, printed, said):
    with started(what, grace) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, printed)
    assert number.name in err
    assert said in err


CONNECTING = """
from biggan_jax.parallel import distributed
from biggan_jax.train.preemption import Preemption
with Preemption(grace_seconds=300):
    print("ready", flush=True)
    with distributed.joined(10):
        print("together", flush=True)
"""


def test_looking_for_processes_that_have_gone_it_leaves():
    """As where all are asked at the start, and the one that all would meet at was the first."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{place.getsockname()[1]}"  # Nobody listens there.
        cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        process = subprocess.Popen(
            [sys.executable, "-c", CONNECTING],
            env=os.environ | cluster | {"JAX_PROCESS_ID": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdout.readline() == "ready\n"
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (process.returncode, out) == (75, "")
    assert "SIGTERM: the other processes are not there; leaving with code 75" in err
    assert "Traceback" not in err


def test_a_second_signal_leaves_at_once():
    with started("slow", 1000) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "a second signal came" in err


class Shared:
    """What processes tell each other, kept in files."""

    def __init__(self, folder):
        self.folder = folder

    def put(self, key, value):
        path = os.path.join(self.folder, key.replace("/", "_"))
        with open(path + f".{os.getpid()}", "w") as f:
            f.write(value)
        os.replace(f.name, path)

    def get(self, key):
        path = os.path.join(self.folder, key.replace("/", "_"))
        return open(path).read() if os.path.exists(path) else None


SEVERAL = """
import random, sys, time
from tests.train.test_preemption import Shared
from biggan_jax.train.preemption import Preempted, Preemption, Requested
folder, me, busy = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "busy"
draw = random.Random(me)
with Preemption(grace_seconds=20) as preemption:
    preemption.join(Shared(folder), me, 3)
    if not busy:
        print("ready", flush=True)
        time.sleep(60)
    preemption.something_to_save()
    preemption._store.put(f"ready/{me}", "")
    while any(preemption._store.get(f"ready/{i}") is None for i in range(3)):
        time.sleep(0.01)  # As collectives do, so that none is far ahead.
    print("ready", flush=True)
    for place in range(1, 10**6):
        time.sleep(draw.random() / 50 * (me + 1))  # Each at its own pace.
        try:
            preemption.tick()
        except Requested:
            print(place, flush=True)
            raise Preempted(place)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
@pytest.mark.parametrize("asked", [(0,), (2,), (0, 1, 2)])
def test_several_processes_stop_at_one_place(tmp_path, state, asked):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, str(tmp_path), str(i), state],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    try:
        assert [p.stdout.readline() for p in processes] == ["ready\n"] * 3
        time.sleep(0.5)
        for i in asked:
            processes[i].send_signal(signal.SIGTERM)
        outputs = [p.communicate(timeout=60) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [75] * 3, outputs
    places = {out for out, _ in outputs}
    assert len(places) == 1
    assert all("SIGTERM" in err for _, err in outputs[:1])
    assert (places == {""}) == (state == "idle")


def test_handlers_are_put_back():
    from biggan_jax.train.preemption import Preemption

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for _ in range(2):
        with Preemption(30) as preemption:
            preemption.join(None, 0, 1)
            preemption.something_to_save()
            preemption.tick()
            assert preemption.requested is None
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
