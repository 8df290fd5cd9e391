import json
import math
import os
import threading

import numpy as np
import pytest
from PIL import Image

from benchmarks import input as input_benchmark
from benchmarks import input_plain
from biggan_jax.config import ConfigError

TINY = ["--images=6", "--batch=4", "--repeats=1", "--resolution=32", "--threads=1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i, suffix in enumerate(("jpg", "JPEG", "jpg")):
        pixels = rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.{suffix}", "JPEG")
    (folder / "notes.txt").write_text("no picture")
    return str(folder)


def check(found):
    for key in ("full_jpeg", "full_jpeg_exact", "prepared"):
        one = found[key]
        bound = one["decode_bound"]
        assert bound["images_per_second"] == found["plain"][bound["by"]]
        ratio = one["images_per_second"] / bound["images_per_second"]
        assert one["ratio_to_decode_bound"] == pytest.approx(ratio)
        # One round only, so it is also the median.
        assert one["ratio_in_rounds"] == [pytest.approx(ratio)]
    for key in ("full_jpeg", "full_jpeg_exact"):
        one = found[key]
        picture, rate = one["picture_bound"]["images_per_second"], one["images_per_second"]
        assert one["ratio_to_picture_bound"] == pytest.approx(rate / picture)
        tf_data = found["tf_data"]["images_per_second"]
        assert one["ratio_to_tf_data"] == pytest.approx(rate / tf_data)
    full_size = max(found["plain"][k] for k in ("pillow", "simplejpeg", "tensorflow"))
    rate = found["full_jpeg"]["images_per_second"]
    assert found["full_jpeg"]["ratio_to_full_size_bound"] <= rate / full_size * (1 + 1e-9)
    rate = found["prepared"]["images_per_second"]
    undecoded = found["plain"]["array_record, undecoded"]
    assert found["prepared"]["ratio_to_undecoded"] == pytest.approx(rate / undecoded)
    assert found["prepared"]["decode_bound"]["by"].startswith("array_record")
    from_files = found["plain"]["simplejpeg halved, from files"]
    rate = found["full_jpeg"]["images_per_second"]
    assert found["full_jpeg"]["ratio_to_decoding_from_files"] == pytest.approx(rate / from_files)
    others = ("array_record", "simplejpeg halved, from files")
    decoders = {k: v for k, v in found["plain"].items() if not k.startswith(others)}
    assert {"pillow", "pillow draft", "simplejpeg", "tensorflow square"} <= decoders.keys()
    assert found["full_jpeg"]["decode_bound"]["images_per_second"] == max(decoders.values())


def numbers(node):
    if isinstance(node, dict):
        return [x for value in node.values() for x in numbers(value)]
    if isinstance(node, list):
        return [x for value in node for x in numbers(value)]
    return [] if isinstance(node, str | None) else [node]


def test_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cores = os.sched_getaffinity(0)
    assert input_benchmark.main([*TINY, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    check(found)
    assert found.pop("load_before") >= 0
    assert all(math.isfinite(x) and x > 0 for x in numbers(found))
    assert (found["threads"], found["images"], found["resolution"]) == (1, 6, 32)
    assert found["cpu_count"] == os.cpu_count()
    assert found["versions"]["numpy"] == np.__version__
    assert "500 x 375" in found["photos"]
    assert os.sched_getaffinity(0) == cores
    assert not list(tmp_path.glob("biggan-input-*"))


def test_text(capsys, photos):
    assert input_benchmark.main([*TINY, f"--photos={photos}"]) == 0
    out = capsys.readouterr().out
    assert f"3 files of {photos} as they are" in out
    for name in ("simplejpeg halved", "tf.data", "loader, full_jpeg", "loader, prepared"):
        assert f"\n  {name} " in out
    assert (
        " of the same from files, " in out
        and " of the full-size bound, " in out
        and " of array_record, undecoded\n" in out
    )
    # 4,096 images / 64 hosts in 32, 80, 120 ms.
    assert out.splitlines()[-1] == (
        "A step of BigGAN-128 on a v3-512 takes 4,096 real images (batch 2,048, 2 D updates), so"
        " each of its 64 hosts must load 2,000 images/s at 32 ms a step, which is its FLOPs at the"
        " peak rate, 800 at 80 ms and 533 at 120 ms."
    )


def test_summary_by_hand():
    rounds = {
        # The last round is far off.
        "array_record, 1 a call": [1000.0, 900.0, 10.0],
        "array_record, 16 a call": [500.0, 800.0, 9000.0],
        "array_record, undecoded": [2000.0, 1000.0, 5000.0],
        "pillow": [50.0, 60.0, 1.0],
        "simplejpeg": [100.0, 80.0, 1.0],
        "simplejpeg halved": [150.0, 200.0, 1.0],
        "simplejpeg halved, from files": [150.0, 160.0, 9000.0],
        "tensorflow": [70.0, 60.0, 9000.0],
        "tensorflow halved": [110.0, 120.0, 9000.0],
        "full_jpeg picture": [75.0, 160.0, 1.0],
        "full_jpeg_exact picture": [50.0, 40.0, 1.0],
        "full_jpeg": [75.0, 120.0, 9.0],
        "full_jpeg_exact": [40.0, 30.0, 9.0],
        "prepared": [700.0, 900.0, 9000.0],
        "tf.data": [60.0, 80.0, 1.0],
    }
    found = input_benchmark.summary(rounds)
    assert found["full_jpeg"] == {
        "images_per_second": 75,
        "decode_bound": {"by": "simplejpeg halved", "images_per_second": 150},
        "ratio_to_decode_bound": 0.6,  # Of 0.5, 0.6 and 9.
        "ratio_in_rounds": [0.5, 0.6, 9.0],
        "ratio_to_decoding_from_files": 0.5,  # Of 0.5, 0.75 and 0.001.
        "ratio_to_full_size_bound": 1.5,  # By simplejpeg: 0.75, 1.5 and 9.
        "picture_bound": {"images_per_second": 75},
        "ratio_to_picture_bound": 1.0,  # Of 1, 0.75 and 9.
        "ratio_to_tf_data": 1.5,  # Of 1.25, 1.5 and 9.
    }
    exact = found["full_jpeg_exact"]
    assert exact["decode_bound"] == {"by": "simplejpeg", "images_per_second": 80}
    assert exact["ratio_to_decode_bound"] == 0.4
    assert exact["ratio_in_rounds"] == [0.4, 0.375, 9.0]
    assert "ratio_to_full_size_bound" not in exact
    assert found["prepared"] == {
        "images_per_second": 900,
        "decode_bound": {"by": "array_record, 1 a call", "images_per_second": 900},
        "ratio_to_decode_bound": 1.0,  # Of 0.7, 1 and 900.
        "ratio_in_rounds": [0.7, 1.0, 900.0],
        "ratio_to_undecoded": 0.9,  # Of 0.35, 0.9 and 1.8.
    }
    assert found["tf_data"] == {"images_per_second": 60}


def test_plain_rate_does_everything_once():
    seen, threads = [], set()

    def work(item):
        seen.append(item)
        threads.add(threading.current_thread())

    assert input_plain.plain_rate(work, range(10), 3) > 0
    assert sorted(seen) == list(range(10))
    assert len(threads) == 3 and threading.main_thread() not in threads
    with pytest.raises(ZeroDivisionError):
        input_plain.plain_rate(lambda item: 1 / item, range(10), 3)


def test_decoders_give_the_sizes_they_are_named_for(tmp_path):
    input_benchmark.lay_out_photos(str(tmp_path / "photos"), None, 1)
    data = (tmp_path / "photos/0/000000.jpg").read_bytes()
    decoders = input_plain.decoders(128)
    sizes = {name: np.asarray(decode(data)).shape[:2] for name, decode in decoders.items()}
    # The short edge of 375 in eighths: 3 give 141 and 4 give 188; half the long edge is 250.
    assert sizes.pop("simplejpeg scaled") == (141, 188)
    assert sizes.pop("simplejpeg halved") == sizes.pop("pillow draft") == (188, 250)
    assert set(sizes.values()) == {(375, 500)}
    assert input_plain.decoders(512)["simplejpeg scaled"](data).shape == (375, 500, 3)


def test_photos_are_all_different(tmp_path):
    what = input_benchmark.lay_out_photos(str(tmp_path / "photos"), None, 300)
    files = [path.read_bytes() for path in (tmp_path / "photos").glob("?/*.jpg")]
    assert len(files) == len(set(files)) == 300
    mean = sum(len(data) for data in files) / 300
    assert what.startswith(f"300 JPEGs of {mean / 1000:.1f} kB")
    # Windows come at (11 i mod 53, 37 i mod 141): the first to come again is that of i = 53 * 141.
    assert len({(11 * i % 53, 37 * i % 141) for i in range(53 * 141)}) == 53 * 141


def test_photos_of_a_folder_are_taken_in_turn(tmp_path, photos):
    input_benchmark.lay_out_photos(str(tmp_path / "photos"), photos, 4)
    files = sorted((tmp_path / "photos").glob("?/*.jpg"), key=lambda path: path.name)
    expected = ["0.jpg", "1.JPEG", "2.jpg", "0.jpg"]
    assert [os.path.basename(os.readlink(path)) for path in files] == expected
    assert [path.parent.name for path in files] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--images=1", "--images=1: must be at least 2, one a class."),
        ("--batch=-1", "--batch=-1: must be at least 1."),
        ("--threads=0", "--threads=0: must be at least 1."),
        ("--repeats=0", "--repeats=0: must be at least 1."),
        ("--threads=999", "--threads=999: the loader has at most"),
        ("--images=14947", "--images=14947: must be at most 14946 without --photos."),
        ("--resolution=100", "argument --resolution: invalid choice: 100"),
    ],
)
def test_bad_arguments(capsys, argument, message):
    with pytest.raises(SystemExit) as e:
        input_benchmark.main([argument])
    assert e.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_bad_photos(capsys, tmp_path, photos):
    assert input_benchmark.main([*TINY, "--photos=/nowhere"]) == 2
    sentence = "--photos=/nowhere: must be a folder that holds .jpg files.\n"
    assert capsys.readouterr().err == sentence
    bad = tmp_path / "bad.jpg"
    with open(os.path.join(photos, "0.jpg"), "rb") as f:
        bad.write_bytes(f.read()[:500])
    with pytest.raises(ConfigError, match=f"--photos: {bad} is no JPEG that all decoders read: "):
        input_benchmark.lay_out_photos(str(tmp_path / "photos"), str(tmp_path), 4)
