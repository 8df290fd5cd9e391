"""Torch's `.pth` files without torch, and without running what a file asks to run.

Such a file is a pickle with the tensors' bytes beside it, and a pickle can name any function and
have it called. Here only opcodes that `torch.save` needs are let through, and every name goes to
`_Unpickler.find_class`, which knows a dozen. Three rules keep that closed:

- No class, function, ndarray or dtype that others use is ever on the unpickler's stack, only plain
  values and stand-ins of this module, so that there is no method worth calling.
- A stand-in is a named tuple or has a `__setstate__`, so that the opcode BUILD, which otherwise
  sets attributes, sets none.
- Nothing is allocated by a number in the file before that was held against the file's own size.
"""

import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

from biggan_jax.config import ConfigError

# Torch's storage classes. "bf16" is no numpy type: its bits are the upper half of a float32.
_KINDS = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf16", "Long": "i8"}
_KINDS |= {"Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "b1"}
_CLASSES = {kind: f"{name}Storage" for name, kind in _KINDS.items()}
# A bool is read as a byte, since a damaged one may be neither 0 nor 1.
_STORED = {kind: np.dtype("<" + {"bf16": "u2", "b1": "u1"}.get(kind, kind)) for kind in _CLASSES}
# What picklers of protocols 2 to 5 write for plain values, and no more. Left out are those that
# reach copyreg's registry (EXT), and BYTEARRAY8, which clears memory before it looks for data.
_OPCODES = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT GLOBAL
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
    BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM
    SETITEMS EMPTY_SET ADDITEMS FROZENSET BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET BUILD
    STACK_GLOBAL REDUCE NEWOBJ BINPERSID
"""
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Tensors may share a storage, as tied weights do, yet a small file must not fill the memory.
_MOST_SHARING = 16
# What pickle, zipfile and numpy raise over bytes that make no sense. RuntimeError is an encrypted
# member, an unknown feature of zip and too deep a nesting; Warning is for processes of `-W error`.
_DAMAGE: tuple[type[Exception], ...] = (zipfile.BadZipFile, struct.error, RuntimeError, MemoryError)
_DAMAGE += (pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError)
_DAMAGE += (ArithmeticError, Warning)


class _UnfitError(Exception):
    """What is wrong with a file, to follow its path."""


class Opaque:
    """Stands for an object of torch that is nothing but its name here, such as an `nn.ReLU()`."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"Opaque({self.name!r})"


class _Global:
    """Stands for a name: of a storage class, by its kind, or of something to call."""

    __slots__ = ("kind", "run")

    def __init__(self, kind: str = "", run: Callable[..., Any] | None = None):
        self.kind, self.run = kind, run

    def __call__(self, *args: Any) -> Any:
        if self.run is None:
            raise _UnfitError("calls what is not to be called")
        return self.run(*args)

    def __setstate__(self, state: Any) -> None:
        raise _UnfitError("sets a state where none belongs")


class _Storage(NamedTuple):
    """Elements [start, start + numel) of what is stored under `key`."""

    key: str
    kind: str
    start: int
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def cut(self, raw: bytes) -> np.ndarray:
        """Returns a copy of the tensor's own out of all that its storage's key holds."""
        kind, stored = self.storage.kind, _STORED[self.storage.kind]
        if math.prod(self.size):
            start = (self.storage.start + self.offset) * stored.itemsize
            strides = [step * stored.itemsize for step in self.stride]
            view = np.ndarray(self.size, stored, raw, start, strides)
        else:
            view = np.empty(self.size, stored)
        if kind != "bf16":
            return view.astype(kind, order="C")
        bits = view.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)


class _ODict(dict):
    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass  # A state dict's `_metadata`, which are versions of torch's modules.


class _DType:
    __slots__ = ("code",)

    def __init__(self, code: Any, align: Any = False, copy: Any = True):
        if code not in {"b1", "i1", "u1"} and code not in {f"{k}{n}" for k in "iuf" for n in "248"}:
            raise _UnfitError("holds a numpy scalar that is not a number")
        self.code = code

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|", "="):
            raise _UnfitError("holds big-endian numbers, which are not read")


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
        raise _UnfitError("holds a numpy scalar that is not described as they are")
    (number,) = np.frombuffer(raw, f"<{dtype.code}")
    return number.item()


