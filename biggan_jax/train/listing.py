"""What `biggan inspect RUN --checkpoints` lists."""

import os
from typing import Any

from biggan_jax.train import checkpoint, manifest, runs

_COLUMNS = ("step", "kimg", "written", "MiB", "made by", "on", "state")


def checkpoints(run: str, verify: bool = False) -> list[dict[str, Any]]:
    """Returns what each checkpoint of a run says of itself, ascending, then what does not count.

    Args:
      run: the run folder.
      verify: read every byte; else only the files' sizes are compared with the manifest.

    Returns:
      A dict each: name and state, and of those that count step, kimg, time (UTC), bytes, versions,
      topology, metrics (None where no manifest says) and reason. State is "good" (every byte is
      what was written; only with `verify`), "unverified" (nothing speaks against it, or it has no
      manifest, which is the reason then), "damaged" (the reason says why), "set aside" (found
      damaged before), "rolled back" (of before a rollback), "half-written" or "half-removed" (by
      a run going on, or one interrupted).

    Raises:
      ConfigError: if the folder is no run.
    """
    runs.read_config(run)
    folder = os.path.join(run, runs.CHECKPOINTS)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    places = [os.path.join(folder, n) for n in sorted((n for n in names if n.isdecimal()), key=int)]
    rows = [_row(place, verify) for place in places]
    # A run that goes on may have removed some meanwhile.
    rows = [row for row, place in zip(rows, places, strict=True) if os.path.isdir(place)]
    for name in sorted(names):
        if name.startswith(checkpoint.ASIDE):
            rows.append({"name": name, "state": "set aside"})
        elif name.startswith(checkpoint.ROLLED_BACK):
            rows.append({"name": name, "state": "rolled back"})
        elif match := checkpoint.REMAINS.fullmatch(name):
            state = "half-removed" if match[2] == "old" else "half-written"
            rows.append({"name": name, "state": state})
    return rows


def _row(place, verify):
    name = os.path.basename(place)
    row = {"name": name, "step": int(name), "state": "unverified", "reason": None}
    row |= dict.fromkeys(("kimg", "time", "bytes", "versions", "topology", "metrics"))
    try:
        content = checkpoint.find_manifest(place)
        if content is None:
            row["reason"] = checkpoint.NO_MANIFEST
            return row
        row |= {key: content[key] for key in ("time", "versions", "topology", "metrics")}
        row |= {"kimg": content["meta"].get("kimg"), "bytes": manifest.size(content)}
        manifest.check(place, content, hashes=verify)
        row["state"] = "good" if verify else "unverified"
    except manifest.Damaged as e:
        row |= {"state": "damaged", "reason": str(e)}
    return row


def text(rows: list[dict[str, Any]]) -> str:
    """Returns what `checkpoints` found, as a table for people."""
    if not rows:
        return "there is no checkpoint"
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row):
    versions, topology = row.get("versions") or {}, row.get("topology")
    on = "-"
    if topology:
        processes = topology["processes"]
        on = f"{topology['devices']} {topology['platform']}, {processes} process"
        on += "es" * (processes > 1)
    return (
        row["name"],
        "-" if row.get("kimg") is None else f"{row['kimg']:,.1f}",
        row.get("time") or "-",
        "-" if row.get("bytes") is None else f"{row['bytes'] / 2**20:,.1f}",
        ", ".join(f"{name} {versions[name]}" for name in ("biggan-jax", "jax") if name in versions)
        or "-",
        on,
        row["state"] + (f": {row['reason']}" if row.get("reason") else ""),
    )
