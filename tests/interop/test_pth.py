import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from biggan_jax.config import ConfigError
from biggan_jax.interop import pth

GLOBALS = {
    "ordered": b"ccollections\nOrderedDict\n",
    "rebuild": b"ctorch._utils\n_rebuild_tensor_v2\n",
}
PROTO = b"\x80\x02"


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def ints(*values):
    return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def tensor(offset=0, size=(2,), stride=(1,), numel=2, key="0", kind="Float", view=b""):
    """The opcodes of a tensor; `view` is opcodes too."""
    pid = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu")
    pid += ints(numel)[1:-1] + view + b"tQ"
    call = GLOBALS["rebuild"] + b"(" + pid + ints(offset)[1:-1] + ints(*size) + ints(*stride)
    return call + b"\x89" + GLOBALS["ordered"] + b")RtR"


def zipped(path, pickled, compression=zipfile.ZIP_STORED, byteorder="little", **storages):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        archive.writestr("model/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key.strip('_')}", data)
    return path


def legacy(path, pickled, *storages, little_endian=True):
    """Each storage is its key, the elements that it claims and its bytes."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": little_endian}]
    data = b"".join(pickle.dumps(p, 2) for p in parts) + pickled
    data += pickle.dumps([key for key, _, _ in storages], 2)
    data += b"".join(struct.pack("<q", n) + raw for _, n, raw in storages)
    path.write_bytes(data)
    return path


def refuses(path, match="."):
    with pytest.raises(ConfigError, match=match) as e:
        pth.read(path)
    message = str(e.value)
    assert message.startswith(repr(str(path))) and message.endswith(".")
    assert "\n" not in message and ". " not in message
    return message


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for k in a:
            assert_same(a[k], b[k])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]


def arrays():
    rng = np.random.default_rng(0)
    state = {f"of.{d}": rng.integers(0, 2, (2, 3)).astype(d) for d in DTYPES}
    state["scalar"] = np.array(-2.5, np.float32)
    state["empty"] = np.zeros((0, 3), np.float32)
    state["fortran"] = np.asfortranarray(rng.normal(size=(3, 4)))
    state["sliced"] = rng.normal(size=(6, 4)).astype(np.float32)[::2, 1:3]
    state["big-endian"] = np.arange(4, dtype=">f4")
    return state


def nested():
    return {
        "state": arrays(),
        "list": [1, -1, 2**31, -(2**70), 0.5, float("inf"), True, False, None, "é\n", ""],
        "tuples": [(), (1,), (1, 2), (1, (2, [3])), {}],
        3: {(1, "a"): np.arange(3)},
    }


def native(value):
    """`value` as it is read: in this machine's byte order."""
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("="))
    if isinstance(value, dict):
        return {k: native(v) for k, v in value.items()}
    return value


@pytest.mark.parametrize("make", [arrays, nested, dict, lambda: 7, lambda: np.array(True)])
def test_what_is_written_is_read(tmp_path, make):
    path = tmp_path / "a.pth"
    pth.write(path, make())
    first = path.read_bytes()
    assert_same(pth.read(path), native(make()))
    pth.write(str(path), make())
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["a.pth"]


def test_arrays_read_are_ones_own(tmp_path):
    pth.write(tmp_path / "a.pth", arrays())
    for array in pth.read(tmp_path / "a.pth").values():
        assert array.flags.writeable and array.flags.c_contiguous
        array[...] = 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"a": [0, b"x"]}, r"value\['a'\]\[1\] is of type bytes"),
        ({"a": np.zeros(2, complex)}, r"value\['a'\] is of type complex128 array"),
        (np.array(["x"]), "value is of type <U1 array"),
        ([{1}], r"value\[0\] is of type set"),
        (np.float32(1), "float32"),
        (1 << 3000, "int"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, value, match):
    with pytest.raises(TypeError, match=match):
        pth.write(tmp_path / "a.pth", value)
    assert not os.listdir(tmp_path)


