"""Imports point one way, and the package itself is light."""

import ast
import pathlib
import subprocess
import sys

import pytest

import biggan_jax

PACKAGE = pathlib.Path(biggan_jax.__file__).parent
FOR_ALL = ("config", "files", "host_tensorflow")
# What a room may import of ours besides itself and those.
ALLOWED = {
    "config": set(),
    "files": set(),
    "host_tensorflow": set(),
    "models": set(),
    "parallel": set(),
    "data": set(),
    "gan": {"models", "parallel"},
    "plan": {"gan", "models", "parallel"},
    "sample": {"gan", "models", "parallel"},
    "interop": {"sample", "gan", "models", "parallel"},
    "train": {"interop", "sample", "data", "gan", "models", "parallel"},
    "sampling": {"sample"},
    "exported": {"sampling", "interop", "sample", "parallel"},
    "api": {"exported", "sampling", "train", "interop", "sample", "gan", "models", "parallel"},
    "show": {"sampling", "sample"},
    "evaluate": {
        "api",
        "exported",
        "sampling",
        "train",
        "interop",
        "sample",
        "data",
        "gan",
        "models",
        "parallel",
    },
    "app": {"api", "evaluate", "train", "interop", "sample", "models", "parallel"},
    "arguments": set(),
    "cli": {
        "arguments",
        "app",
        "evaluate",
        "show",
        "api",
        "train",
        "interop",
        "sample",
        "data",
        "plan",
        "parallel",
    },
}
BARE = {"models", "gan", "parallel", "plan"}
BARE_PACKAGES = {"jax", "flax", "optax", "ml_collections", "numpy", "biggan_jax"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "biggan_jax" and here != "__init__":
            other = parts[1]
            assert other in {here, *FOR_ALL, "__version__"} | ALLOWED[here], name
        if here in BARE:
            assert parts[0] in BARE_PACKAGES | sys.stdlib_module_names, name


def test_every_room_is_known():
    assert {room(path) for path in FILES} == set(ALLOWED) | {"__init__"}


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, biggan_jax, biggan_jax.cli, biggan_jax.train.loop;"
        "heavy = {'tensorflow', 'tensorflow_datasets', 'clu', 'orbax', 'grain', 'sklearn'};"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
