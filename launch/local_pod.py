#!/usr/bin/env python3
"""Runs one command as several processes of one JAX run, on this machine.

    python launch/local_pod.py --processes=2 --devices=4 --restart=3 -- \
        biggan train --config=configs/digits.py --workdir=runs/digits

Each process gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and with --devices
so many simulated CPU devices. What they print comes line by line with the process's number in
front. SIGTERM and SIGINT are passed on to all of them; a second one kills. When one ends with an
error, the others get time to end too, then SIGTERM, then SIGKILL. None is left behind, even when
this program is killed (Linux).

The exit code is the one that all ended with; else 3 if any ended with it, else 2, else the first
one that is neither 0 nor 75, else 75. A process ended by signal N counts as 128 + N.
"""

import argparse
import contextlib
import errno
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

NOT_AGAIN = (0, 2, 3)  # Done; bad input; stopped by the watchdog. All others start the pod again.
_output = threading.Lock()
_KILL_SECONDS = 10.0  # Between SIGTERM and SIGKILL.
# Runs before the command, in its process. Not by `preexec_fn`: that is run between fork and exec,
# where a program that has imported JAX, and so has threads, can come to stand still.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
for ignored_by_python in ("SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, ignored_by_python), signal.SIG_DFL)
PR_SET_PDEATHSIG = 1
if sys.platform.startswith("linux"):
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # It ended before the line above.
        os._exit(128 + signal.SIGKILL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def run_pod(
    command: Sequence[str],
    processes: int,
    devices: int | None = None,
    restart: int = 0,
    grace: float = 90.0,
    env: Mapping[str, str] | None = None,
    pids: str | os.PathLike[str] | None = None,
) -> int:
    """Runs the command in so many processes and returns the exit code for all of them.

    Called in the main thread, it passes SIGTERM and SIGINT on; elsewhere it leaves signals alone.

    Args:
      command: the program and its arguments.
      processes: how many.
      devices: simulated CPU devices a process; None: whatever JAX finds.
      restart: how many times the whole pod is started again, after any code but 0, 2 and 3.
      grace: seconds that the others get to end by themselves when one has ended with an error.
      env: the environment, before what is set here; default: this process's.
      pids: a file that holds the process ids, one a line, in order, while they run.

    Raises:
      FileNotFoundError: if there is no such program.
    """
    path = os.environ.get("PATH") if env is None else env.get("PATH")
    if shutil.which(command[0], path=path) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    asked: list[int] = []  # Signals that came to this process.
    running: list[subprocess.Popen] = []

    def pass_on(number, _):
        asked.append(number)
        for process in running:
            _signal(process, number if len(asked) == 1 else signal.SIGKILL)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, pass_on)
    try:
        for left in range(restart, -1, -1):
            code = _run_once(command, processes, devices, grace, env, pids, running, asked)
            if code in NOT_AGAIN or asked:
                return code
            if left:
                _say(f"the pod ended with code {code}: starting all of it again, {left - 1} left")
        return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_once(command, processes, devices, grace, env, pids, running, asked):
    environment = dict(os.environ if env is None else env)
    environment["PYTHONUNBUFFERED"] = "1"
    environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{_free_port()}"
    environment["JAX_COORDINATOR_BIND_ADDRESS"] = environment["JAX_COORDINATOR_ADDRESS"]
    environment["JAX_NUM_PROCESSES"] = str(processes)
    if devices is not None:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    running.clear()
    readers = []
    try:
        for i in range(processes):
            process = subprocess.Popen(
                [sys.executable, "-ISc", _END_WITH_PARENT, str(os.getpid()), *command],
                env=environment | {"JAX_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes from here alone, and whole groups can end.
            )
            running.append(process)
            if asked:  # While this one was being started.
                _signal(process, asked[0] if len(asked) == 1 else signal.SIGKILL)
            readers.append(threading.Thread(target=_copy, args=(i, process.stdout), daemon=True))
            readers[-1].start()
        if pids is not None:
            text = "".join(f"{process.pid}\n" for process in running)
            _write_whole(pathlib.Path(pids), text)
        _wait(running, grace)
    finally:
        for process in running:
            _signal(process, signal.SIGKILL)  # Whatever is left, children of children included.
            process.wait()
        for reader in readers:
            reader.join(_KILL_SECONDS)
        if pids is not None:
            pathlib.Path(pids).unlink(missing_ok=True)
    codes = [128 - p.returncode if p.returncode < 0 else p.returncode for p in running]
    if any(codes):
        _say("exit codes: " + ", ".join(f"[{i}] {_meaning(code)}" for i, code in enumerate(codes)))
    return common_code(codes)


def common_code(codes: Sequence[int]) -> int:
    """Returns one exit code for all."""
    if len(set(codes)) == 1:
        return codes[0]
    others = [code for code in codes if code not in (0, 2, 3, 75)]
    return next(code for code in (3, 2, *others, 75) if code in codes)


def _wait(running, grace):
    """Returns when all have ended, at the latest some seconds after one ended with an error."""
    stages = [(grace, signal.SIGTERM), (_KILL_SECONDS, signal.SIGKILL)]
    deadline = None
    while None in [process.poll() for process in running]:
        time.sleep(0.05)
        now = time.monotonic()
        if deadline is None:
            if any(process.returncode for process in running):
                deadline = now + stages[0][0]
        elif now > deadline and stages:
            _, number = stages.pop(0)
            left = [i for i, process in enumerate(running) if process.poll() is None]
            if left:
                names = ", ".join(f"[{i}]" for i in left)
                _say(f"{names} did not end by themselves: {signal.Signals(number).name}")
            for i in left:
                _signal(running[i], number)
            deadline = now + (stages[0][0] if stages else _KILL_SECONDS)


def _copy(index, stream):
    """Prints the lines of one process; each in one piece, so that those of two never mix."""
    prefix = f"[{index}] ".encode()
    with stream:
        for line in stream:
            _write(1, prefix + line.rstrip(b"\n") + b"\n")


def _signal(process, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _write_whole(path, text):
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    partial.replace(path)


def _meaning(code):
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"{code} ({signal.Signals(code - 128).name})"
    return str(code)


def _say(line):
    _write(2, f"local_pod: {line}\n".encode())


def _write(descriptor, data):
    # A pipe takes no more than PIPE_BUF bytes at once without those of another writer between.
    with _output, contextlib.suppress(OSError):  # Nobody reads any more; the processes shall go on.
        while data:
            data = data[os.write(descriptor, data) :]


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, runs the pod and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="local_pod.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices", type=int, metavar="N", help="simulated CPU devices a process")
    parser.add_argument(
        "--restart",
        type=int,
        default=0,
        metavar="K",
        help="start the whole pod again up to K times, after any exit code but 0, 2 and 3; not"
        " when this program was asked to stop",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=90.0,
        metavar="SECONDS",
        help="that the others get when one ends with an error; more than heartbeat_seconds, so"
        " that they can say what they missed (default: 90)",
    )
    parser.add_argument("--pids", metavar="FILE", help="write the process ids there, one a line")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="and its arguments")
    args = parser.parse_args(argv)
    for name, least in (("processes", 1), ("devices", 1), ("restart", 0), ("grace", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name}={value:g}: must be at least {least}.")
    try:
        return run_pod(
            args.command,
            args.processes,
            args.devices,
            args.restart,
            args.grace,
            pids=args.pids,
        )
    except OSError as e:
        parser.error(f"{args.command[0]!r} cannot be started: {e.strerror}.")


if __name__ == "__main__":
    sys.exit(main())