def test_no_half_written_file(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(OSError):
        pth.write(tmp_path / "folder.pth", {})
    assert os.listdir(tmp_path) == ["folder.pth"]


def test_plain_values_of_other_pickles(tmp_path):
    value = [{1, 2}, frozenset([3]), b"ab\xff", 2**300, -1.5, collections.OrderedDict(a=1)]
    value += [np.float64(1.5), np.int64(-3), np.bool_(True), np.float16(2), value[0]]
    expected = [
        {1, 2},
        frozenset([3]),
        b"ab\xff",
        2**300,
        -1.5,
        {"a": 1},
        1.5,
        -3,
        True,
        2.0,
        {1, 2},
    ]
    for protocol in range(2, 6):
        v = [x for x in value if not (protocol < 4 and isinstance(x, frozenset))]
        e = [x for x in expected if not (protocol < 4 and isinstance(x, frozenset))]
        read = pth.read(zipped(tmp_path / "a", pickle.dumps(v, protocol)))
        assert_same(read, e)
        assert read[0] is read[-1]


# --- Files that do harm.

MARK = "ran.txt"


class Asks:
    def __init__(self, call, *args):
        self.made = call, args

    def __reduce__(self):
        return self.made


def glob(module, name):
    return f"c{module}\n{name}\n".encode()


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


TOUCH = f"touch {MARK}"
HARM = {
    "os.system": pickle.dumps(Asks(os.system, TOUCH), 2),
    "protocol 4": pickle.dumps(Asks(os.system, TOUCH), 4),
    "protocol 0": pickle.dumps(Asks(os.system, TOUCH), 0),
    "nested": pickle.dumps({"a": [1, (Asks(os.system, TOUCH),)]}, 2),
    "a key": pickle.dumps({Asks(os.system, TOUCH): 1}, 2),
    "eval": pickle.dumps(Asks(eval, f"open({MARK!r}, 'w')"), 2),
    "getattr": pickle.dumps(Asks(getattr, {}, "clear"), 2),
    "hub": PROTO + glob("torch.hub", "load") + text("a") + b"\x85R.",
    "load": PROTO + glob("torch", "load") + text("a") + b"\x85R.",
    "dotted": b"\x80\x04" + stack_global("collections", "OrderedDict.fromkeys") + b")R.",
    "dotted module": b"\x80\x04" + stack_global("torch", "_utils._rebuild_tensor_v2") + b")R.",
    "dotted activation": b"\x80\x04"
    + stack_global("torch.nn.modules.activation", "torch.hub.load")
    + b")R.",
    "activation's function": PROTO + glob("torch.nn.modules.activation", "warnings") + b".",
    "ours": PROTO + glob("biggan_jax.interop.pth", "write") + text(MARK) + text("") + b"\x86R.",
    "os by __builtin__": PROTO + glob("__builtin__", "__import__") + text("os") + b"\x85R.",
    "numpy": PROTO + glob("numpy", "load") + text("x") + b"\x85R.",
    "reconstruct": pickle.dumps(np.arange(3), 2),
    "untyped": PROTO + glob("torch.storage", "UntypedStorage") + b".",
    "half a name": PROTO + glob("torch", "Float") + b".",
    "pid of a harm": PROTO + glob("posix", "system") + text(TOUCH) + b"\x85RQ.",
    "EXT1": PROTO + b"\x82\x01.",
    "EXT2": PROTO + b"\x83\x01\x00.",
    "EXT4": PROTO + b"\x84\x01\x00\x00\x00.",
    "INST": b"(" + text(TOUCH) + b"iposix\nsystem\n.",
    "OBJ": PROTO + b"(" + glob("posix", "system") + text(TOUCH) + b"o.",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"a.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("what", HARM)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_harm_is_refused(tmp_path, monkeypatch, what, old):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("copyreg._inverted_registry", {1: ("posix", "system")})
    message = refuses((legacy if old else zipped)(tmp_path / "a.pth", HARM[what]), " is refused: ")
    assert "torch.save does not write" in message or "it asks to run" in message
    assert os.listdir(tmp_path) == ["a.pth"]


def test_the_sentence_of_a_refusal(tmp_path):
    path = zipped(tmp_path / "a.pth", PROTO + glob("os", "system") + text("true") + b"\x85R.")
    said = "it asks to run 'os.system' and only tensors and plain values are read."
    assert refuses(path) == f"{str(path)!r} is refused: {said}"


STATE = b"N}(" + text("run") + b"N" + text("__call__") + b"Nu\x86"
RELU = glob("torch.nn.modules.activation", "ReLU")
DTYPE = glob("numpy", "dtype") + text("f4") + b"\x85R"
# Names that are known, used as they are not meant to be.
TRICKS = {
    "BUILD on a callable": GLOBALS["ordered"] + STATE + b"b.",
    "BUILD with a dict": GLOBALS["rebuild"] + b"}" + text("__code__") + b"Nsb.",
    "BUILD on a storage class": glob("torch", "FloatStorage") + STATE + b"b.",
    "BUILD on an activation's class": RELU + STATE + b"b.",
    "BUILD on a tensor": tensor() + STATE + b"b.",
    "BUILD on a list": b"]" + STATE + b"b.",
    "BUILD on a dict's class": b"}N}" + text("__class__") + GLOBALS["ordered"] + b"s\x86b.",
    "BUILD a dtype with nothing": DTYPE + b")b.",
    "BUILD a dtype big-endian": DTYPE + b"(J\3\0\0\0" + text(">") + b"tb.",
    "NEWOBJ of a callable": GLOBALS["ordered"] + b")\x81.",
    "NEWOBJ of a dict": b"})\x81.",
    "NEWOBJ of an activation with something": RELU + b"N\x85\x81.",
    "REDUCE of a dict": b"})R.",
    "REDUCE of a storage class": glob("torch", "FloatStorage") + b")R.",
    "REDUCE of an activation with something": RELU + b"N\x85R.",
    "OrderedDict of a number": GLOBALS["ordered"] + b"N\x85R.",
    "OrderedDict of two": GLOBALS["ordered"] + b"]]\x86R.",
    "OrderedDict of text": GLOBALS["ordered"] + text("abc") + b"\x85R.",
    "OrderedDict of callables": GLOBALS["ordered"] + GLOBALS["rebuild"] + b"\x85R.",
    "set of lists": glob("builtins", "set") + b"](]]e\x85R.",
    "Size of a number": glob("torch", "Size") + b"K\1\x85R.",
    "encode with a codec": glob("_codecs", "encode") + text("aa") + text("hex") + b"\x86R.",
    "dtype of an object": glob("numpy", "dtype") + text("O") + b"\x85R.",
    "dtype of a list": glob("numpy", "dtype") + b"]\x85R.",
    "scalar of a dtype alone": glob("numpy.core.multiarray", "scalar") + DTYPE + b"\x85R.",
    "scalar of other bytes": glob("numpy.core.multiarray", "scalar") + DTYPE + b"C\1a\x86R.",
    "scalar of text": glob("numpy.core.multiarray", "scalar") + text("f4") + b"C\4aaaa\x86R.",
    "a class": GLOBALS["ordered"] + b".",
    "a class inside": b"]" + RELU + b"a.",
    "a storage": tensor()[len(GLOBALS["rebuild"]) + 1 :].split(b"Q")[0] + b"Q.",
    "a dtype": DTYPE + b".",
    "a tensor as key": b"}" + tensor() + b"Ns.",
    "a tensor in a tensor": GLOBALS["rebuild"] + b"(" + tensor() + ints(0)[1:-1] + b"))\x89NtR.",
    "a tensor of nothing": GLOBALS["rebuild"] + b")R.",
    "append to a tensor": tensor() + b"Na.",
    "set an item of a tensor": tensor() + b"NNs.",
    "a persistent id of text": text("storage") + b"Q.",
    "a persistent id of a number": b"K\1Q.",
    "a persistent id of less": text("storage") + b"\x85Q.",
    "a module of no class": b"(" + text("module") + b"NNNtQ.",
    "memo bomb": b"Nr\xff\xff\xff\x7f.",
    "long bomb": b"\x8b\xff\xff\xff\x7f.",
    "bytes bomb": b"\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "bytearray bomb": b"\x96" + struct.pack("<Q", 1 << 40) + b".",
    "frame bomb": b"\x95" + struct.pack("<Q", 1 << 62) + b".",
    "deep list": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuple": b"N" + b"\x85" * 100_000 + b".",
    "nothing": b".",
    "no end": b"N",
    "marks": b"(((((.",
    "unknown memo": b"h\7.",
    "bad text": b"X\1\0\0\0\xff.",
    "protocol 9": b"\x80\x09N.",
}


@pytest.mark.parametrize("what", TRICKS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_tricks_end_in_a_sentence(tmp_path, monkeypatch, what, old):
    before = dict(pth._CALLS), {k: dict(vars(v)) for k, v in vars(pth).items() if type(v) is type}
    if old:
        path = legacy(tmp_path / "a.pth", PROTO + TRICKS[what], ("0", 2, bytes(8)))
    else:
        path = zipped(tmp_path / "a.pth", PROTO + TRICKS[what], _0=bytes(8))
    refuses(path)
    after = dict(pth._CALLS), {k: dict(vars(v)) for k, v in vars(pth).items() if type(v) is type}
    assert before == after


def test_states_that_are_ignored(tmp_path):
    data = PROTO + b"](" + GLOBALS["ordered"] + b")R" + STATE + b"b"
    data += RELU + b")\x81" + STATE + b"be."
    ordered, relu = pth.read(zipped(tmp_path / "a.pth", data))
    assert ordered == {} and type(ordered) is dict
    assert relu.name == "torch.nn.modules.activation.ReLU" and type(relu) is pth.Opaque
    assert repr(relu) == "Opaque('torch.nn.modules.activation.ReLU')"


def test_pairs_of_pairs_are_no_endless_work(tmp_path):
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    value = pth.read(zipped(tmp_path / "a.pth", PROTO + b"]" + doubled + b"."))
    assert value[0] is value[1] and value[0][0] is value[0][1]


def test_a_list_within_itself(tmp_path):
    value = pth.read(zipped(tmp_path / "a.pth", PROTO + b"]q\0h\0a."))
    assert value[0] is value


# --- Tensors.


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "view",
    [
        dict(offset=1),
        dict(offset=-1),
        dict(offset=3, size=(0,)),
        dict(size=(3,)),
        dict(size=(-1,)),
        dict(size=(-1, -2), stride=(1, 1)),
        dict(stride=(2,)),
        dict(stride=(-1,), offset=1),
        dict(stride=()),
        dict(size=(2, 2), stride=(0, 1)),
        dict(size=(2**31 - 1,), stride=(0,)),
        dict(size=(2**31 - 1,) * 40, stride=(0,) * 40),
        dict(numel=3),
        dict(numel=1),
        dict(numel=-2),
        dict(kind="Double"),
        dict(key="1"),
        dict(key="../0"),
        dict(view=b"(" + text("v") + ints(1, 2)[1:-1] + b"t"),
        dict(view=b"(" + text("v") + ints(-1, 2)[1:-1] + b"t"),
        dict(view=b"(" + text("v") + ints(1, 1)[1:-1] + b"t"),
        dict(view=b"(" + text("v") + b"t"),
        dict(view=b"N" + text("v")),
    ],
    ids=str,
)
def test_views_beyond_their_storage(tmp_path, view, old):
    if old:
        refuses(legacy(tmp_path / "a.pth", PROTO + tensor(**view) + b".", ("0", 2, bytes(8))))
    else:
        refuses(zipped(tmp_path / "a.pth", PROTO + tensor(**view) + b".", _0=bytes(8)))


def test_views_within_their_storage(tmp_path):
    view = b"(" + text("v") + ints(1, 3)[1:-1] + b"t"
    parts = [
        tensor(numel=4, size=(), stride=(), offset=3),
        tensor(numel=4, size=(2,), offset=1, stride=(2,)),
        tensor(numel=4, size=(2, 2), stride=(1, 2)),
        tensor(numel=4, size=(2,), offset=1, view=view),
        tensor(numel=4, size=(0, 5), offset=4, stride=(5, 1)),
        tensor(numel=4, size=(1, 2), stride=(2**31 - 1, 1)),
        tensor(numel=4, size=(1,), stride=(1,), view=b"N"),
    ]
    data = PROTO + b"](" + b"".join(parts) + b"e."
    raw = np.arange(4, dtype="<f4").tobytes()
    expected = [3, [1, 3], [[0, 2], [1, 3]], [2, 3], np.zeros((0, 5)), [[0, 1]], [0]]
    for path in (zipped(tmp_path / "a", data, _0=raw), legacy(tmp_path / "b", data, ("0", 4, raw))):
        assert_same(pth.read(path), [np.array(e, np.float32) for e in expected])


def test_bfloat16_is_widened_and_bools_are_bools(tmp_path):
    raw = np.array([0x3F80, 0xC020], "<u2").tobytes()
    data = PROTO + b"](" + tensor(kind="BFloat16")
    data += tensor(kind="BFloat16", size=(), stride=(), offset=1) + tensor(kind="Bool", key="1")
    value = pth.read(zipped(tmp_path / "a", data + b"e.", _0=raw, _1=b"\x00\x07"))
    expected = [
        np.array([1, -2.5], np.float32),
        np.array(-2.5, np.float32),
        np.array([False, True]),
    ]
    assert_same(value, expected)
    assert value[2].tobytes() == b"\0\1"


def test_a_small_file_fills_no_memory(tmp_path):
    many = b"](" + b"".join(tensor() for _ in range(17)) + b"e."
    refuses(zipped(tmp_path / "a", PROTO + many, _0=bytes(8)), "16 times")
    # Two entries of the zip's table for the same bytes.
    path = zipped(tmp_path / "b", PROTO + tensor() + b".", _0=bytes(8000), _1=bytes(8000))
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"model/data/{i}").header_offset for i in "01")
    data = path.read_bytes()
    start = data.rindex(b"PK\1\2")
    assert data[start + 42 : start + 46] == struct.pack("<I", second)
    table = data.index(b"PK\1\2")
    cut = data[:second] + data[table:start] + data[start : start + 42] + struct.pack("<I", first)
    cut += data[start + 46 : -6] + struct.pack("<IH", second, 0)
    path.write_bytes(cut)
    refuses(path, "more bytes than it has")


