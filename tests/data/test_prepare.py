import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from biggan_jax import cli
from biggan_jax.config import ConfigError
from biggan_jax.data import imagenet_tars, pictures, prepare, prepared_builder, verify
from tests.data.photos import by_pillow, encoded, photos, write_imagenet, write_tar

R = 64


def make(dataset, data_dir, **kwargs):
    kwargs = {"resolution": R, "processes": 1} | kwargs
    request = prepare.Request(dataset, data_dir=str(data_dir), **kwargs)
    return prepare.prepare(request, lambda line: None)


def error_of(*args, **kwargs):
    with pytest.raises(ConfigError) as e:
        make(*args, **kwargs)
    message = str(e.value)
    assert "\n" not in message
    return message


def records(made, split="train"):
    """{file name: (label, image)} as TFDS itself reads the data set."""
    source = tfds.builder(made["data_name"], data_dir=made["data_dir"]).as_data_source(split)
    return {r["file_name"].decode(): (int(r["label"]), r["image"]) for r in source}


def contents(folder):
    """{path: SHA-256} of all files below a folder."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as f:
                found[os.path.relpath(path, folder)] = hashlib.sha256(f.read()).hexdigest()
    return found


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The tars' folder, the files in them, and what `prepare` made of them."""
    root = tmp_path_factory.mktemp("imagenet")
    files = write_imagenet(root / "manual")
    made = make("imagenet2012", root / "data", manual_dir=str(root / "manual"))
    return root / "manual", files, made


@pytest.fixture
def folder(tmp_path):
    """Two classes of three photos each."""
    for i, photo in enumerate(photos(6)):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo))
    return tmp_path / "photos"


def test_imagenet_images_equal_pillows(imagenet):
    _, files, made = imagenet
    assert (made["data_name"], made["resize"]) == ("biggan_imagenet/64", "area")
    found = records(made) | records(made, "validation")
    assert found.keys() == files.keys()
    for name, (_, image) in found.items():
        assert image.shape == (R, R, 3)
        assert np.abs(image.astype(int) - by_pillow(files[name], R)).max() <= 1


def test_imagenet_records_are_those_of_tfds(imagenet, tmp_path):
    manual, _, made = imagenet
    reference = tfds.builder("imagenet2012", data_dir=str(tmp_path))
    reference.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(manual), try_download_gcs=False
        ),
        file_format="array_record",
    )
    for split in ("train", "validation"):
        source = reference.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        wanted = {r["file_name"].decode(): int(r["label"]) for r in source}
        assert {name: label for name, (label, _) in records(made, split).items()} == wanted
    assert (
        prepared_builder.BigganImagenet(data_dir=str(tmp_path), config="64")
        .info.features["label"]
        .names
        == reference.info.features["label"].names
    )
    # And from the copy that TFDS made, without the tars.
    again = make("imagenet2012", tmp_path, name="again", splits=("validation",))
    for name, (label, image) in records(made, "validation").items():
        other_label, other = records(again, "validation")[name]
        assert label == other_label
        np.testing.assert_array_equal(image, other)


def test_the_builder_run_by_tfds_makes_the_same(imagenet, tmp_path):
    manual, _, made = imagenet
    builder = prepared_builder.BigganImagenet(
        data_dir=str(tmp_path), config="64", file_format="array_record"
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(manual), try_download_gcs=False)
    )
    manifest = prepare.read_manifest(str(builder.data_path))
    assert manifest == prepare.read_manifest(made["folder"])
    assert verify.verify(str(builder.data_path), 1)["problems"] == []


def test_info_tells_how_it_was_made(folder, tmp_path):
    made = make(f"folder:{folder}", tmp_path, resize="lanczos")
    with open(os.path.join(made["folder"], "metadata.json")) as f:
        metadata = json.load(f)
    assert metadata["resize"] == "lanczos"
    assert metadata["skipped"] == {"train": 0}
    builder = tfds.builder(made["data_name"], data_dir=made["data_dir"])
    assert "lanczos resampling to 64 pixels" in builder.info.description
    assert builder.info.features["label"].names == ["a", "b"]
    # A finished data set stays as it is.
    before = contents(made["folder"])
    assert make(f"folder:{folder}", tmp_path, resize="lanczos")["folder"] == made["folder"]
    assert contents(made["folder"]) == before
    message = error_of(f"folder:{folder}", tmp_path)
    assert "prepared with lanczos already" in message


def test_processes_do_not_matter(folder, tmp_path):
    one = make(f"folder:{folder}", tmp_path / "one")
    two = make(f"folder:{folder}", tmp_path / "two", processes=2)
    assert contents(one["folder"]) == contents(two["folder"])


# --- Bad pictures ----------------------------------------------------------------------------


