"""TensorFlow's files: the tensors of a checkpoint and the constants of a saved graph.

TensorFlow reads them; no graph is made or run.
"""

import contextlib
import glob
import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError

_LATEST = re.compile(r'^model_checkpoint_path:\s*"([^"]*)"', re.MULTILINE)
_STEP = re.compile(r"-(\d+)\.index$")
_DEPTH = 8  # Nodes between a constant and what is asked for; the known modules have one or two.


def find_checkpoint(path: str) -> str | None:
    """Returns the prefix of the checkpoint that a path means, None where there is none.

    Args:
      path: a prefix, as in "model.ckpt-250000"; its ".index" file; a folder of checkpoints, of
        which the one named in the file `checkpoint` is taken, else that of the highest step; or
        the folder of a saved model.
    """
    prefix = path.removesuffix(".index")
    if os.path.isfile(f"{prefix}.index"):
        return prefix
    with contextlib.suppress(OSError, UnicodeDecodeError):
        with open(os.path.join(path, "checkpoint"), encoding="utf-8") as f:
            named = _LATEST.search(f.read())
        # Only the last part of the name: folders are moved.
        prefix = os.path.join(path, os.path.basename(named[1])) if named else ""
        if os.path.isfile(f"{prefix}.index"):
            return prefix
    steps = {name: _STEP.search(name) for name in glob.glob(f"{glob.escape(path)}/*.index")}
    if steps:
        highest = max(steps, key=lambda name: (int(m[1]) if (m := steps[name]) else -1, name))
        return highest.removesuffix(".index")
    prefix = os.path.join(path, "variables", "variables")
    return prefix if os.path.isfile(f"{prefix}.index") else None


def checkpoint_files(prefix: str) -> list[str]:
    """Returns the paths of a checkpoint's index and data files."""
    return [f"{prefix}.index", *sorted(glob.glob(f"{glob.escape(prefix)}.data-*"))]


class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint by name; each is read when it is asked for.

    Attributes:
      prefix: of its files.
      scope: what stands before every name in the file and not here, "" or ending in "/". Names
        outside the scope are left out.
      shapes: of the tensors, by name.
    """

    def __init__(self, prefix: str, scope: str = ""):
        """Opens a checkpoint.

        Raises:
          ConfigError: if its index cannot be read.
        """
        self.prefix, self.scope = prefix, scope
        with _speaking_of(f"{prefix}.index"):
            self._reader = host_tensorflow.load().train.load_checkpoint(prefix)
            shapes = self._reader.get_variable_to_shape_map()
        self.shapes = {
            name[len(scope) :]: tuple(shape)
            for name, shape in sorted(shapes.items())
            if name.startswith(scope)
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's own would read the tensor.

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        with _speaking_of(self.prefix):
            return np.asarray(self._reader.get_tensor(self.scope + name))

    def shape_of(self, name: str, rank: int) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it.

        Raises:
          ConfigError: if it is missing or has not `rank` axes.
        """
        if name not in self.shapes:
            raise ConfigError(f"{self.prefix}: the tensor {name!r} is missing.")
        shape = self.shapes[name]
        if len(shape) != rank or 0 in shape:
            raise ConfigError(
                f"{self.prefix}: {name!r} is of shape {list(shape)} and must have {rank} axes, none"
                " of them empty."
            )
        return shape

    def scope_of(self, part: str) -> str | None:
        """Returns what stands before `part` in the first name that holds it, None if none does."""
        return next((name.partition(part)[0] for name in self.shapes if part in name), None)

    def replaced(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns the same with these tensors in place of the file's, or beside them."""
        return ChainMap(dict(tensors), self)  # type: ignore[arg-type]  # It only reads them.


def attention_sizes(
    where: str, channels: int, widths: Mapping[int, int], preferred: int
) -> list[int]:
    """Returns after which sizes an attention module of so many channels can stand, best first.

    Args:
      where: the file, for the message.
      channels: that the module takes.
      widths: {size: channels of the blocks' output there}.
      preferred: the size to put first.

    Raises:
      ConfigError: if no size has so many channels.
    """
    sizes = [size for size, width in widths.items() if width == channels]
    if not sizes:
        raise ConfigError(
            f"{where}: its attention module takes {channels} channels and must take those of a"
            f" block, {', '.join(f'{width} at {size} px' for size, width in widths.items())}."
        )
    return sorted(sizes, key=lambda size: size != preferred)


def constants(path: str, pattern: str) -> list[dict[str, np.ndarray]]:
    """Reads the constants of a saved model's graphs, one dict a graph.

    Args:
      path: of `saved_model.pb`.
      pattern: a regular expression; only nodes whose whole name fits are looked at.

    Returns:
      For each graph `{node name: value}` of those nodes whose value follows from constants: a
      `Const`, or a `Pack` or `Identity` of such.

    Raises:
      ConfigError: if the file cannot be read.
    """
    make_array = host_tensorflow.load().make_ndarray
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        with open(path, "rb") as f:
            saved.ParseFromString(f.read())
        graphs = []
        for meta in saved.meta_graphs:
            nodes = {node.name: node for node in meta.graph_def.node}
            names = [name for name in nodes if re.fullmatch(pattern, name)]
            values = {name: _value(name, nodes, make_array, _DEPTH) for name in names}
            graphs.append({name: v for name, v in values.items() if v is not None})
    except OSError as e:
        raise ConfigError(f"{path!r} cannot be read: {e.strerror or e}.") from e
    except (DecodeError, ValueError, TypeError, IndexError) as e:
        raise ConfigError(f"{path!r} is damaged or not a saved model ({type(e).__name__}).") from e
    return graphs


def _value(name: str, nodes: Mapping[str, Any], make_array: Any, depth: int) -> np.ndarray | None:
    node = nodes.get(name.removesuffix(":0"))
    if node is None or not depth:
        return None
    if node.op == "Const":
        return make_array(node.attr["value"].tensor)
    inputs = [i for i in node.input if not i.startswith("^")]  # Those only order the work.
    if node.op not in ("Pack", "Identity") or not inputs:
        return None
    values = []
    for i in inputs:
        value = _value(i, nodes, make_array, depth - 1)
        if value is None:
            return None
        values.append(value)
    return np.stack(values, axis=node.attr["axis"].i) if node.op == "Pack" else values[0]


@contextlib.contextmanager
def _speaking_of(file):
    """Turns what TensorFlow raises over a file into one sentence."""
    tf = host_tensorflow.load()
    try:
        yield
    except (tf.errors.OpError, LookupError, ValueError, RuntimeError) as e:
        reason = " ".join((getattr(e, "message", None) or str(e)).split())[:200]
        raise ConfigError(f"{file!r} is damaged or not a checkpoint: {reason}") from e
