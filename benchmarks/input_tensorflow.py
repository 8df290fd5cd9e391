"""TensorFlow's side of `benchmarks.input`, in a process of its own.

`python -m benchmarks.input_tensorflow FOLDER RESOLUTION BATCH THREADS IMAGES` reads names of
measurements from stdin, one a line, and answers each with images per second. In between it waits,
so that it does not disturb what else is measured.
"""

import functools
import glob
import os
import sys
import time
from collections.abc import Callable

from benchmarks.input_plain import TENSORFLOW_FULL, TENSORFLOW_SCALED, TF_DATA, plain_rate
from biggan_jax import host_tensorflow

tf = host_tensorflow.load()


def square(data, shape):
    """Decodes the centred square of a JPEG alone: `[side, side, 3]` uint8."""
    height, width = shape[0], shape[1]
    side = tf.minimum(height, width)
    window = tf.stack([(height - side) // 2, (width - side) // 2, side, side])
    return tf.io.decode_and_crop_jpeg(data, window, channels=3)


def pipeline(paths: list[str], resolution: int, batch: int, threads: int, images: int):
    """A tf.data pipeline for the loader's work, without its shuffling."""
    labels = [int(os.path.basename(os.path.dirname(path))) for path in paths]

    def load(path, label):
        data = tf.io.read_file(path)
        image = square(data, tf.io.extract_jpeg_shape(data))
        image = tf.image.resize(image, [resolution] * 2, method="area")
        return tf.cast(tf.round(image), tf.uint8), label

    dataset = tf.data.Dataset.from_tensor_slices((paths, labels)).repeat().take(images)
    dataset = dataset.map(load, num_parallel_calls=threads).batch(batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


def measurements(
    paths: list[str], resolution: int, batch: int, threads: int, images: int
) -> dict[str, Callable[[], float]]:
    """What can be asked for: functions that return images per second."""
    work = []
    for path in paths:
        with open(path, "rb") as f:
            data = f.read()
        # Found ahead, since Python is slow at it beside a decoder.
        height, width = tf.io.extract_jpeg_shape(data).numpy()[:2].tolist()
        side = min(height, width)
        window = (height - side) // 2, (width - side) // 2, side, side
        ratio = next((k for k in (8, 4, 2) if -(-side // k) >= resolution), 1)
        work.append((tf.constant(data), window, ratio))
    work = [work[i % len(work)] for i in range(images)]
    dataset = pipeline(paths, resolution, batch, threads, images)

    def run_pipeline():
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in dataset)
        return count / (time.perf_counter() - start)

    decoders = {
        TENSORFLOW_FULL[0]: lambda data, window, ratio: tf.io.decode_jpeg(data, channels=3),
        TENSORFLOW_FULL[1]: lambda data, window, ratio: tf.io.decode_and_crop_jpeg(
            data, window, channels=3
        ),
        TENSORFLOW_SCALED[0]: lambda data, window, ratio: tf.io.decode_jpeg(
            data, channels=3, ratio=ratio
        ),
    }
    found: dict[str, Callable[[], float]] = {TF_DATA: run_pipeline}
    for name, decode in decoders.items():
        found[name] = functools.partial(plain_rate, lambda item, f=decode: f(*item), work, threads)
    return found


def main() -> None:
    folder, *numbers = sys.argv[1:]
    paths = sorted(glob.glob(os.path.join(folder, "*", "*.jpg")))
    known = measurements(paths, *(int(number) for number in numbers))
    for line in sys.stdin:
        print(known[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
