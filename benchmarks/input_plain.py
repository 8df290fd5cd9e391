"""Plain loops that the loader is held against: threads that decode or read and do nothing else."""

import functools
import glob
import importlib.util
import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Names of what is measured. TensorFlow's are measured in a process of its own (input_tensorflow).
TENSORFLOW_FULL = ("tensorflow", "tensorflow square")
TENSORFLOW_SCALED = ("tensorflow halved",)
TF_DATA = "tf.data"
READER = "array_record"
UNDECODED = f"{READER}, undecoded"  # The bytes of records, which nobody looks at.
# Decoders that leave pixels out; the others do not.
HALVED = "simplejpeg halved"
SCALED = ("pillow draft", "simplejpeg scaled", HALVED, *TENSORFLOW_SCALED)
FROM_FILES = f"{HALVED}, from files"

_RECORDS_A_CALL = (1, 16)


def plain_rate(work: Callable[[Any], Any], items: Sequence[Any], threads: int) -> float:
    """Calls `work` on all items, every thread on its share; returns items per second."""
    ready = threading.Barrier(threads + 1)
    errors: list[BaseException] = []

    def run(share):
        ready.wait()
        try:
            for item in share:
                work(item)
        except BaseException as e:
            errors.append(e)

    workers = [threading.Thread(target=run, args=(items[k::threads],)) for k in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if errors:
        raise errors[0]
    return len(items) / seconds


def decoders(resolution: int) -> dict[str, Callable[[bytes], Any]]:
    """Returns the JPEG decoders that are installed, TensorFlow's aside, by name."""
    import simplejpeg
    from PIL import Image

    def pillow(data):
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    def pillow_draft(data):
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (resolution, resolution))
        image.load()
        return image

    def simplejpeg_at(*eighths):
        def decode(data):
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
            for k in eighths:
                smaller = -(-height * k // 8), -(-width * k // 8)
                if min(smaller) >= resolution:
                    break
            return simplejpeg.decode_jpeg(data, min_height=smaller[0], min_width=smaller[1])

        return decode

    found = {
        "pillow": pillow,
        "pillow draft": pillow_draft,
        "simplejpeg": simplejpeg.decode_jpeg,
        "simplejpeg scaled": simplejpeg_at(1, 2, 3, 4, 5, 6, 7, 8),
        # libjpeg-turbo has vector code for these sizes alone.
        HALVED: simplejpeg_at(1, 2, 4, 8),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        found["opencv"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return found


def read_halved(resolution: int) -> Callable[[str], Any]:
    """Returns what reads a file and decodes it with `HALVED`."""
    decode = decoders(resolution)[HALVED]

    def read_and_decode(path):
        file = os.open(path, os.O_RDONLY)  # Twice as fast as `open`.
        try:
            data = os.pread(file, os.lseek(file, 0, os.SEEK_END), 0)
        finally:
            os.close(file)
        return decode(data)

    return read_and_decode


def readers(folder: str, passes: int, threads: int) -> dict[str, Callable[[], float]]:
    """Returns plain ways to read all records of a prepared set in order: images per second.

    But for `UNDECODED` they find image and label as everybody does, by protobuf.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    def undecoded(item):
        shard, numbers = item
        shard.read(numbers)

    def read(item):
        shard, numbers = item
        for record in shard.read(numbers):
            features = tf_example_pb2.Example.FromString(record).features.feature
            np.frombuffer(features["image"].bytes_list.value[0], np.uint8)
            features["label"].int64_list.value[0]

    def rate(work, items):
        records = sum(len(numbers) for _, numbers in items)
        return records / len(items) * plain_rate(work, items, threads)

    # Random access is fastest without reading ahead and with a buffer of about a record.
    shards = [
        array_record_module.ArrayRecordReader(
            path, options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
        for path in sorted(glob.glob(os.path.join(folder, "*.array_record-*")))
    ]
    ways: dict[str, Callable[[], float]] = {}
    for size in _RECORDS_A_CALL:
        items = [
            (shard, list(range(i, min(i + size, shard.num_records()))))
            for shard in shards
            for i in range(0, shard.num_records(), size)
        ]
        ways[f"{READER}, {size} a call"] = functools.partial(rate, read, items * passes)
        if size == 1:
            ways[UNDECODED] = functools.partial(rate, undecoded, items * passes)
    return ways
