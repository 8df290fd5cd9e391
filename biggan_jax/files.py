"""Files that are written whole or not at all, and places checked before work is spent on them."""

import os

from biggan_jax.config import ConfigError


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file beside its place and renames it there, so that no reader sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(data)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def check_folder(path: str, option: str) -> None:
    """Checks that `path` is a folder to write into, or can be made one; makes nothing.

    Raises:
      ConfigError: naming the option, the path and what stands in the way.
    """
    if "://" in path:
        raise ConfigError(f"{option}={path}: must be a folder on a mounted disk, not an address.")
    place = os.path.abspath(path)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise ConfigError(f"{option}={path}: {place!r} is a file, not a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}={path}: {place!r} may not be written to.")