def bad_pictures():
    """{file name: (bytes, what is said of it)}: those that cannot be used."""
    photo = photos(1)[0]
    jpeg = encoded(photo)
    half = len(jpeg) // 2
    damaged = jpeg[:half] + bytes(100) + jpeg[half + 100 :]
    return {
        "damaged.jpg": (damaged, "JPEG"),
        "truncated.jpg": (jpeg[:half], "JPEG"),
        "truncated.png": (encoded(photo, "PNG")[:5000], "truncated"),
        "text.jpg": (b"not a picture", "no picture format begins as it does"),
        "empty.jpg": (b"", "it is an empty file"),
        "strip.png": (encoded(Image.new("RGB", (5000, 1)), "PNG"), "5000 x 1 pixels"),
        "floats.tiff": (encoded(Image.new("F", (64, 64)), "TIFF"), "floating-point"),
    }


def altered_pictures():
    """{file name: (bytes, what is said of it)}: those that need more than scaling."""
    photo = photos(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    grey_16 = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    clear = photo.copy()
    clear.putalpha(100)
    return {
        "cmyk.jpg": (encoded(photo.convert("CMYK")), "CMYK"),
        "grey.jpg": (encoded(photo.convert("L")), "grey"),
        "grey16.png": (encoded(grey_16, "PNG"), "16-bit"),
        "animated.gif": (
            encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(180)]),
            "animated",
        ),
        "turned.jpg": (encoded(photo, exif=exif), "EXIF"),
        "clear.png": (encoded(clear, "PNG"), "transparent"),
        "small.png": (encoded(photo.resize((20, 30)), "PNG"), "enlarged: from 20 x 30 pixels"),
    }


def test_bad_pictures_are_skipped_and_listed(folder, tmp_path):
    bad, altered = bad_pictures(), altered_pictures()
    for name, (data, _) in (bad | altered).items():
        (folder / "a" / name).write_bytes(data)
    made = make(f"folder:{folder}", tmp_path, skip_errors=True)
    train = made["splits"]["train"]
    assert (train["records"], train["skipped"]) == (6 + len(altered), len(bad))
    assert train["labels"] == [3 + len(altered), 3]
    with open(os.path.join(made["folder"], "records.jsonl")) as f:
        lines = [json.loads(line) for line in f]
    for name, (_, reason) in bad.items():
        (said,) = [x["skipped"] for x in lines if x["name"] == f"a/{name}"]
        assert f"train picture a/{name}" in said
        assert reason in said
    for name, (_, reason) in altered.items():
        assert any(x["altered"].startswith(reason) for x in lines if x["name"] == f"a/{name}")
    found = records(made)
    assert len(found) == train["records"]
    assert not any(f"a/{name}" in found for name in bad)
    builder = tfds.builder(made["data_name"], data_dir=made["data_dir"])
    assert builder.info.splits["train"].num_examples == train["records"]
    with open(os.path.join(made["folder"], "metadata.json")) as f:
        assert json.load(f)["skipped"] == {"train": len(bad)}
    assert verify.verify(made["folder"], 1)["problems"] == []


@pytest.mark.parametrize("name", bad_pictures())
def test_a_bad_picture_is_named(folder, tmp_path, name):
    data, reason = bad_pictures()[name]
    run = pictures.FolderRun(str(folder), (f"a/{name}",), (0,))
    (folder / "a" / name).write_bytes(data)
    recipe = prepared_builder.make_config(R).recipe
    shard = prepared_builder.Shard("train", 0, 0, run, recipe, 2, False, str(tmp_path / "note"))
    with pytest.raises(ConfigError) as e:
        list(shard())
    assert str(e.value).startswith(f"train picture a/{name}")
    assert reason in str(e.value)
    assert not (tmp_path / "note").exists()


def test_stop_then_skip_keeps_what_was_done(folder, tmp_path):
    (folder / "b" / "zz.jpg").write_bytes(b"")
    message = error_of(f"folder:{folder}", tmp_path)
    assert "train picture b/zz.jpg" in message
    (staging,) = (tmp_path / "biggan_photos" / "64").iterdir()
    kept = {p: p.stat().st_mtime_ns for p in staging.iterdir() if "array_record" in p.name}
    assert 0 < len(kept) < 7
    assert not any(p.name.endswith(".tmp") for p in kept)
    made = make(f"folder:{folder}", tmp_path, skip_errors=True)
    assert made["splits"]["train"]["skipped"] == 1
    for path, when in kept.items():
        moved = os.path.join(made["folder"], path.name)
        assert os.stat(moved).st_mtime_ns == when


def test_a_file_that_vanishes(folder):
    listed = pictures.Folder(str(folder)).run("train", 0, 6)
    (folder / "a" / "2.jpg").unlink()
    found = {name: data for name, _, data in listed}
    assert "no such file" in str(found["a/2.jpg"])
    assert isinstance(found["a/0.jpg"], bytes)


