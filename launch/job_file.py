"""Job files: what is to be run and where, in TOML, with every key checked."""

import difflib
import pathlib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

NAME = r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?"  # Of resources on Google Cloud and of Kubernetes.
NAME_WORDS = "must be small letters, digits and -, 63 at most, beginning with a letter"
LABEL = "biggan-launch"  # Its value is the job's owner; what does not carry it is not touched.
MUST = object()  # In place of a default: the key may not be left out.
_WORDS = {str: "text", bool: "true or false", list: "list of texts", int: "whole number"}


class JobError(ValueError):
    """What a user gave cannot be used; the message is one sentence for that user."""


def read(path: str, keys: Mapping[str, Mapping[str, tuple[type, Any]]]) -> dict[str, Any]:
    """Reads a job file.

    Args:
      path: of the file.
      keys: of each table ("" for what comes before the first) its keys: type and default.

    Returns:
      The values by key, "TABLE.KEY" in tables.

    Raises:
      JobError: naming the key and what is allowed.
    """
    try:
        tables = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise JobError(f"cannot be read: {e.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise JobError(f"is not TOML: {e}.") from None
    values = {}
    for table, known in keys.items():
        given = tables if table == "" else tables.get(table, {})
        if not isinstance(given, dict):
            raise JobError(f"{table}: must be a table, written [{table}].")
        for key in given:
            if key not in known and not (table == "" and key in keys):
                others = [*known, *filter(None, keys)] if table == "" else known
                raise JobError(f"{_full(table, key)}: unknown key{_nearest(key, others)}")
        for key, (kind, default) in known.items():
            value = given.get(key, default)
            if value is MUST:
                raise JobError(f"{_full(table, key)}: is missing.")
            if type(value) is not kind:
                raise JobError(f"{_full(table, key)}={value!r}: must be a {_WORDS[kind]}.")
            values[_full(table, key)] = value
    return values


def must(values: Mapping[str, Any], key: str, pattern: str, allowed: str) -> None:
    """Checks that a whole value matches a pattern.

    Raises:
      JobError: saying what is allowed.
    """
    if not re.fullmatch(pattern, values[key]):
        raise JobError(f"{key}={values[key]!r}: {allowed}.")


def check_common(values: Mapping[str, Any]) -> None:
    """Checks what all job files have: name, owner, disk.mount and train.command.

    Raises:
      JobError: naming the key and what is allowed.
    """
    must(values, "name", NAME, NAME_WORDS)
    must(values, "owner", r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", "must be a label: like jane-doe")
    must(values, "disk.mount", r"/[^/].*[^/]", "must be a path from /, without / at its end")
    command = values["train.command"]
    if not command or not all(isinstance(word, str) for word in command):
        raise JobError("train.command: must be a list of texts, one a word of the command.")
    folders = [word.partition("=")[2] for word in command if word.startswith("--workdir=")]
    if len(folders) != 1 or not folders[0].startswith(values["disk.mount"] + "/"):
        raise JobError(
            f"train.command: needs --workdir=FOLDER once, below disk.mount"
            f" ({values['disk.mount']}), as the workers' own disks go with the machines."
        )


def _full(table, key):
    return f"{table}.{key}" if table else key


def _nearest(key, known):
    match = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; there is {', '.join(known)}."