# --- Files that are not what they should be.


def test_files_that_are_no_torch_files(tmp_path):
    path = tmp_path / "a.pth"
    refuses(path, "does not exist")
    refuses(tmp_path, "is not a file")
    for data in (
        b"\n",
        b"<html>",
        b"PK\x03\x04",
        os.urandom(10),
        pickle.dumps({"a": 1}),
        bytes(600),
    ):
        path.write_bytes(data)
        refuses(path)
    path.write_bytes(b"")
    refuses(path, "is empty")
    path.write_bytes(bytes(257) + b"ustar" + bytes(250))
    refuses(path, "tar format of torch before 0.1.10")


def test_zips_that_are_no_torch_files(tmp_path):
    path = tmp_path / "a.pth"
    refuses(zipped(path, PROTO + b"N.", zipfile.ZIP_DEFLATED), "compressed members")
    refuses(zipped(path, PROTO + b"N.", byteorder="big"), "big-endian")
    refuses(legacy(path, PROTO + b"N.", little_endian=False), "big-endian")
    refuses(zipped(path, PROTO + tensor() + b"."), "storage '0' is missing or of another size")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/other.pkl", b"")
    refuses(path, "data.pkl")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", PROTO + b"N.")
    assert pth.read(path) is None
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", PROTO + b"N.")
    refuses(path, "data.pkl")


