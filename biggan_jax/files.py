"""Files that are written whole or not at all, and places checked before work is spent on them."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from biggan_jax.config import ConfigError

# What only a disk that is written to answers; other errors of the system keep their traceback.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class CannotWrite(RuntimeError):
    """The disk does not take what has to be written; the message is one sentence for the user."""


@contextlib.contextmanager
def disk_errors_named(folder: str) -> Iterator[None]:
    """Turns what a full disk answers inside the block into one sentence.

    Raises:
      CannotWrite: naming `folder` and what the disk said.
    """
    try:
        yield
    except OSError as e:
        if e.errno not in _DISK_ERRORS:
            raise
        raise CannotWrite(
            f"{folder}: cannot be written to: {e.strerror}; the checkpoints in it are kept, so"
            " free space and start again."
        ) from e


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


def make_durable(folder: str) -> None:
    """Asks the disk to remember the names in a folder through a power cut, where it can."""
    with contextlib.suppress(OSError):  # Not all kinds of disk do this for folders.
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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


def check_new_folder(folder: str, option: str) -> None:
    """Checks that `folder` can be made and holds nothing yet; makes nothing.

    Raises:
      ConfigError: if not.
    """
    check_folder(folder, option)
    if os.path.isdir(folder) and os.listdir(folder):
        raise ConfigError(f"{option}={folder}: is there already and not empty; name another.")


@contextlib.contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """Gives a folder to fill beside `folder`; renamed there at the end, removed on any error.

    Raises:
      ConfigError: if `folder` holds something already or may not be made.
    """
    check_new_folder(folder, "OUT")
    place = os.path.abspath(folder)
    temporary = f"{place}.{os.getpid()}.tmp"
    os.makedirs(temporary)
    try:
        yield temporary
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
