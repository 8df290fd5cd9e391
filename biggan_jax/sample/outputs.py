"""Many images as a file a picture or as one `.npz`, written block by block, whole or not at all."""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from biggan_jax import files
from biggan_jax.config import ConfigError

Write = Callable[[np.ndarray, np.ndarray], None]


@contextlib.contextmanager
def folder(path: str) -> Iterator[Write]:
    """Opens a new folder of PNGs named by number and class: `000007_class0281.png`.

    Yields:
      What takes blocks of images, uint8 [N, H, W, 3], and their labels [N], in order.

    Raises:
      ConfigError: if the folder holds something already or may not be made.
    """
    count = 0
    with files.new_folder(path) as temporary:

        def write(images, labels):
            nonlocal count
            for image, label in zip(images, labels, strict=True):
                name = f"{count:06d}_class{label:04d}.png"
                Image.fromarray(image).save(os.path.join(temporary, name))
                count += 1

        yield write


@contextlib.contextmanager
def npz(path: str, shape: tuple[int, int, int, int]) -> Iterator[Write]:
    """Opens a `.npz` of the layout that ADM's evaluation reads.

    `arr_0` holds the images, uint8 [N, H, W, 3], `arr_1` the labels, int64 [N]; not compressed, and
    never whole in memory.

    Args:
      path: the file; there in the end, or, after an error, as it was before.
      shape: of all images.

    Yields:
      What takes blocks of images and labels, in order.

    Raises:
      ConfigError: if the file may not be written.
      ValueError: at the end, if the blocks were not `shape`.
    """
    check_file(path, ".npz", "--npz")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    labels_so_far: list[np.ndarray] = []
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as f:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(f, header)

                def write(images, labels):
                    f.write(np.ascontiguousarray(images, np.uint8).data)
                    labels_so_far.append(np.asarray(labels, np.int64))

                yield write
            labels = np.concatenate([*labels_so_far, np.zeros(0, np.int64)])
            if len(labels) != shape[0]:
                raise ValueError(f"{len(labels)} images were written, not {shape[0]}.")
            # Not writestr, which writes the time into the file: the same images, the same bytes.
            with archive.open("arr_1.npy", "w") as f:
                np.lib.format.write_array(f, labels)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def check_file(path: str, ending: str, option: str) -> None:
    """Checks that a file of a kind can be written at `path`; makes nothing.

    Raises:
      ConfigError: naming the option and what stands in the way.
    """
    if not path.lower().endswith(ending):
        raise ConfigError(f"{option}={path}: must end in {ending}.")
    if os.path.isdir(path):
        raise ConfigError(f"{option}={path}: is a folder, not a file.")
    files.check_folder(os.path.dirname(path) or ".", option)