def test_legacy_files_that_are_cut_or_wrong(tmp_path):
    path, data = tmp_path / "a.pth", PROTO + tensor() + b"."
    refuses(legacy(path, data), "storage is missing")
    refuses(legacy(path, data, ("0", 3, bytes(12))), "of another size")
    refuses(legacy(path, data, ("0", -1, bytes(12))), "of another size")
    refuses(legacy(path, data, ("0", 2, bytes(7))), "is cut short")
    refuses(legacy(path, data, ("1", 2, bytes(8))))
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1002, 2))
    refuses(path, "unknown version")


def small_files(folder):
    pth.write(folder / "zip", {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(1)})
    data = PROTO + b"}(" + text("a") + tensor() + text("b") + tensor(kind="Long", key="1") + b"u."
    legacy(folder / "legacy", data, ("0", 2, bytes(8)), ("1", 2, bytes(16)))
    return {name: (folder / name).read_bytes() for name in ("zip", "legacy")}


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_truncation_is_a_sentence(tmp_path, form):
    whole = small_files(tmp_path)[form]
    assert pth.read(tmp_path / form)
    for length in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:length])
        refuses(tmp_path / "cut")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_flipped_bits_are_a_sentence_or_a_value(tmp_path, form):
    whole = small_files(tmp_path)[form]
    rng, read = np.random.default_rng(0), 0
    for _ in range(1000):
        data = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            data[place] ^= rng.integers(1, 256)
        (tmp_path / "flipped").write_bytes(data)
        try:
            pth.read(tmp_path / "flipped")
            read += 1
        except ConfigError as e:
            assert str(e).count("\n") == 0
    assert 0 < read < 900


