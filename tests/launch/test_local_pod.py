"""The launcher on one machine, with small programs that need no JAX."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

pytestmark = pytest.mark.multiprocess
LAUNCHER = str(pathlib.Path(__file__).parents[2] / "launch" / "local_pod.py")


def command(code, *options):
    return [sys.executable, LAUNCHER, *options, "--", sys.executable, "-c", textwrap.dedent(code)]


def pod(code, *options):
    done = subprocess.run(command(code, *options), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def wait_for(path, lines=1):
    """Returns the lines of a file once it has so many."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        text = path.read_text() if path.exists() else ""
        if text.count("\n") >= lines:
            return text.splitlines()
        time.sleep(0.02)
    raise AssertionError(f"{path} has no {lines} lines")


def ended(pid):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":  # Dead, and nobody has asked for its code.
            return True
        time.sleep(0.02)
    return False


def test_each_process_learns_its_place_and_its_lines_come_whole():
    code = """
        import os, sys
        me = os.environ["JAX_PROCESS_ID"]
        for i in range(200):
            print("x" * 5000, i)
        print(me, os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_COORDINATOR_ADDRESS"],
              os.environ["JAX_NUM_CPU_DEVICES"], file=sys.stderr)
        sys.stdout.write("no newline at the end")
    """
    status, out, _ = pod(code, "--processes=3", "--devices=5")
    assert status == 0
    lines = out.splitlines()
    addresses = set()
    for i in range(3):
        own = [line[4:] for line in lines if line.startswith(f"[{i}] ")]
        assert [s for s in own if s.startswith("x")] == ["x" * 5000 + f" {n}" for n in range(200)]
        place = next(line for line in own if line.startswith(f"{i} 3 127.0.0.1:"))
        assert place.endswith(" 5") and own[-1] == "no newline at the end"
        addresses.add(place.split()[2])
    assert len(addresses) == 1 and len(lines) == 3 * 202


@pytest.mark.parametrize(
    ("codes", "want"),
    [
        ((0, 0), 0),
        ((75, 75), 75),
        ((2, 3), 3),
        ((2, 69), 2),
        ((75, 69), 69),
        ((0, 75), 75),
        ((0, 1), 1),
        ((-9, -9), 137),
    ],
)
def test_exit_codes(codes, want):
    code = f"""
        import os, signal
        code = {codes}[int(os.environ["JAX_PROCESS_ID"])]
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    """
    status, _, err = pod(code, "--processes=2")
    assert status == want
    assert ("exit codes:" in err) == any(codes)


COUNT = """
    import os, pathlib, sys
    path = pathlib.Path({folder!r}, os.environ["JAX_PROCESS_ID"])
    starts = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(starts))
    sys.exit({codes}[min(starts, {last}) - 1])
"""


@pytest.mark.parametrize(
    ("codes", "restart", "want", "starts"),
    [
        ([1, 75, 0], 5, 0, 3),
        ([69, 69, 69], 2, 69, 3),
        ([75, 2], 5, 2, 2),
        ([3], 5, 3, 1),
        ([1], 0, 1, 1),
    ],
)
def test_restarts(tmp_path, codes, restart, want, starts):
    code = COUNT.format(folder=str(tmp_path), codes=codes, last=len(codes))
    status, _, err = pod(code, "--processes=2", f"--restart={restart}")
    assert status == want
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys("01", str(starts))
    assert err.count("starting all of it again") == starts - 1


WAIT = """
    import os, pathlib, signal, sys, time
    def stop(number, _):
        print("asked", number, flush=True)
        if {heed}:
            sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if {fails} and os.environ["JAX_PROCESS_ID"] == "1":
        sys.exit(5)
    with open({log!r}, "a") as f:
        f.write(f"{{os.getpid()}}\\n")
    while True:
        time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_ends_restarts(tmp_path, number):
    code = WAIT.format(heed=True, fails=False, log=str(tmp_path / "log"))
    launcher = subprocess.Popen(
        command(code, "--processes=2", "--restart=3"), stdout=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "log", 2)
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert sorted(out.splitlines()) == [f"[0] asked {number:d}", f"[1] asked {number:d}"]


def test_a_second_signal_kills(tmp_path):
    code = WAIT.format(heed=False, fails=False, log=str(tmp_path / "log"))
    launcher = subprocess.Popen(
        command(code, "--processes=2", "--restart=3"), stdout=subprocess.PIPE, text=True
    )
    pids = wait_for(tmp_path / "log", 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.stdout.readline() and launcher.stdout.readline()  # Both were asked.
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 137
    launcher.stdout.close()
    assert all(ended(pid) for pid in pids)


def test_when_one_ends_with_an_error_the_others_are_ended(tmp_path):
    code = WAIT.format(heed=True, fails=True, log=str(tmp_path / "log"))
    status, out, err = pod(code, "--processes=3", "--grace=2")
    assert status == 5
    assert sorted(out.splitlines()) == ["[0] asked 15", "[2] asked 15"]
    assert "[0], [2] did not end by themselves: SIGTERM" in err
    assert "exit codes: [0] 75, [1] 5, [2] 75" in err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs prctl")
def test_no_orphan_is_left_when_the_launcher_is_killed(tmp_path):
    code = WAIT.format(heed=False, fails=False, log=str(tmp_path / "log"))
    pids_file = tmp_path / "pids"
    launcher = subprocess.Popen(command(code, "--processes=2", f"--pids={pids_file}"))
    pids = wait_for(tmp_path / "log", 2)
    assert sorted(wait_for(pids_file, 2)) == sorted(pids)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait(timeout=30)
    assert all(ended(pid) for pid in pids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=0"], "--processes=0: must be at least 1."),
        (["--processes=2", "--devices=0"], "--devices=0: must be at least 1."),
        (["--processes=2", "--restart=-1"], "--restart=-1: must be at least 0."),
    ],
)
def test_bad_options_are_named(options, message):
    status, _, err = pod("print(1)", *options)
    assert status == 2 and message in err


def test_a_program_that_is_not_there_is_named():
    done = subprocess.run(
        [sys.executable, LAUNCHER, "--processes=2", "--", "no-such-program"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "'no-such-program' cannot be started: No such file or directory." in done.stderr
