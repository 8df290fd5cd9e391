"""Whether all processes of a run see one disk.

On local disks of their own, each process would write its part of a checkpoint where the others
cannot read it, and nobody would notice before the run has to go on from one.
"""

import contextlib
import json
import os
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from biggan_jax.config import ConfigError

_TEXT = 512  # Bytes of what a process tells the others.
_TRIES = 3  # Seconds that a shared disk may take to show a new file everywhere.


def check_shared(folder: str) -> None:
    """Lets every process write a small file into `folder`, read those of all, and remove its own.

    All processes of a run call this together, and all of them raise the same error.

    Args:
      folder: made at need.

    Raises:
      ConfigError: naming the processes and hosts that cannot write, or do not see what another
        wrote.
    """
    me, count = jax.process_index(), jax.process_count()
    # Files that a killed process left must not be taken for this start's.
    token = str(_to_all(np.random.default_rng().integers(2**31)))
    paths = [os.path.join(folder, f".probe-{i}") for i in range(count)]
    problem = None
    try:
        os.makedirs(folder, exist_ok=True)
        with open(paths[me], "w", encoding="utf-8") as f:
            f.write(token)
    except OSError as e:
        problem = e.strerror
    told = _from_all({"host": socket.gethostname()[:64], "problem": problem})
    hosts = [f"process {i} (host {one['host']})" for i, one in enumerate(told)]
    for host, one in zip(hosts, told, strict=True):
        if one["problem"]:
            with contextlib.suppress(OSError):
                os.remove(paths[me])
            raise ConfigError(f"{folder}: {host} cannot write there: {one['problem']}.")
    absent = _from_all(_absent(paths, token)[:16])
    os.remove(paths[me])  # All have read by now.
    for host, indices in zip(hosts, absent, strict=True):
        if indices:
            others = " and ".join(hosts[i] for i in indices)
            raise ConfigError(
                f"{folder}: {host} does not find there what {others} wrote; all processes need one"
                " shared disk."
            )


def _absent(paths, token):
    """Returns the indices of those that do not hold the token."""
    for attempt in range(_TRIES):
        absent = [i for i, path in enumerate(paths) if _text(path) != token]
        if not absent:
            break
        time.sleep(attempt < _TRIES - 1)
    return absent


def _text(path):
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except OSError:
        return None


def _to_all(number):
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _from_all(value):
    """Returns what each process gave, in their order; a list of what JSON can hold."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    padded = np.frombuffer(text.ljust(_TEXT), np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row.tobytes()) for row in np.asarray(gathered)]