# --- Torch itself.


def torch_values(torch):
    g = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=g)
    dtypes = ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"]
    state = {
        d: torch.randint(0, 2, (2, 3), generator=g).to(getattr(torch, d))
        for d in [*dtypes, "uint8", "bool"]
    }
    state |= {"0-d": torch.tensor(-2.5), "0-d bf16": torch.tensor(-2.5).bfloat16()}
    state |= {"empty": torch.zeros(0, 3), "transposed": base.t(), "sliced": base[1::2, 2:5]}
    state |= {"shared": base, "row": base[2], "tied": base, "flat": base.view(-1)[5:9]}
    state |= {"parameter": torch.nn.Parameter(base[:2].clone())}
    return state


def as_numpy(value):
    if isinstance(value, dict):
        return {k: as_numpy(v) for k, v in value.items()}
    if str(value.dtype) == "torch.bfloat16":
        value = value.float()
    return value.detach().numpy()


@pytest.mark.interop
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read(tmp_path, new):
    torch = pytest.importorskip("torch")
    state = collections.OrderedDict(torch_values(torch))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.PReLU())
    config = {
        "G_activation": torch.nn.ReLU(inplace=False),
        "activations": [torch.nn.PReLU(), torch.nn.Softmax(dim=1), torch.nn.LeakyReLU(0.2)],
        "size": torch.Size([2, 3]),
        "set": {"a"},
        "none": None,
        "big": 2**40,
        "lr": np.float64(2e-4),
        "step": np.int64(3),
        "flag": np.bool_(True),
        "nested": {"tuple": (1, [2.5, "x"])},
    }
    saved = {"state": state, "model": model.state_dict(), "config": config}
    path = tmp_path / "a.pth"
    for protocol in (2, 4) if new else (2,):
        torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        read = pth.read(path)
        assert_same(read["state"], as_numpy(state))
        assert_same(read["model"], as_numpy(dict(model.state_dict())))
        got = read["config"]
        assert got.pop("G_activation").name == "torch.nn.modules.activation.ReLU"
        names = [a.name.rpartition(".")[2] for a in got.pop("activations")]
        assert names == ["PReLU", "Softmax", "LeakyReLU"]
        plain = dict(size=(2, 3), set={"a"}, none=None, big=2**40, lr=2e-4, step=3, flag=True)
        assert_same(got, plain | {"nested": {"tuple": (1, [2.5, "x"])}})
        assert all(array.base is None for array in read["model"].values())