def _encode(text: Any, encoding: Any) -> bytes:
    # Protocol 2 has no bytes and writes them, a numpy scalar's too, as text to be encoded.
    if not isinstance(text, str) or encoding != "latin1":
        raise _UnfitError("holds bytes that are not described as they are")
    return text.encode("latin1")


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda pairs=(): _ODict((k, v) for k, v in pairs),
    ("torch", "Size"): lambda size: tuple(size),
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("builtins", "set"): lambda items=(): set(items),
    ("__builtin__", "set"): lambda items=(): set(items),
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


def _activation(name: str) -> type:
    # NEWOBJ wants a true class; each time a new one, that nobody else has.
    def new(cls: Any) -> Any:
        made = object.__new__(cls)
        made.name = name
        return made

    return type("_Activation", (Opaque,), {"__slots__": (), "__new__": new})


class _Unpickler(pickle.Unpickler):
    """One pickle, with every opcode, every name and every storage looked at."""

    def __init__(self, file: IO[bytes]):
        allowed, start = _OPCODES.split(), file.tell()
        for opcode, arg, place in pickletools.genops(file):
            if opcode.name not in allowed:
                raise _UnfitError(f"is refused: torch.save does not write {opcode.name}")
            # Memory is taken for as many memo places as the highest number says.
            if "BINPUT" in opcode.name and (arg or 0) > (place or 0):
                raise _UnfitError("is damaged: it counts its objects wrongly")
        length = file.tell() - start
        file.seek(start)
        super().__init__(io.BytesIO(file.read(length)), encoding="utf-8")
        self.tensors: list[_Tensor] = []
        self.storages: dict[str, tuple[int, str]] = {}  # Key -> elements, kind.

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _Global(run=_CALLS[module, name])
        if module == "torch" and name.removesuffix("Storage") in _KINDS and name not in _KINDS:
            return _Global(kind=_KINDS[name.removesuffix("Storage")])
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Global(run=self._tensor)
        if module == "torch.nn.modules.activation" and name.isidentifier() and name[0].isupper():
            return _activation(f"{module}.{name}")
        asked = f"{module}.{name}"[:100]
        raise _UnfitError(
            f"is refused: it asks to run {asked!r} and only tensors and plain values are read"
        )

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("module", type() as kind, _, _):  # The old format adds a class's source code.
                return kind
            case ("storage", _Global(kind=kind), str(key), _, int(numel), *views) if kind:
                pass
            case _:
                raise _UnfitError("holds a storage that is not described as storages are")
        if numel < 0 or self.storages.setdefault(key, (numel, kind)) != (numel, kind):
            raise _UnfitError(f"is damaged: it describes storage {key[:100]!r} in two ways")
        start, length = 0, numel
        if any(views):
            ((_, start, length),) = views
        if min(start, length) < 0 or start + length > numel:
            raise _UnfitError(f"is damaged: a view reaches beyond storage {key[:100]!r}")
        return _Storage(key, kind, start, length)

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or len(size) != len(stride):
            raise _UnfitError("holds a tensor that is not described as tensors are")
        if rest[2:] and rest[2]:
            raise _UnfitError("holds a tensor that is a conjugate or a negative of what is stored")
        if not all(type(i) is int and 0 <= i < 2**63 for i in (offset, *size, *stride)):
            raise _UnfitError("is damaged: a tensor has a negative or huge offset, size or stride")
        numel = math.prod(size)
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if numel else -1
        # More elements than stored would be one element repeated by a stride of 0, without end.
        if numel > storage.numel or offset + last + 1 > storage.numel:
            raise _UnfitError("is damaged: a tensor reaches beyond its storage")
        self.tensors.append(_Tensor(storage, offset, tuple(size), tuple(stride)))
        return self.tensors[-1]

    def nbytes(self, key: str) -> int:
        numel, kind = self.storages[key]
        return numel * _STORED[kind].itemsize

    def finish(self, value: Any, fetch: Callable[[str], bytes]) -> Any:
        """Cuts the tensors, one storage after the other, and returns `value` of plain things."""
        most = _MOST_SHARING * sum(map(self.nbytes, self.storages))
        if sum(math.prod(t.size) * _STORED[t.storage.kind].itemsize for t in self.tensors) > most:
            raise _UnfitError(f"holds tensors of over {_MOST_SHARING} times what is stored")
        users: dict[str, list[_Tensor]] = {}
        for tensor in self.tensors:
            users.setdefault(tensor.storage.key, []).append(tensor)
        done: dict[int, Any] = {}
        for key, tensors in users.items():
            raw = fetch(key)
            done.update((id(tensor), tensor.cut(raw)) for tensor in tensors)
        return _plain(value, done)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    # `done`, by id, keeps shared what is shared: without it a few nested pairs were endless work.
    made: Any
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, Opaque):
        made = done[id(value)] = Opaque(value.name)
    elif type(value) in (dict, _ODict):
        made = done[id(value)] = {}
        made.update((_plain(k, done), _plain(v, done)) for k, v in value.items())
    elif type(value) is list:
        made = done[id(value)] = []
        made.extend(_plain(v, done) for v in value)
    elif type(value) in (tuple, set, frozenset):
        made = done[id(value)] = type(value)([_plain(v, done) for v in value])
    else:
        raise _UnfitError("holds a class, a function or a storage where only values are read")
    return made


