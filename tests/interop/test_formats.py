"""`biggan import` and `biggan export` as a user calls them."""

import ast
import json
import os
import pickle

import jax
import numpy as np
import pytest

import biggan_jax
from biggan_jax import cli
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import formats, pth
from tests.golden import author_port


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """The golden generator as the program's own folder, and the golden numbers."""
    golden = dict(np.load(author_port.FOLDER / "hf_deep_128.npz"))
    folder = tmp_path_factory.mktemp("hf")
    state = {k.removeprefix("state/"): v for k, v in golden.items() if k.startswith("state/")}
    pth.write(folder / "pytorch_model.bin", state)
    (folder / "config.json").write_text(json.dumps(ast.literal_eval(str(golden["config"]))))
    return str(folder), golden


def run(capsys, *argv):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_import_load_export_import(hugging_face, tmp_path, capsys):
    source, golden = hugging_face
    code, out, _ = run(capsys, "import", source, tmp_path / "a", "--name=deep")
    assert code == 0 and "the bundle of deep is in" in out and "note: " in out
    card = (tmp_path / "a" / "README.md").read_text()
    assert bundle_lib.sha256(os.path.join(source, "pytorch_model.bin")) in card
    assert "Format of the source: huggingface" in card

    model = biggan_jax.load(str(tmp_path / "a"))
    labels = np.asarray(golden["y"])
    labels = labels.argmax(1) if labels.ndim == 2 else labels
    with jax.default_matmul_precision("highest"):
        for name in (key for key in golden if key.startswith("image/")):
            truncation = float(name.removeprefix("image/"))
            got = model.generate(golden["z"], labels, truncation, statistics="hf-compat")
            want = golden[name]
            want = want.transpose(0, 2, 3, 1) if want.shape[1] == 3 else want
            np.testing.assert_allclose(got, want, atol=1e-4)
    assert not model.has_discriminator
    images = model.sample([0, 10], truncation=0.5, seed=1)
    assert images.shape == (2, 128, 128, 3) and images.dtype == np.uint8 and images.std() > 5

    code, out, _ = run(capsys, "export", tmp_path / "a", tmp_path / "hf", "--format=huggingface")
    assert code == 0
    first, second = (
        pth.read(os.path.join(folder, "pytorch_model.bin")) for folder in (source, tmp_path / "hf")
    )
    assert list(first) == list(second)
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)
        assert second[name].shape == array.shape and second[name].dtype == array.dtype
    code, _, _ = run(capsys, "import", tmp_path / "hf", tmp_path / "b", "--format=huggingface")
    assert code == 0
    a, b = (bundle_lib.read(str(tmp_path / name)).tensors for name in "ab")
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(b[name], array)

    sheet = str(tmp_path / "sheet.png")
    code, _, _ = run(
        capsys,
        "sample",
        tmp_path / "a",
        "--out",
        sheet,
        "--classes=0,3",
        "--num=1",
        "--truncation=0.4",
    )
    assert code == 0 and os.path.getsize(sheet) > 1000


def test_a_foreign_model_must_be_imported_first(hugging_face, tmp_path, capsys):
    code, _, err = run(capsys, "sample", hugging_face[0], "--out", tmp_path / "s.png")
    assert code == 2 and "is a huggingface model: turn it into a bundle by biggan import." in err


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


def rewrite(folder, change):
    path = os.path.join(folder, "pytorch_model.bin")
    state = pth.read(path)
    change(state)
    pth.write(path, state)


def edit_config(folder, **changes):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    with open(path, "w") as f:
        json.dump(config | changes, f)


def shorten(folder):
    path = os.path.join(folder, "pytorch_model.bin")
    with open(path, "r+b") as f:
        f.truncate(os.path.getsize(path) // 2)


def poison(folder):
    with open(os.path.join(folder, "pytorch_model.bin"), "wb") as f:
        for thing in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(thing, f, protocol=2)
        pickle.dump({"a": Evil(os.path.join(folder, "was_here"))}, f, protocol=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: rewrite(f, lambda s: s.pop("generator.bn.bias")), "generator.bn.bias"),
        (lambda f: rewrite(f, lambda s: s.update(more=np.zeros(3, np.float32))), "'more'"),
        (
            lambda f: rewrite(f, lambda s: s.update({"generator.gen_z.bias": np.zeros(3, "f4")})),
            "'generator.gen_z.bias' is of shape [3]",
        ),
        (lambda f: edit_config(f, num_classes=12), "num_classes=12"),
        (shorten, "pytorch_model.bin"),
        (poison, "is refused: it asks to run"),
        (lambda f: os.remove(os.path.join(f, "config.json")), "config.json"),
    ],
    ids=["missing", "extra", "shape", "classes", "truncated", "malicious", "no config"],
)
def test_damage_is_one_sentence_and_leaves_nothing(hugging_face, tmp_path, capsys, damage, message):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        with open(os.path.join(hugging_face[0], name), "rb") as f:
            (folder / name).write_bytes(f.read())
    damage(str(folder))
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, "import", folder, tmp_path / "out", "--format=huggingface")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_every_module_keeps_the_contract():
    modules = formats._modules()
    assert tuple(modules) == formats.READABLE
    for name, module in modules.items():
        assert hasattr(module, "write") == (name in formats.WRITABLE)
        assert not module.recognise("/nowhere/at/all")
