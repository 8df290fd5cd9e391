"""Many processes as one run: start-up, words among them, and what happens when one is lost.

JAX's coordination service (process 0 holds it) brings the processes together. Its own answer to a
lost process is an abort with pages of C++ text, and which process it was is in none of the
survivors' last lines. So each process says here every second or two that it lives, process 0 looks
who has fallen silent, and all others end with one sentence and code 69. JAX's own time-outs are set
so that they come later; what it alone notices at once, the death of process 0, is turned into a
sentence too.
"""

import contextlib
import ctypes
import errno
import faulthandler
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

# Private, and touched in this file alone. JAX makes the client of its coordination service for
# itself and gives no public way to its key-value store, nor to the callback of a lost connection.
from jax._src import clusters as _clusters
from jax._src import distributed as _jax_distributed

from biggan_jax.config import ConfigError

EXIT_CODE = 69  # EX_UNAVAILABLE: another process is lost; start all of them again.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_CLUSTERS = ("ompi", "slurm", "gketpu", "gcetpu")
_AGAIN = f"leaving with code {EXIT_CODE}; start all processes again to go on"
_LEAVE_SECONDS = 5.0  # For the others to leave by themselves when one has ended with an error.
# What collectives and JAX's service say when the other end of a connection is gone.
_BROKEN = re.compile(
    "gloo|nccl|unavailable|coordination service|socket closed|broken pipe"
    "|connection (reset|closed|refused|timed out)",
    re.IGNORECASE,
)


class Store:
    """Words among the processes of a run, by key; may be used by any thread at any time."""

    def __init__(self, client: Any):
        """Takes the client of JAX's coordination service."""
        self._client = client

    def put(self, key: str, value: str) -> None:
        """Sets a key, whatever it was."""
        self._client.key_value_set(f"biggan/{key}", value, allow_overwrite=True)

    def get(self, key: str) -> str | None:
        """Returns a key's value, or None if nobody has set it."""
        try:
            return self._client.key_value_try_get(f"biggan/{key}")
        except jax.errors.JaxRuntimeError as e:
            if "NOT_FOUND" in str(e):
                return None
            raise

    def all(self, folder: str) -> dict[str, str]:
        """Returns `{key: value}` of the keys `folder/key`."""
        pairs = self._client.key_value_dir_get(f"biggan/{folder}/")
        return {key.rpartition("/")[2]: value for key, value in pairs}

    def wait(self, key: str, seconds: float) -> str:
        """Returns a key's value once somebody has set it.

        Raises:
          TimeoutError: if nobody has within so many seconds.
        """
        try:
            return self._client.blocking_key_value_get(f"biggan/{key}", round(seconds * 1000))
        except jax.errors.JaxRuntimeError as e:
            if "DEADLINE_EXCEEDED" in str(e):
                raise TimeoutError(f"nobody said {key!r} within {seconds:g} seconds") from None
            raise


def start(heartbeat_seconds: int, connect_seconds: int = 300) -> None:
    """Joins the processes of a run; to be called before anything asks JAX for devices.

    Several processes are asked for by JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or by SLURM, Open MPI or the metadata of a TPU pod, as JAX detects them. Without
    any of these, with a count of one, or when called again, nothing is started.

    Args:
      heartbeat_seconds: silence after which a process counts as lost.
      connect_seconds: how long to wait for all processes.

    Where the processes do not come together, this one ends with a sentence and code 69.

    Raises:
      ConfigError: if the environment is half-given or wrong.
    """
    global _run
    if _run is not None:
        return
    asked = _asked(os.environ)
    if asked is None:
        return
    jax.config.update("jax_enable_preemption_service", False)  # train/preemption.py listens.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _run = run = _Run(heartbeat_seconds, connect_seconds, asked)
    if asked.get("process_id") == 0:
        _check_port(asked.get("coordinator_address"))
    try:
        with _callback(run.jax_gave_up):
            jax.distributed.initialize(
                **asked,
                initialization_timeout=connect_seconds,
                # JAX counts from the last sign of life, of which there are two in its time-out.
                heartbeat_timeout_seconds=2 * (heartbeat_seconds + 6),
                shutdown_timeout_seconds=heartbeat_seconds,
            )
    except (RuntimeError, ValueError) as e:  # JaxRuntimeError is one.
        if _jax_distributed.global_state.client is not None:
            run.jax_gave_up()
        # The detection of a cluster failed.
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        run.end(f"the processes of this run cannot come together: {reason}")
    run.watch()