def _read_zip(file: IO[bytes], size: int) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(i.compress_type or i.compress_size != i.file_size for i in archive.infolist()):
            raise _UnfitError("is refused: it holds compressed members, which torch never writes")
        if sum(i.file_size for i in archive.infolist()) > size:  # Members that lie over another.
            raise _UnfitError("is damaged: its members claim more bytes than it has")
        tops = [n.removesuffix("/data.pkl") for n in members if n.endswith("/data.pkl")]
        if len(tops) != 1:
            raise _UnfitError("is a zip file, but not torch's: these have one member data.pkl")
        top = tops[0]
        if f"{top}/byteorder" in members and archive.read(f"{top}/byteorder") != b"little":
            raise _UnfitError("holds big-endian numbers, which are not read")
        unpickler = _Unpickler(io.BytesIO(archive.read(f"{top}/data.pkl")))
        value = unpickler.load()
        for key in unpickler.storages:
            info = members.get(f"{top}/data/{key}")
            if info is None or info.file_size != unpickler.nbytes(key):
                raise _UnfitError(f"is damaged: storage {key!r} is missing or of another size")
        return unpickler.finish(value, lambda key: archive.read(f"{top}/data/{key}"))


def _read_legacy(file: IO[bytes], size: int) -> Any:
    if _Unpickler(file).load() != _LEGACY_MAGIC or _Unpickler(file).load() != _LEGACY_PROTOCOL:
        raise _UnfitError("is not a torch file, or of an unknown version")
    if not _Unpickler(file).load()["little_endian"]:
        raise _UnfitError("holds big-endian numbers, which are not read")
    unpickler = _Unpickler(file)
    value = unpickler.load()
    places: dict[str, int] = {}
    for key in _Unpickler(file).load():
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != unpickler.storages[key][0]:
            raise _UnfitError(f"is damaged: storage {key!r} is of another size")
        places[key] = file.tell()
        if places[key] + unpickler.nbytes(key) > size:
            raise _UnfitError(f"is cut short: storage {key!r} is not all there")
        file.seek(unpickler.nbytes(key), os.SEEK_CUR)
    if places.keys() != unpickler.storages.keys():
        raise _UnfitError("is damaged: a storage is missing")

    def fetch(key: str) -> bytes:
        file.seek(places[key])
        return file.read(unpickler.nbytes(key))

    return unpickler.finish(value, fetch)


