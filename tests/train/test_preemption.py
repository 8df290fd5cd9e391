import contextlib
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, sys, time
from biggan_jax.train.preemption import Preempted, Preemption
what = sys.argv[1]
with Preemption(grace_seconds=float(sys.argv[2])) as preemption:
    if what == "startup":
        print("ready", flush=True)
        # One instruction of the interpreter for minutes, without its lock, as a compilation is.
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    with preemption.something_to_save():
        print("ready", flush=True)
        if what == "hangs":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        while not preemption.requested:
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


def test_a_second_signal_leaves_at_once():
    with started("slow", 1000) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "saved\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "a second signal came" in err


def test_handlers_are_put_back():
    from biggan_jax.train.preemption import Preemption

    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for _ in range(2):
        with Preemption(30) as preemption, preemption.something_to_save():
            time.sleep(0.01)
            assert preemption.requested is None
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