@pytest.mark.interop
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_beside_tensors_is_refused(tmp_path, new):
    torch = pytest.importorskip("torch")
    values = [torch.nn.Linear(2, 2), torch.zeros(2, dtype=torch.complex64), torch.float32]
    values += [torch.zeros(2, 2).to_sparse(), torch.zeros(1).expand(5), torch.device("cpu")]
    for value in values:
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        refuses(tmp_path / "a.pth")


@pytest.mark.interop
@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("mmap", [True, False])
def test_torch_loads_what_is_written(tmp_path, weights_only, mmap):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    pth.write(path, arrays())
    state = torch.load(path, weights_only=weights_only, mmap=mmap)
    assert type(state) is collections.OrderedDict
    assert_same(as_numpy(dict(state)), native(arrays()))
    pth.write(path, nested())
    value = torch.load(path, weights_only=weights_only, mmap=mmap)
    assert type(value) is type(value["state"]) is dict
    assert_same(as_numpy(value.pop("state")), native(arrays()))
    assert_same(value[3].pop((1, "a")).numpy(), np.arange(3))
    expected = nested()
    assert value == {"list": expected["list"], "tuples": expected["tuples"], 3: {}}


@pytest.mark.interop
def test_torch_loads_into_a_module_and_saves_again(tmp_path):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    state = {"weight": rng.normal(size=(4, 3)).astype(np.float32), "bias": np.ones(4, np.float32)}
    pth.write(tmp_path / "a.pth", state)
    layer = torch.nn.Linear(3, 4)
    layer.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    (tmp_path / "b.pth").write_bytes(buffer.getvalue())
    assert_same(pth.read(tmp_path / "b.pth"), state)
