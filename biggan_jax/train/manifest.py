"""What a checkpoint says of itself, and whether its files are still what was written.

`manifest.json` lies in a checkpoint's folder and names every other file in it with its size and
SHA-256. It is text in one fixed form and holds the SHA-256 of itself, so that no bit of it can
change unseen either. Files that it does not name do not count.
"""

import datetime
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from biggan_jax import __version__

NAME = "manifest.json"
# Of what a checkpoint's meaning may depend on.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


class Damaged(Exception):
    """A checkpoint is not what was written; the message says in a few words why."""


def facts(
    step: int, state: Any, meta: Mapping[str, Any], metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Returns what a manifest says besides the files.

    Args:
      step: of the checkpoint.
      state: a pytree of `jax.Array`; only where it lies is looked at.
      meta: what the caller keeps with a checkpoint; what JSON can hold.
      metrics: finite numbers by name.

    Returns:
      format, step, time (UTC, to the second), versions, topology (of the state: processes, devices,
      platform, kind), meta and metrics.
    """
    devices = jax.tree.leaves(state)[0].sharding.device_set
    device = min(devices, key=lambda d: d.id)
    return {
        "format": 1,
        "step": step,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "biggan-jax": __version__,
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "topology": {
            "processes": jax.process_count(),
            "devices": len(devices),
            "platform": device.platform,
            "kind": device.device_kind,
        },
        "meta": dict(meta),
        "metrics": dict(metrics),
    }


def write(folder: str, about: Mapping[str, Any]) -> None:
    """Hashes every file below `folder`, makes them durable, and writes the manifest among them.

    Args:
      folder: of a checkpoint that nothing writes into any more.
      about: what `facts` gave.

    Raises:
      OSError: if the disk does not take it.
    """
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with open(path, "rb") as f:
                sha256 = hashlib.file_digest(f, "sha256").hexdigest()
                size = f.tell()
                # The checkpoint before may be removed once this one counts, so a power cut must
                # not find it in memory alone.
                os.fsync(f.fileno())
            relative = os.path.relpath(path, folder).replace(os.sep, "/")
            found[relative] = {"bytes": size, "sha256": sha256}
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as f:
        f.write(_text({**about, "files": found}))
        f.flush()
        os.fsync(f.fileno())


def read(folder: str) -> dict[str, Any]:
    """Returns the manifest in a folder.

    Raises:
      FileNotFoundError: if there is none.
      Damaged: if it is not what was written.
    """
    path = os.path.join(folder, NAME)
    try:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        content = json.loads(text)
        del content["sha256"]
        same = _text(content) == text
    except FileNotFoundError:
        raise
    except OSError as e:
        raise Damaged(f"{NAME} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise Damaged(f"{NAME} is not what was written")
    return content


def check(folder: str, content: Mapping[str, Any], hashes: bool = True) -> None:
    """Compares the files of a checkpoint with its manifest.

    Args:
      folder: of the checkpoint.
      content: its manifest.
      hashes: read all of every file; else only their sizes are compared.

    Raises:
      Damaged: naming the first file that is missing or another.
    """
    for name, wanted in content["files"].items():
        path = os.path.join(folder, *name.split("/"))
        try:
            size = os.path.getsize(path)
            if size != wanted["bytes"]:
                raise Damaged(f"{name} has {size:,} bytes of {wanted['bytes']:,}")
            if hashes:
                with open(path, "rb") as f:
                    sha256 = hashlib.file_digest(f, "sha256").hexdigest()
                if sha256 != wanted["sha256"]:
                    raise Damaged(f"{name} is not what was written: its SHA-256 is another")
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except OSError as e:
            raise Damaged(f"{name} cannot be read: {e.strerror}") from e


def size(content: Mapping[str, Any]) -> int:
    """Returns the bytes of all files that a manifest names."""
    return sum(file["bytes"] for file in content["files"].values())


def _text(content):
    plain = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    sha256 = hashlib.sha256(plain.encode()).hexdigest()
    return json.dumps({**content, "sha256": sha256}, indent=1, sort_keys=True) + "\n"