def store() -> Store | None:
    """Returns the words among the processes; None where there is one process."""
    return _run.store if _run is not None else None


def process_count() -> int:
    """Returns how many processes have been joined, without waking JAX's backend."""
    return _jax_distributed.global_state.num_processes if _run is not None else 1


def process_index() -> int:
    """Returns which of them this one is, without waking JAX's backend."""
    return _jax_distributed.global_state.process_id if _run is not None else 0


def end() -> None:
    """Waits for all processes to come here, however long the others work, and parts from them."""
    global _run
    if _run is None:
        return
    # Not JAX's own barrier at the shutdown: that is one with a time-out which ends all of them.
    _run.client.wait_at_barrier("biggan/end", 24 * 3600 * 1000)
    _run.stop()
    jax.distributed.shutdown()
    _run = None


@contextlib.contextmanager
def joined(heartbeat_seconds: int, connect_seconds: int = 300) -> Iterator[None]:
    """`start` and `end`; what is raised inside makes the others leave too.

    Where the error is that of a collective whose other end is gone, this waits to learn which
    process that was, says it, and ends this one with code 69.
    """
    start(heartbeat_seconds, connect_seconds)
    try:
        yield
    except BaseException as e:
        if _run is not None:
            _run.failed(e)
        raise
    end()


