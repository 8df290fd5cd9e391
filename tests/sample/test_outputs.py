import sys

import numpy as np
import pytest
from PIL import Image

from biggan_jax.config import ConfigError
from biggan_jax.sample import outputs, video

RNG = np.random.default_rng(0)


def test_npz_is_what_numpy_reads_whatever_the_blocks(tmp_path):
    images, labels = RNG.integers(0, 256, (5, 4, 6, 3), np.uint8), np.array([3, 1, 4, 1, 5])
    path = str(tmp_path / "deep" / "a.npz")
    with outputs.npz(path, images.shape) as write:
        for part in (slice(0, 2), slice(2, 5)):
            write(images[part], labels[part])
    with np.load(path) as found:
        assert list(found) == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(found["arr_0"], images, strict=True)
        np.testing.assert_array_equal(found["arr_1"], labels, strict=True)


def test_npz_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"old")
    with (
        pytest.raises(ValueError, match="1 images were written, not 2"),
        outputs.npz(str(path), (2, 4, 4, 3)) as write,
    ):
        write(np.zeros((1, 4, 4, 3), np.uint8), [0])
    with pytest.raises(KeyError), outputs.npz(str(path), (2, 4, 4, 3)):
        raise KeyError
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_has_a_file_an_image_and_is_whole_or_not_there(tmp_path):
    images = RNG.integers(0, 256, (3, 4, 6, 3), np.uint8)
    with outputs.folder(str(tmp_path / "out")) as write:
        write(images[:2], np.array([7, 281]))
        write(images[2:], np.array([7]))
    names = ["000000_class0007.png", "000001_class0281.png", "000002_class0007.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    for name, image in zip(names, images, strict=True):
        with Image.open(tmp_path / "out" / name) as found:
            np.testing.assert_array_equal(np.asarray(found), image)
    with pytest.raises(KeyError), outputs.folder(str(tmp_path / "other")) as write:
        write(images, np.arange(3))
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def moving(count=6, size=16):
    """A white square that goes right on grey, two pixels a frame."""
    frames = np.full((count, size, size, 3), 96, np.uint8)
    for i, frame in enumerate(frames):
        frame[4:12, 2 * i : 2 * i + 4] = 255
    return frames


def test_gif(tmp_path):
    frames = moving()
    video.save(frames, str(tmp_path / "a.gif"), 10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 6 and gif.size == (256, 256) and gif.info["loop"] == 0
        for i, frame in enumerate(frames):
            gif.seek(i)
            assert gif.info["duration"] == 100
            found = np.asarray(gif.convert("RGB"))[8::16, 8::16]
            np.testing.assert_array_equal(found, frame)  # Two colours fit a palette.


def test_mp4(tmp_path):
    av = pytest.importorskip("av")
    frames = moving()
    video.save(frames, str(tmp_path / "a.mp4"), 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 10
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(found) == 6
    for a, b in zip(found, frames, strict=True):
        assert a.shape == (256, 256, 3)
        assert np.abs(a[8::16, 8::16].astype(int) - b).max() <= 12  # It loses a little.


def test_a_video_that_cannot_be_made_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package av: pip install 'biggan-jax\[video"):
        video.save(moving(), str(tmp_path / "a.mp4"), 10)
    with pytest.raises(ConfigError, match="--fps=0: must be from 1 to 50"):
        video.save(moving(), str(tmp_path / "a.gif"), 0)
    assert not list(tmp_path.iterdir())