def read(path: str | os.PathLike[str]) -> Any:
    """Reads a file that `torch.save` wrote, of today's zip format or the one before torch 1.6.

    Args:
      path: the file.

    Returns:
      What was saved: dicts, lists, tuples, sets, plain values, and a numpy array of its own for
      each tensor. bfloat16 becomes float32, and an `nn.ReLU()` or the like becomes `Opaque`.

    Raises:
      ConfigError: the file cannot be read, is damaged, or asks for anything but these.
    """
    name = os.fspath(path)
    if not os.path.isfile(name):
        what = "is not a file" if os.path.exists(name) else "does not exist"
        raise ConfigError(f"{name!r} {what}.")
    try:
        with open(name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(262)
            file.seek(0)
            if not head:
                raise _UnfitError("is empty")
            if head.endswith(b"ustar"):
                raise _UnfitError("is in the tar format of torch before 0.1.10, which is not read")
            return (_read_zip if head.startswith(b"PK\x03\x04") else _read_legacy)(file, size)
    except _UnfitError as e:
        raise ConfigError(f"{name!r} {e}.") from None
    except OSError as e:
        raise ConfigError(f"{name!r} cannot be read: {e.strerror or e}.") from e
    except _DAMAGE as e:
        raise ConfigError(f"{name!r} is damaged or not a torch file ({type(e).__name__}).") from e


def _emit(value: Any, where: str, arrays: list[np.ndarray], ordered: bool = False) -> bytes:
    """Returns opcodes of protocol 2 that make `value`; torch's names are only text in them."""

    def join(values: Any, tail: bytes) -> bytes:
        return b"(" + b"".join(_emit(v, f"{where}{at}", arrays) for at, v in values) + tail

    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int) and value.bit_length() < 2000:
        data = pickle.encode_long(value)
        if len(data) <= 4:
            return struct.pack("<ci", b"J", value)
        return struct.pack("<cB", b"\x8a", len(data)) + data
    if isinstance(value, float):
        return struct.pack(">cd", b"G", value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogatepass")
        return struct.pack("<cI", b"X", len(data)) + data
    if isinstance(value, tuple | list):
        items = [(f"[{i}]", v) for i, v in enumerate(value)]
        return join(items, b"t") if isinstance(value, tuple) else b"]" + join(items, b"e")
    if isinstance(value, dict):
        items = [
            (f"[{k!r}]", v) for k, pair in zip(value, value.items(), strict=True) for v in pair
        ]
        return (b"ccollections\nOrderedDict\n)R" if ordered else b"}") + join(items, b"u")
    kind = f"{value.dtype} array" if isinstance(value, np.ndarray) else type(value).__name__
    if not isinstance(value, np.ndarray) or value.dtype.str[1:] not in _CLASSES:
        raise TypeError(f"{where} is of type {kind}, which is not written into torch files.")
    strides = tuple(math.prod(value.shape[i + 1 :]) for i in range(value.ndim))
    arrays.append(value)
    word = [_emit(v, "", []) for v in ("storage", str(len(arrays) - 1), "cpu", value.size)]
    word.insert(1, f"ctorch\n{_CLASSES[value.dtype.str[1:]]}\n".encode())
    view = [_emit(v, "", []) for v in (0, value.shape, strides, False)]
    call = b"ctorch._utils\n_rebuild_tensor_v2\n((" + b"".join(word) + b"tQ" + b"".join(view)
    return call + b"ccollections\nOrderedDict\n)RtR"


def write(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a file that `torch.load` and `read` load; the same value gives the same bytes.

    Args:
      path: the file, written whole or not at all.
      value: dicts, lists, tuples, str, int, float, bool, None and numpy arrays, nested as they may
        be. A dict of arrays alone is written as a state dict is, which is an OrderedDict.

    Raises:
      TypeError: naming a value that is none of these.
    """
    arrays: list[np.ndarray] = []
    is_state = isinstance(value, dict) and all(isinstance(v, np.ndarray) for v in value.values())
    pickled = b"\x80\x02" + _emit(value, "value", arrays, ordered=is_state) + b"."
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        with zipfile.ZipFile(temporary, "w") as archive:

            def add(name: str, data: Any) -> None:
                info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
                info.create_system = (
                    3  # The one thing that would tell the system it was written on.
                )
                info.file_size = len(data)  # For zipfile to know when it needs its 64-bit form.
                with archive.open(info, "w") as member:
                    member.write(data)

            add("data.pkl", pickled)
            add("byteorder", b"little")
            for i, array in enumerate(arrays):
                flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
                add(f"data/{i}", flat.view(np.uint8))
            add("version", b"3\n")
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