def test_nothing_usable(tmp_path):
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "x.jpg").write_bytes(b"")
    message = error_of(f"folder:{tmp_path}/p", tmp_path, skip_errors=True)
    assert "none of its 1 pictures can be used" in message
    assert "empty file" in message


class SomeLabels(tfds.core.GeneratorBasedBuilder):
    """Six photos; those of the split test have no label (-1)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=["a", "b"]),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(-1)}

    def _generate_examples(self, label):
        for i, photo in enumerate(photos(6)):
            yield i, {"image": np.asarray(photo), "label": label}


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_a_tfds_set(tmp_path, file_format):
    SomeLabels(data_dir=str(tmp_path), file_format=file_format).download_and_prepare()
    made = make("some_labels", tmp_path, splits=("train",))
    found = records(made)
    assert sorted(found) == [f"train/{i}" for i in range(6)]
    with_labels = SomeLabels(data_dir=str(tmp_path), file_format=file_format)
    assert with_labels.info.splits["train"].num_examples == 6
    for i, photo in enumerate(photos(6)):
        # TFDS encodes JPEGs at its own quality, so this only says which photo it is.
        expected = by_pillow(encoded(photo), R).astype(int)
        assert np.abs(found[f"train/{i}"][1] - expected).mean() < 8
    message = error_of("some_labels", tmp_path, name="b")
    assert "test picture test/0: its label -1 is outside of 0 to 1" in message


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_an_unreadable_shard(tmp_path, file_format):
    builder = SomeLabels(data_dir=str(tmp_path), file_format=file_format)
    builder.download_and_prepare()
    (shard,) = builder.data_path.glob("some_labels-train*")
    data = bytearray(shard.read_bytes())
    data[30_000:30_100] = bytes(100)
    shard.write_bytes(bytes(data))
    message = error_of("some_labels", tmp_path, splits=("train",))
    assert "train picture train/" in message
    assert "cannot be read" in message
    made = make("some_labels", tmp_path, splits=("train",), skip_errors=True)
    train = made["splits"]["train"]
    assert 1 <= train["skipped"] <= 5
    assert train["records"] + train["skipped"] == 6


# --- Bad requests ----------------------------------------------------------------------------


def test_bad_requests(folder, tmp_path):
    what = f"folder:{folder}"
    assert "--name=A b" in error_of(what, tmp_path, name="A b")
    assert "data.resize='cubic'" in error_of(what, tmp_path, resize="cubic")
    assert "--resolution=0" in error_of(what, tmp_path, resolution=0)
    assert "no split 'test'" in error_of(what, tmp_path, splits=("test",))
    assert "no such folder" in error_of("folder:/nowhere", tmp_path)
    assert "did you mean 'cifar10'" in error_of("cifra10", tmp_path)
    assert "--manual-dir" in error_of("imagenet2012", tmp_path)
    (tmp_path / "file").touch()
    assert "is a file" in error_of(what, tmp_path / "file")


def test_bad_tars(tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    ask = dict(manual_dir=str(manual))
    assert "holds no ILSVRC2012_img_train.tar" in error_of("imagenet2012", tmp_path, **ask)
    write_imagenet(manual)
    train = manual / "ILSVRC2012_img_train.tar"
    whole = train.read_bytes()
    train.write_bytes(whole[: len(whole) // 2])
    assert "ILSVRC2012_img_train.tar" in error_of("imagenet2012", tmp_path, **ask)
    train.write_bytes(b"no tar" * 1000)
    assert "is not a whole tar file" in error_of("imagenet2012", tmp_path, **ask)
    with open(train, "wb") as f:
        write_tar(f, [("n99999999.tar", b"x" * 2000)])
    assert "not the tar of one of ImageNet's" in error_of("imagenet2012", tmp_path, **ask)
    train.write_bytes(whole)
    (manual / "ILSVRC2012_img_val.tar").unlink()
    assert "holds no ILSVRC2012_img_val.tar" in error_of("imagenet2012", tmp_path, **ask)
    assert not (tmp_path / "biggan_imagenet" / "64" / "1.0.0").exists()


def test_a_tar_that_shrinks_meanwhile(tmp_path):
    files = write_imagenet(tmp_path / "manual")
    run = imagenet_tars.ImageNetTars(str(tmp_path / "manual")).run("train", 0, 12)
    assert {name: data for name, _, data in run} == {
        name: data for name, data in files.items() if name.startswith("n")
    }
    train = tmp_path / "manual" / "ILSVRC2012_img_train.tar"
    train.write_bytes(train.read_bytes()[:60_000])
    assert "ends within it" in str(list(run)[-1][2])


def test_another_command_on_half_a_data_set(folder, tmp_path):
    (folder / "b" / "zz.jpg").write_bytes(b"")
    error_of(f"folder:{folder}", tmp_path)
    message = error_of(f"folder:{folder}", tmp_path, resize="lanczos")
    assert "was begun with resize='area', and now it is 'lanczos'" in message


def test_two_at_once(folder, tmp_path):
    staging = tmp_path / "biggan_photos" / "64" / "1.0.0.preparing"
    staging.mkdir(parents=True)
    with prepare._locked(str(staging)):
        assert "another process" in error_of(f"folder:{folder}", tmp_path)


# --- Verification ----------------------------------------------------------------------------


def test_verify_finds_damage(folder, tmp_path):
    made = make(f"folder:{folder}", tmp_path)
    (shard, *_) = sorted(p for p in os.listdir(made["folder"]) if "array_record" in p)
    path = os.path.join(made["folder"], shard)
    with open(path, "rb") as f:
        good = f.read()

    def problems():
        return verify.verify(made["folder"], 1)["problems"]

    assert problems() == []
    for damage in (good[:-1000], b"", good[:2000] + b"\x01\x02\x03" + good[2003:]):
        with open(path, "wb") as f:
            f.write(damage)
        (said,) = problems()
        assert shard in said
    os.remove(path)
    assert shard in problems()[0]
    other = os.path.join(made["folder"], shard.replace("00000-of", "00001-of"))
    with open(path, "wb") as f, open(other, "rb") as g:
        f.write(g.read())
    assert "SHA-256 differs" in problems()[0]
    with open(path, "wb") as f:
        f.write(good)
    info = os.path.join(made["folder"], "dataset_info.json")
    with open(info) as f:
        told = f.read()
    with open(info, "w") as f:
        f.write(told.replace('"train"', '"trial"'))
    assert "dataset_info.json" in problems()[0]


def test_command_line(folder, tmp_path, capsys):
    command = ["prepare", f"--dataset=folder:{folder}", "--resolution=32", f"--data-dir={tmp_path}"]
    assert cli.main([*command, "--processes=1", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["data_name"] == "biggan_photos/32"
    assert cli.main([*command, "--verify", "--processes=1"]) == 0
    assert "6 records" in capsys.readouterr().out
    shard = next(p for p in os.listdir(made["folder"]) if "array_record" in p)
    os.remove(os.path.join(made["folder"], shard))
    assert cli.main([*command, "--verify", "--processes=1"]) == 2
    assert shard in capsys.readouterr().out
    assert cli.main([*command, "--processes=0"]) == 2
    assert "--processes=0" in capsys.readouterr().err


# --- Sudden death ----------------------------------------------------------------------------


@pytest.mark.multiprocess
def test_killed_five_times_the_result_is_the_same(tmp_path):
    for i, photo in enumerate(photos(120)):
        path = tmp_path / "photos" / "abc"[i % 3] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo))
    undisturbed = make(f"folder:{tmp_path}/photos", tmp_path / "undisturbed")
    slow = (
        "import sys, time\n"
        "from biggan_jax.data import prepare, prepared_builder\n"
        "if __name__ == '__main__':\n"
        "    from biggan_jax import cli\n"
        "    sys.exit(cli.main(sys.argv[1:]))\n"
        "else:\n"  # In a working process: slow enough to be hit at work.
        "    call = prepared_builder.Shard.__call__\n"
        "    def slowly(self):\n"
        "        for example in call(self):\n"
        "            time.sleep(0.02)\n"
        "            yield example\n"
        "    prepared_builder.Shard.__call__ = slowly\n"
    )
    (tmp_path / "slow.py").write_text(slow)
    command = [
        sys.executable,
        str(tmp_path / "slow.py"),
        "prepare",
        f"--dataset=folder:{tmp_path}/photos",
        f"--resolution={R}",
        f"--data-dir={tmp_path}/killed",
        "--processes=2",
    ]
    final = tmp_path / "killed" / "biggan_photos" / "64" / "1.0.0"
    staging = final.with_name("1.0.0.preparing")
    rng = np.random.default_rng(0)
    done = []
    for _ in range(5):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = len(list(staging.glob("*array_record*"))) if staging.exists() else 0
        while process.poll() is None:
            # Killed at a random moment after the first new shard is begun.
            if staging.exists() and len(list(staging.glob("*array_record*"))) > before:
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not final.exists()
        done.append(len([p for p in staging.glob("*array_record*") if p.suffix != ".tmp"]))
        time.sleep(0.5)  # Its working processes leave by themselves.
    assert done == sorted(done)
    assert done[-1] < 16
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert contents(final) == contents(undisturbed["folder"])
    assert verify.verify(str(final), 1)["problems"] == []
