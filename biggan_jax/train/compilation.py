"""The folder in which compiled programs outlive the process, so that a restart need not compile."""

import hashlib
import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from biggan_jax import files

NAME = ".compilation_cache"


def use_cache(setting: str, workdir: str) -> None:
    """Lets this process keep compiled programs and find those kept before.

    Args:
      setting: `config.compilation_cache`: "off", a folder, or "auto": what JAX has been told
        itself (`JAX_COMPILATION_CACHE_DIR`), else a folder beside the run folder, which its runs
        share.
      workdir: the run folder.

    Raises:
      ConfigError: if the folder cannot be written to.
    """
    jax.config.update("jax_enable_compilation_cache", setting != "off")
    if setting == "off":
        return
    folder = setting
    if setting == "auto":
        told = jax.config.values["jax_compilation_cache_dir"]
        if told and not _ours(told):
            return
        folder = os.path.join(os.path.dirname(os.path.abspath(workdir)), NAME, _machine())
    files.check_folder(folder, "compilation_cache")
    if folder != jax.config.values["jax_compilation_cache_dir"]:
        compilation_cache.reset_cache()  # JAX keeps to the first folder otherwise.
        jax.config.update("jax_compilation_cache_dir", folder)


def _ours(folder):
    return NAME in pathlib.Path(folder).parts


def _machine():
    """A name that two machines share only if one runs what the other compiled.

    JAX's own key tells accelerators apart, and CPUs by their kind alone: a program compiled for
    instructions that another host of the same disk lacks would end that host's process.
    """
    if jax.default_backend() != "cpu":
        return jax.default_backend()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
            lines = [line for line in f if line.startswith(("flags", "Features", "model name"))]
    except OSError:  # Another system than Linux.
        lines = []
    return "cpu-" + hashlib.sha256("".join(sorted(set(lines))).encode()).hexdigest()[:8]
