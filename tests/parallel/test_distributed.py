"""Start-up of several processes, words among them, and what the others do when one is lost."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.parallel import distributed, mesh

pytestmark = pytest.mark.multiprocess
ROOT = pathlib.Path(__file__).parents[2]
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_lone_process_starts_nothing():
    with distributed.joined(10):
        assert not jax.distributed.is_initialized()
        assert distributed.store() is None and distributed.process_count() == 1
    distributed.leave(5)  # Returns.
    assert distributed._asked({}) is None
    assert distributed._asked(EXPLICIT | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None


def test_an_explicit_address_is_taken_and_nothing_else_is_looked_for():
    assert distributed._asked(EXPLICIT) == {
        "cluster_detection_method": "deactivate",
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
    }


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "2",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.mark.parametrize(
    ("name", "variables", "count"),
    [("slurm", SLURM, "SLURM_NTASKS"), ("ompi", OPEN_MPI, "OMPI_COMM_WORLD_SIZE")],
)
def test_clusters_are_detected(monkeypatch, name, variables, count):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    assert distributed._asked(dict(os.environ)) == {"cluster_detection_method": name}
    monkeypatch.setenv(count, "1")  # A job of one task.
    assert distributed._asked(dict(os.environ)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "JAX_NUM_PROCESSES set without JAX_PROCESS_ID: a run of several"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "set without JAX_COORDINATOR_ADDRESS"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "'host': must be HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "host:0"}, "'host:0': must be HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": ":99"}, "':99': must be HOST:PORT"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID=4: must be below JAX_NUM_PROCESSES=4."),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID='-1': must be a whole number."),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two': must be a whole number."),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES=0: must be at least 1."),
    ],
)
def test_a_wrong_environment_is_named(changes, message):
    with pytest.raises(ConfigError) as e:
        distributed._asked(EXPLICIT | changes)
    assert message in str(e.value) and str(e.value).endswith(".")


@pytest.mark.parametrize(("count", "nearest"), [(3, 4), (1, 2), (7, 8)])
def test_devices_that_processes_cannot_share_are_named(monkeypatch, count, nearest):
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    with pytest.raises(ConfigError) as e:
        mesh.request_cpu_devices(count)
    assert str(e.value) == (
        f"device_count={count}: must be a multiple of the 2 processes, each of which gives as many;"
        f" nearest is {nearest}."
    )


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_come_together_say_so(process):
    code = """
        from biggan_jax.parallel import distributed
        distributed.start(10, connect_seconds=2)
    """
    address = f"127.0.0.1:{free_port()}"
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(process),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == distributed.EXIT_CODE == 69
    assert (
        f"process {process} of 2: not all processes have come to {address} within 2 seconds; look"
        " whether all were started and can reach that address; leaving with code 69; start all"
        " processes again to go on\n"
    ) in done.stderr
    assert "stack trace" not in done.stderr


# Words, then collectives until somebody is gone, or an end in which process 0 is late.
PEER = """
import sys, threading, time
import jax
import numpy as np
from biggan_jax.parallel import distributed, mesh

how = sys.argv[1]
with distributed.joined(10):
    mesh_of_all = mesh.make_mesh(jax.device_count())
    me, words = jax.process_index(), distributed.store()
    if me == 0:
        assert words.get("a/b") is None
        threading.Thread(target=lambda: words.put("a/b", "first")).start()
    assert words.wait("a/b", 20) == words.get("a/b") == "first"
    words.put(f"all/{me}", str(me))
    words.wait(f"all/{1 - me}", 20)
    assert words.all("all") == {"0": "0", "1": "1"}
    words.put("a/b", "second")
    assert words.get("a/b") == "second"
    try:
        words.wait("never", 0.2)
        raise AssertionError
    except TimeoutError as e:
        assert "nobody said 'never' within 0.2 seconds" in str(e)
    whole = mesh.batch_sharding(mesh_of_all, 0)
    ones = jax.make_array_from_callback((mesh_of_all.size,), whole, lambda i: np.ones(1, "f"))
    total = jax.jit(lambda x: x.sum(), out_shardings=mesh.replicated(mesh_of_all))
    assert float(total(ones)) == 2
    print("ready", flush=True)
    if how == "late":
        time.sleep(13 * (me == 0))
    while how == "collectives":
        total(ones).block_until_ready()
        time.sleep(0.01)
    while how == "alone":
        time.sleep(0.1)
print("parted")
"""


def peers(how):
    """Two processes of one device each, both at work."""
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, how],
            cwd=ROOT,
            env=os.environ | variables | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in started:
        for line in process.stdout:  # Gloo writes there too.
            if line == "ready\n":
                break
    return started


@pytest.mark.parametrize(
    ("lost", "number", "how", "message"),
    [
        (1, signal.SIGKILL, "collectives", r"process 1 \(host .+\) has not been heard of since "),
        (0, signal.SIGKILL, "collectives", r"process 0 at 127.+ is gone since "),
        (1, signal.SIGSTOP, "collectives", r"process 1 \(host .+\) has not been heard of since "),
        (0, signal.SIGSTOP, "alone", r"process 0 at 127.+ has not answered since "),
    ],
)
def test_when_one_is_lost_the_other_says_so_and_ends(lost, number, how, message):
    started = peers(how)
    try:
        at = time.monotonic()
        started[lost].send_signal(number)
        _, err = started[1 - lost].communicate(timeout=60)
        # The heartbeat time-out of 10 seconds, and 10 more.
        assert time.monotonic() - at < 20
        assert started[1 - lost].returncode == 69, err
        end = "leaving with code 69; start all processes again to go on"
        assert re.search(rf"^{message}.*{end}$", err, re.MULTILINE), err
        assert "stack trace" not in err and "Traceback" not in err
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_an_end_waits_for_the_slowest_longer_than_the_heartbeat():
    started = peers("late")
    try:
        ended = [process.communicate(timeout=60) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for process, (out, err) in zip(started, ended, strict=True):
        assert process.returncode == 0 and out.endswith("parted\n"), err


def test_a_port_that_is_taken_is_named():
    with socket.socket(socket.AF_INET6) as s:
        s.bind(("::", 0))
        s.listen()
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{s.getsockname()[1]}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": "0",
        }
        code = "from biggan_jax.parallel import distributed; distributed.start(10, 5)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 69
    assert done.stderr == (
        f"process 0 cannot listen at port {variables['JAX_COORDINATOR_ADDRESS'].split(':')[1]}:"
        " Address already in use; leaving with code 69; start all processes again to go on\n"
    )
