"""The watch over runs that stand still, in processes that really do."""

import subprocess
import sys
import textwrap

import pytest

from biggan_jax.config import ConfigError
from biggan_jax.train import hang

pytestmark = pytest.mark.multiprocess

START = """
    import sys, threading, time
    from biggan_jax.train.hang import HangWatch
    say = lambda line: print(line, flush=True)
    watch = HangWatch(0.5, 1.5, say, sys.argv[1])
"""


def run(code, path):
    code = textwrap.dedent(START) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )


STUCK = {
    "sleep": "time.sleep(60)",
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    # Waits in C++ of JAX, as in a collective whose other end is gone.
    "c": "import ctypes; ctypes.CDLL(None).sleep(60)",
}


@pytest.mark.parametrize("how", STUCK)
def test_stacks_then_the_end(tmp_path, how):
    path = tmp_path / "hang-0.txt"
    code = f"""
        def stand_still():
            {STUCK[how]}
        with watch:
            watch.beat("step 7")
            stand_still()
    """
    done = run(code, path)
    assert done.returncode == hang.EXIT_CODE == 70
    first, last = done.stdout.splitlines()
    assert first.startswith("nothing was finished for 0.5 seconds; the last was step 7, at 2")
    assert str(path) in first and "leaving with code 70, start again to go on" in last
    for text in (done.stderr, path.read_text()):
        assert "in stand_still" in text and "in _watch" in text  # All threads.


def test_code_that_keeps_the_interpreter_lock_is_ended_too(tmp_path):
    code = """
        import ctypes
        def stand_still():
            ctypes.PyDLL(None).sleep(60)  # Unlike CDLL, this does not let go of the lock.
        with watch:
            watch.beat("step 7")
            stand_still()
    """
    done = run(code, tmp_path / "hang-0.txt")
    assert done.returncode == 1
    assert "Timeout (0:00:02.5" in done.stderr and "in stand_still" in done.stderr


def test_nothing_is_said_before_the_first_beat_in_pauses_and_while_things_finish(tmp_path):
    path = tmp_path / "hang-0.txt"
    code = """
        with watch:
            time.sleep(2)  # Compiling.
            watch.beat("step 1")
            with watch.paused():
                watch.beat("the middle of something long")
                time.sleep(3)
            for i in range(20):
                time.sleep(0.1)
                watch.beat(f"step {i}")
        time.sleep(3)  # Over.
    """
    done = run(code, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not path.exists()


def test_a_run_that_goes_on_after_the_stacks_is_left_alone(tmp_path):
    path = tmp_path / "hang-0.txt"
    code = """
        with watch:
            for i in range(2):
                watch.beat(f"step {i}")
                time.sleep(1)
    """
    done = run(code, path)
    assert done.returncode == 0
    assert [line.split(" was ")[2].split(",")[0] for line in done.stdout.splitlines()] == [
        "step 0",
        "step 1",
    ]
    assert path.read_text().count("nothing was finished") == 2


def test_the_end_comes_after_the_stacks(tmp_path):
    with pytest.raises(
        ConfigError, match=r"hang_dump_seconds=9: must be below hang_exit_seconds=9"
    ):
        hang.HangWatch(9, 9, print, tmp_path / "x")
