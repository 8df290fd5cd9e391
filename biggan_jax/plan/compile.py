"""The facts of a compiled training step: asked of a child process, kept in the user's cache."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from biggan_jax import config as config_lib
from biggan_jax import files
from biggan_jax.parallel import slices

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
Say = Callable[[str], None]
_SAY_EVERY = 10.0  # Seconds.


def check(where: slices.Slice) -> None:
    """Says whether this machine can compile for a slice.

    Raises:
      ConfigError: if it cannot.
    """
    if where.chip.platform == "gpu":
        raise config_lib.ConfigError(
            f"--slice={where.name}: a compile for GPUs needs XLA's GPU compiler and a target"
            " description, which come with a CUDA build of jaxlib on a machine with such a GPU;"
            " biggan plan estimates instead."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise config_lib.ConfigError(
            f"--slice={where.name}: the TPU compiler is missing: pip install 'biggan-jax[plan]'"
            " (it needs no TPU)."
        )


def facts(
    config: Mapping[str, Any],
    where: slices.Slice,
    quick: bool = False,
    say: Say = lambda line: None,
    hlo: str | None = None,
) -> dict[str, Any]:
    """Compiles the whole training step ahead of time, or finds it in the cache.

    Args:
      config: resolved for the slice's devices.
      where: a slice of TPUs.
      quick: compile at optimisation level O0: FLOPs, collectives and, within a few per cent, memory
        in a fraction of the time; bytes and cycles are not those of the program that will run.
      say: is told, some times a minute, what is going on.
      hlo: a file to write the compiled text to; then the cache is not asked.

    Returns:
      fits, compile_seconds, parameters {"G", "D"}, versions, cached, quick, and
      memory, bytes of one device: params, optimizer, ema, statistics (with u), batch, and, where it
        fits, padding (of layouts), temporaries, program, peak.
      If it fits: flops, bytes, roofline_seconds (None with loops), cycles {kind: cycles},
        collectives {kind: {"count", "bytes"}}, all of one device and one step, and unknown_loops.
      If not: need_bytes, limit_bytes (None where the compiler does not say) and compiler_says.

    Raises:
      ConfigError: if the slice cannot be compiled for.
    """
    check(where)
    path = _place(config, where, quick)
    if hlo is None and path.is_file():
        try:
            return json.loads(path.read_text(encoding="utf-8")) | {"cached": True}
        except ValueError:
            path.unlink()  # Cut short by something that is not us; made again.
    request = {
        "config": config_lib.to_json(config),
        "slice": where.name,
        "hlo": os.path.abspath(hlo) if hlo else None,
    }
    what = f"{config['name']} for {where.name}{' (quick)' if quick else ''}"
    answer = _ask(request, quick, what, say)
    if "error" in answer:
        raise config_lib.ConfigError(answer["error"])
    answer["quick"] = quick
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, json.dumps(answer))
    return answer | {"cached": False}


def cache_folder() -> pathlib.Path:
    """Returns where plans are kept: `$XDG_CACHE_HOME/biggan-jax/plan`, else in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "biggan-jax" / "plan"


def _place(config, where, quick):
    versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "flax", "optax")}
    key = {"config": config_lib.fingerprint(config), "slice": where.name, "quick": quick}
    text = json.dumps(key | versions | {"source": _source_hash()}, sort_keys=True)
    return cache_folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _source_hash():
    """Hashes the files that a step, or what is said of it, is made of."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("models/*.json")]):
        if path.relative_to(PACKAGE).parts[0] in ("config.py", "gan", "models", "parallel", "plan"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _ask(request, quick, what, say):
    """Runs the child and returns its answer."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as answer, tempfile.TemporaryFile("w+") as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "biggan_jax.plan.child"],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=noise,
            text=True,
            env=_environment(quick),
        )
        assert child.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # Gone already; what it said is below.
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
            say(f"compiling {what} ...")
            while True:
                try:
                    child.wait(_SAY_EVERY)
                    break
                except subprocess.TimeoutExpired:
                    say(f"compiling {what}: {time.monotonic() - begun:.0f} s")
        finally:
            child.kill()
            child.wait()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        for file in (answer, noise):
            file.seek(0)
        lines, said = answer.read().splitlines(), noise.read()
    if child.returncode or not lines:
        raise RuntimeError(f"compiling {what} ended with code {child.returncode}:\n{said[-4000:]}")
    say(f"compiled {what} in {time.monotonic() - begun:.0f} s")
    return json.loads(lines[-1])


def _environment(quick):
    # Not what would make it another program: other devices, other options, other processes.
    other = ("JAX_", "TPU_", "MEGASCALE_", "XLA_FLAGS", "LIBTPU_INIT_ARGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(other)}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",  # Ask no metadata server which TPU this is.
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # Beside a run, or another plan.
        "PYTHONPATH": os.pathsep.join(
            [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    if quick:
        env["JAX_OPTIMIZATION_LEVEL"] = "O0"
    return env