def leave(code: int) -> None:
    """Ends this process at once if it has not parted from others; else returns.

    After an error, JAX's own end would wait for the others, who may be in the middle of a
    collective with this process, so that nobody would ever end.
    """
    if _run is None:
        return
    _run.tell_left(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Run:
    """This process among the others of a run."""

    def __init__(self, heartbeat_seconds: int, connect_seconds: int, asked: Mapping[str, Any]):
        self.heartbeat = heartbeat_seconds
        self.connect_seconds = connect_seconds
        self.address = asked.get("coordinator_address") or "the coordinator"
        self.store: Any = None  # A `Store`, once the processes are together.
        self.client: Any = None
        self.me: Any = asked.get("process_id")  # A cluster tells these two only then.
        self.count: Any = asked.get("num_processes")
        self.interval = min(2.0, heartbeat_seconds / 10)
        self._leaving = False
        self._stop = threading.Event()
        self._answered = time.monotonic()  # When process 0 last did.
        self._heard: dict[int, tuple[str | None, float]] = {}  # Of each: last word, and when.

    def watch(self):
        """Begins to say that this process lives, and to look whether the others do."""
        state = _jax_distributed.global_state
        self.me, self.count = state.process_id, state.num_processes
        self.address = state.coordinator_address
        self.client = state.client
        self.store = Store(self.client)
        self._answered = now = time.monotonic()
        self._heard = {i: (None, now) for i in range(self.count)}
        self.store.put(f"host/{self.me}", socket.gethostname())
        # Two: a call to a process that stands still does not return, so another thread counts.
        for target in (self._live, self._count):
            threading.Thread(target=target, name="biggan-peers", daemon=True).start()

    def stop(self):
        """Ends the watch."""
        self._stop.set()

    def failed(self, error: BaseException) -> None:
        """This process goes on no more; returns if that is its own affair."""
        # JAX raises either, by where it notices.
        of_jax = isinstance(error, RuntimeError | ValueError) and not isinstance(error, ConfigError)
        if of_jax and _BROKEN.search(str(error)):
            first = str(error).strip().splitlines()[0]
            _say(
                f"process {self.me}: the connection to another process broke ({first}); waiting up"
                f" to {self.heartbeat + 5} seconds to learn which"
            )
            time.sleep(self.heartbeat + 5)  # The watch ends this process meanwhile.
            self.end("another process is lost")
        self._leaving = True
        # Whatever this process does now, it ends: another's data may never come.
        faulthandler.dump_traceback_later(self.heartbeat + 5, exit=True, file=2)

    def tell_left(self, code: int) -> None:
        """Says that this process ends, and if it is process 0 gives the others time to hear it."""
        self._leaving = True
        # With process 0 gone there is nobody to tell, and a call may not return.
        teller = threading.Thread(target=self._tell, args=(code,), daemon=True)
        teller.start()
        teller.join(_LEAVE_SECONDS)

    def _tell(self, code):
        if self.store is None:
            return  # The processes have not come together.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self.store.put(f"left/{self.me}", str(code))
            while self.me == 0 and len(self.store.all("left")) < self.count:
                time.sleep(self.interval / 4)

    def jax_gave_up(self, *_: object) -> None:
        """JAX has found an error that it does not survive; called by a thread of its own."""
        if self._leaving:
            threading.Event().wait()  # This process ends by itself; let it.
        if self.store is None:
            self.end(
                f"process {self.me} of {self.count}: not all processes have come to"
                f" {self.address} within {self.connect_seconds} seconds; look whether all were"
                " started and can reach that address"
            )
        if self.me != 0:
            self.end(f"{self._name(0)} at {self.address} is gone since {_clock(time.monotonic())}")
        self.end("JAX's coordination service says that another process is lost")

    def _live(self):
        number = 0
        left_since: dict[int, float] = {}
        while not self._stop.wait(self.interval):
            number += 1
            try:
                self.store.put(f"alive/{self.me}", str(number))
                verdict = self.store.get("verdict")
                if self.me == 0 and verdict is None:
                    verdict = self._verdict(left_since)
                    if verdict is not None:
                        self.store.put("verdict", verdict)
                        time.sleep(2 * self.interval)  # The others read it; then the store is gone.
            except jax.errors.JaxRuntimeError:
                continue  # `_count` knows since when.
            self._answered = time.monotonic()
            if verdict is not None:
                self.end(verdict)

    def _verdict(self, left_since):
        """Returns what is wrong with one of the processes, or None; asked in process 0 alone."""
        now = time.monotonic()
        words, left = self.store.all("alive"), self.store.all("left")
        for i in range(1, self.count):
            if str(i) in left:
                if now - left_since.setdefault(i, now) > _LEAVE_SECONDS:
                    return f"{self._name(i)} has ended with code {left[str(i)]}"
                continue
            word, heard = self._heard[i]
            if words.get(str(i)) != word:
                self._heard[i] = (words[str(i)], now)
            elif now - heard > self.heartbeat:
                return (
                    f"{self._name(i)} has not been heard of since {_clock(heard)}"
                    f" (heartbeat_seconds={self.heartbeat}): it was killed, stands still, or its"
                    " machine is gone"
                )
        return None

    def _count(self):
        while not self._stop.wait(self.interval / 2):
            if time.monotonic() - self._answered > self.heartbeat:
                self.end(
                    f"{self._name(0)} at {self.address} has not answered since"
                    f" {_clock(self._answered)} (heartbeat_seconds={self.heartbeat}): it stands"
                    " still, or its machine is gone"
                )

    def _name(self, process):
        if self.me != 0:
            return f"process {process}"
        return f"process {process} (host {self.store.get(f'host/{process}') or 'unknown'})"

    def end(self, why: str) -> None:
        """Ends this process with a sentence, unless it is about to end by itself."""
        if self._leaving or self._stop.is_set():
            threading.Event().wait()
        _say(f"{why}; {_AGAIN}")
        os._exit(EXIT_CODE)


_run: _Run | None = None
_kept: list[Any] = []  # What C++ calls must not be collected.


@contextlib.contextmanager
def _callback(function):
    """Lets JAX call `function` where it would abort the process.

    Its client takes such a callback, which `jax.distributed.initialize` does not pass on. In
    jaxlib 0.10 the callback cannot be called, as its argument has no Python form: the attempt
    throws a C++ exception, nobody catches it, and so the C++ library's last word is asked, which is
    made ours. Where that is not to be had, the process aborts with code 134 and JAX's text.
    """
    handler = ctypes.CFUNCTYPE(None)(function)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate = library._ZSt13set_terminatePFvvE  # std::set_terminate(void (*)())
        set_terminate.argtypes, set_terminate.restype = [type(handler)], ctypes.c_void_p
        set_terminate(handler)
        _kept.append(handler)
    module = _jax_distributed._jax
    make = module.get_distributed_runtime_client
    module.get_distributed_runtime_client = lambda *args, **options: make(
        *args, missed_heartbeat_callback=function, **options
    )
    try:
        yield
    finally:
        module.get_distributed_runtime_client = make


def _asked(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns what to give to `jax.distributed.initialize`; None for a lone process."""
    given = {name: environment[name] for name in _VARIABLES if environment.get(name)}
    cluster = None if len(given) == len(_VARIABLES) else _cluster(environment)
    if cluster is None and not given:
        return None
    if cluster is None:
        missing = [name for name in _VARIABLES if name not in given]
        if missing:
            raise ConfigError(
                f"{' and '.join(given)} set without {' and '.join(missing)}: a run of several"
                f" processes needs all of {', '.join(_VARIABLES)}; one process needs none."
            )
    asked: dict[str, Any] = {"cluster_detection_method": cluster.name if cluster else "deactivate"}
    address = given.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(
                f"JAX_COORDINATOR_ADDRESS={address!r}: must be HOST:PORT, the host of process 0 and"
                " a free port there."
            )
        asked["coordinator_address"] = address
    for name, key in (("JAX_NUM_PROCESSES", "num_processes"), ("JAX_PROCESS_ID", "process_id")):
        if name in given:
            if not given[name].isdecimal():
                raise ConfigError(f"{name}={given[name]!r}: must be a whole number.")
            asked[key] = int(given[name])
    count: Any = asked.get("num_processes")
    if count is None and cluster is not None:
        count = cluster.get_process_count()
    if count < 1:
        raise ConfigError(f"JAX_NUM_PROCESSES={count}: must be at least 1.")
    if not 0 <= asked.get("process_id", 0) < count:
        raise ConfigError(
            f"JAX_PROCESS_ID={asked['process_id']}: must be below JAX_NUM_PROCESSES={count}."
        )
    return asked if count > 1 else None


def _cluster(environment: Mapping[str, str]) -> Any:
    """Returns JAX's description of the cluster that this process is part of, if of any."""
    for kind in _clusters.ClusterEnv._cluster_types:
        # On a TPU pod one worker alone may work on its CPU.
        no_tpu = kind.name.endswith("tpu") and environment.get("JAX_PLATFORMS") == "cpu"
        if kind.name in _CLUSTERS and not no_tpu and kind.is_env_present():
            return kind
    return None


def _check_port(address):
    """JAX dies of a segmentation fault where process 0 cannot have its port."""
    default = f"[::]:{address.rpartition(':')[2]}" if address else ""
    host, _, port = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", default).rpartition(":")
    if not host:
        return
    host = host.strip("[]")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((host, int(port)))
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            assert _run is not None
            _run.end(f"process 0 cannot listen at port {port}: {e.strerror}")


def _clock(then):
    """The time of day of a moment on the monotonic clock."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() - (time.monotonic() - then)))


def _say(line):
    # Straight to the system: the main thread may hold the lock of sys.stderr, and stand still.
    os.write(2, f"{line}\n".encode())
