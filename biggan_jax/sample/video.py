"""Frames as a GIF or an MP4."""

import importlib.util
import io
import os
from fractions import Fraction

import numpy as np
from PIL import Image

from biggan_jax import files
from biggan_jax.config import ConfigError

ENDINGS = (".gif", ".mp4")
_COMFORTABLE = 256  # Smaller frames are enlarged to about this size, nearest neighbour.


def check(path: str, fps: int) -> None:
    """Checks that a video can be written, before its frames are made.

    Raises:
      ConfigError: if the rate cannot be, or an MP4 is asked for without the package for it.
    """
    if not 1 <= fps <= 50:
        raise ConfigError(f"--fps={fps}: must be from 1 to 50.")
    if path.lower().endswith(".mp4") and importlib.util.find_spec("av") is None:
        raise ConfigError(
            f"{path}: an .mp4 needs the package av: pip install 'biggan-jax[video]', or end the"
            " name in .gif."
        )


def save(frames: np.ndarray, path: str, fps: int) -> None:
    """Writes a video whole or not at all.

    Args:
      frames: uint8 [F, H, W, 3].
      path: ends in .gif or .mp4. A GIF's frames have 256 colours each and last whole hundredths of
        a second; MP4 is H.264 in yuv420p, which every browser plays.
      fps: frames a second.

    Raises:
      ConfigError: as `check`.
    """
    check(path, fps)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    files.write_whole(path, encoded(frames, os.path.splitext(path)[1].lower(), fps))


def encoded(frames: np.ndarray, ending: str, fps: int) -> bytes:
    """Returns the bytes of a video.

    Args:
      frames: uint8 [F, H, W, 3]; small ones are enlarged.
      ending: one of `ENDINGS`.
      fps: frames a second, as `check` takes.
    """
    scale = max(1, _COMFORTABLE // frames.shape[1])
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    return (_gif if ending == ".gif" else _mp4)(frames, fps)


def _gif(frames, fps):
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    data = io.BytesIO()
    pictures[0].save(
        data,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=round(100 / fps) * 10,
        loop=0,  # Over and over.
    )
    return data.getvalue()


def _mp4(frames, fps):
    import av

    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "14"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()
