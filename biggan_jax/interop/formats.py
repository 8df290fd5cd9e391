"""The foreign formats by name, and which of them a path holds.

Models of other training programs are read (`READABLE`) and written (`WRITABLE`). Programs that only
run a generator (`PROGRAMS`) are written for, and nothing is read back into a model.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from biggan_jax.config import ConfigError
from biggan_jax.interop.bundle import Bundle, is_bundle

# Each module has NAME, recognise(path), read(path, overrides) and, where it can be written,
# write(bundle, folder).
_MODULES = ("biggan_pytorch", "huggingface", "tfhub", "compare_gan")
BUNDLE = "bundle"
READABLE = ("biggan-pytorch", "huggingface", "tfhub", "compare-gan")
WRITABLE = ("biggan-pytorch", "huggingface")
# Each module has NAME, PACKAGES, USE, write(frozen, folder) and load(folder).
PROGRAMS = {
    "stablehlo": "stablehlo",
    "saved-model": "saved_model",
    "onnx": "onnx",
    "npz": "npz",
}


def _modules() -> dict[str, ModuleType]:
    found = [importlib.import_module(f"biggan_jax.interop.{name}") for name in _MODULES]
    return {module.NAME: module for module in found}


def read(path: str, name: str | None = None, overrides: Any = ()) -> Bundle:
    """Reads a foreign model.

    Args:
      path: a folder, or what the format calls its checkpoint.
      name: one of `READABLE`; None to recognise it.
      overrides: (dotted key, text) pairs for `config.model`, where the source does not say.

    Raises:
      ConfigError: if the format is not known or the model cannot be read.
    """
    modules = _modules()
    if name is not None:
        return modules[_known(name, READABLE)].read(path, overrides)
    if not os.path.exists(path) and not os.path.exists(path + ".index"):
        raise ConfigError(f"there is no {path!r}.")
    if is_bundle(path):
        raise ConfigError(f"{path!r} is a bundle already.")
    fitting = [module for module in modules.values() if module.recognise(path)]
    if len(fitting) != 1:
        raise ConfigError(
            f"{path!r} looks like {'more than one' if fitting else 'none'} of the known formats,"
            f" or is damaged; --format={' or '.join(READABLE)} says more."
        )
    return fitting[0].read(path, overrides)


def check_not_foreign(path: str) -> None:
    """Raises ConfigError, with what to do, where a path holds a model that is not imported yet."""
    for name, module in _modules().items():
        if module.recognise(path):
            raise ConfigError(
                f"{path!r} is a {name} model: turn it into a bundle by biggan import."
            )


def check_writable(name: str) -> None:
    """Raises ConfigError unless `name` is `BUNDLE`, one of `WRITABLE` or one of `PROGRAMS`."""
    _known(name, (BUNDLE, *WRITABLE, *PROGRAMS))


def program(name: str) -> ModuleType:
    """Returns the module of one of `PROGRAMS`, whose packages are there.

    Raises:
      ConfigError: naming the packages that are missing.
    """
    found = importlib.import_module(f"biggan_jax.interop.{PROGRAMS[name]}")
    missing = [package for package in found.PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--format={name}: needs {' and '.join(missing)}; install it by"
            f" pip install {' '.join(missing)}."
        )
    return found


def write(bundle: Bundle, folder: str, name: str) -> list[str]:
    """Writes a model in a foreign format.

    Args:
      bundle: the model.
      folder: to be made.
      name: one of `WRITABLE`.

    Returns:
      Sentences that the user should read.

    Raises:
      ConfigError: if that format cannot hold this model; nothing has been written then.
    """
    return _modules()[_known(name, WRITABLE)].write(bundle, folder)


def _known(name, allowed):
    if name not in allowed:
        raise ConfigError(f"--format={name}: must be one of {', '.join(allowed)}.")
    return name
