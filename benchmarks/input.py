"""Times the input pipeline against plain threads that decode the same files and do nothing else.

`python -m benchmarks.input [--photos=FOLDER] [--resolution=128] [--threads=N] [--json]`

Confined to as many cores as there are threads, it measures: JPEG decoders, over the photos held in
memory; our loader on a folder of the photos, with `data.decode` scaled and exact; tf.data on that
folder, decoding and cropping in one; plain threads that read the records of the prepared set made
of that folder, and our loader on it. All of it once a round, in turn, so that a busy machine
disturbs it alike. Rates and ratios are medians of the rounds, after one that does not count; a
ratio is that of two rates of the same round.

A decode bound is the best plain loop: of all decoders for "scaled", of those that keep every pixel
for "exact" (the full-size bound, given for "scaled" too), of those that parse records with protobuf
for prepared sets. JPEGs lie in memory there; one loop more reads the files too, as the loader has
to. The picture bound is the plain loop over our own way from a file to a square image. What it
loses against the decode bound is reading, cropping and scaling; what the loader loses against it is
the loader's own.
"""

import argparse
import contextlib
import functools
import glob
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.input_plain import (
    FROM_FILES,
    READER,
    SCALED,
    TENSORFLOW_FULL,
    TENSORFLOW_SCALED,
    TF_DATA,
    UNDECODED,
    decoders,
    plain_rate,
    read_halved,
    readers,
)
from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.data import prefetch

_LOADERS = ("full_jpeg", "full_jpeg_exact", "prepared")
_WIDTH, _HEIGHT, _QUALITY = 500, 375, 95
_DIFFERENT = 14_946  # 2 photos of 640 x 427 have as many windows of 500 x 375.
_PHOTO_PASSES, _PREPARED_PASSES = 2, 32  # Over the images, a measurement: about a second.
_PACKAGES = (
    *("array_record", "grain", "numba", "numpy", "pillow", "simplejpeg"),
    "tensorflow_datasets",
)

# BigGAN-128 on a v3-512, with 8 cores a host. 32 ms a step is its FLOPs at the peak rate; 80 and
# 120 ms are what a step may really take.
_STEP_MS = (32, 80, 120)
_HOSTS, _BATCH, _D_STEPS = 64, 2048, 2


def lay_out_photos(folder: str, photos: str | None, count: int) -> str:
    """Makes a folder data set of `count` JPEGs in two classes, "0" and "1".

    Args:
      folder: is made.
      photos: a folder of JPEGs, taken in turn; None for windows of the two photos that
        scikit-learn ships.
      count: how many.

    Returns:
      What the photos are, in words.

    Raises:
      ConfigError: if `photos` holds no JPEG, or one that not all decoders read.
    """
    for label in "01":
        os.makedirs(os.path.join(folder, label))
    names = [os.path.join(folder, str(i % 2), f"{i:06d}.jpg") for i in range(count)]
    if photos is None:
        _cut_windows(names)
        what = (
            f"{_WIDTH} x {_HEIGHT} windows of scikit-learn's two photos, all different, encoded by"
            f" Pillow at quality {_QUALITY}, 4:2:0"
        )
    else:
        found = _jpegs(photos)[:count]
        for i, name in enumerate(names):
            os.symlink(os.path.abspath(found[i % len(found)]), name)
        what = f"{len(found)} files of {photos} as they are, in turn"
    size = sum(os.path.getsize(name) for name in names) / count
    return f"{count} JPEGs of {size / 1000:.1f} kB on average: {what}"


def _cut_windows(names):
    from PIL import Image
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    for i, name in enumerate(names):
        height, width = images[i % 2].shape[:2]
        # 11 and 53, 37 and 141, 53 and 141 have no common factors: all windows come up once.
        top, left = i // 2 * 11 % (height - _HEIGHT + 1), i // 2 * 37 % (width - _WIDTH + 1)
        window = images[i % 2][top : top + _HEIGHT, left : left + _WIDTH]
        Image.fromarray(window).save(name, quality=_QUALITY, subsampling="4:2:0")


def _jpegs(photos):
    import simplejpeg

    found = sorted(glob.glob(os.path.join(glob.escape(photos), "*")))
    found = [path for path in found if path.lower().endswith((".jpg", ".jpeg"))]
    if not found:
        raise ConfigError(f"--photos={photos}: must be a folder that holds .jpg files.")
    for path in found:
        try:
            simplejpeg.decode_jpeg(_content(path))
        except (OSError, ValueError) as e:
            raise ConfigError(f"--photos: {path} is no JPEG that all decoders read: {e}.") from e
    return found


def _paths(photos):
    return sorted(glob.glob(os.path.join(photos, "*", "*.jpg")))


def _content(path):
    with open(path, "rb") as f:
        return f.read()


def open_loader(name: str, directory: str, decode: str, resolution: int, batch: int) -> Any:
    """Returns our loader for a data set, with nothing cached."""
    from biggan_jax.data import datasets, loader

    c = config_lib.default()
    c.data.update(name=name, dir=directory, decode=decode)
    c.model.update(resolution=resolution, num_classes=2, g_attention=(), d_attention=())
    c.model.z_dim = 20 * config_lib.slots(c)
    source = datasets.open_source(config_lib.resolve(c, 1))
    return loader.Loader(source, batch_size=batch, num_batches=1, seed=0, cache_mib=0)


def loader_rate(loader: Any, batches: int) -> float:
    """Takes batches from `Loader.prefetch` and only counts; returns images per second."""
    count = 0
    start = time.perf_counter()
    with loader.prefetch(0, batches) as prefetched:
        for _, batch in prefetched:
            count += batch["label"].size
    return count / (time.perf_counter() - start)


@contextlib.contextmanager
def tensorflow_rates(folder: str, *numbers: int) -> Iterator[Callable[[str], float]]:
    """Runs `benchmarks.input_tensorflow`; gives what has it measure something, by its name."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.input_tensorflow", folder, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    ) as process:

        def rate(name):
            print(name, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise RuntimeError("benchmarks.input_tensorflow ended; its error is above.")
            return float(answer)

        yield rate


@contextlib.contextmanager
def confined(cores: int) -> Iterator[None]:
    """Keeps this thread, and the threads and processes it starts, to some of its cores.

    The loader has a thread for each core it may use.
    """
    if cores == prefetch.threads():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measurements(
    args: argparse.Namespace, folder: str, photos: str
) -> dict[str, Callable[[], float]]:
    """Prepares the photos, and opens all that is measured in this process.

    Args:
      args: of the command line.
      folder: for the prepared set.
      photos: a folder data set.

    Returns:
      Functions that return images per second.
    """
    from biggan_jax.data import prepare, preprocess

    request = prepare.Request(f"folder:{photos}", args.resolution, folder, processes=args.threads)
    prepared = prepare.prepare(request, log=lambda line: None)
    paths = _paths(photos) * _PHOTO_PASSES
    files = [_content(path) for path in paths]

    def loading(name, directory, method, passes):
        loader = open_loader(name, directory, method, args.resolution, args.batch)
        return functools.partial(loader_rate, loader, -(-passes * args.images // args.batch))

    def picture(recipe, path):
        preprocess.decode(path, path, recipe)

    found: dict[str, Callable[[], float]] = {}
    for name, decode in decoders(args.resolution).items():
        found[name] = functools.partial(plain_rate, decode, files, args.threads)
    found[FROM_FILES] = functools.partial(
        plain_rate, read_halved(args.resolution), paths, args.threads
    )
    for key, method in (("full_jpeg", "scaled"), ("full_jpeg_exact", "exact")):
        work = functools.partial(picture, preprocess.Recipe(args.resolution, decode=method))
        found[f"{key} picture"] = functools.partial(plain_rate, work, paths, args.threads)
        found[key] = loading("folder", photos, method, _PHOTO_PASSES)
    found |= readers(prepared["folder"], _PREPARED_PASSES, args.threads)
    where = prepared["data_name"], prepared["data_dir"]
    found["prepared"] = loading(*where, "exact", _PREPARED_PASSES)
    return found


def measure(args: argparse.Namespace, folder: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything; what it needs on disk is made in `folder`.

    Returns:
      What is printed as JSON.

    Raises:
      ConfigError: if the photos cannot be used.
    """
    busy = os.getloadavg()[0]
    photos = os.path.join(folder, "photos")
    described = lay_out_photos(photos, args.photos, args.images)
    log(f"{described}\npreparing them at {args.resolution} px ...")
    known = measurements(args, os.path.join(folder, "data"), photos)
    numbers = args.resolution, args.batch, args.threads, args.images * _PHOTO_PASSES
    rounds: dict[str, list[float]] = {}
    with tensorflow_rates(photos, *numbers) as tensorflow_rate:
        for name in (*TENSORFLOW_FULL, *TENSORFLOW_SCALED, TF_DATA):
            known[name] = functools.partial(tensorflow_rate, name)
        for i in range(args.repeats + 1):
            log(f"round {i} of {args.repeats} ..." if i else "warming up ...")
            for name, rate in known.items():
                found = rate()
                if i:
                    rounds.setdefault(name, []).append(found)
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    setting = {k: v for k, v in vars(args).items() if k != "json"}
    return (
        summary(rounds)
        | {"v3_512": v3_512(), "cpu_count": os.cpu_count(), "load_before": busy}
        | {"versions": {"python": platform.python_version()} | versions}
        | setting
        | {"photos": described}
    )


def summary(rounds: dict[str, list[float]]) -> dict[str, Any]:
    """Holds the loaders against the bounds.

    Args:
      rounds: images per second in every round, of all that was measured.

    Returns:
      `full_jpeg`, `full_jpeg_exact`, `prepared`, `tf_data` and `plain`, the rates of all loops.
    """
    rate = {name: statistics.median(rates) for name, rates in rounds.items()}
    loops = [k for k in rate if k != TF_DATA and k.partition(" ")[0] not in _LOADERS]
    decoding = [k for k in loops if not k.startswith(READER) and k != FROM_FILES]
    full_size = [k for k in decoding if k not in SCALED]
    bounds = {
        "full_jpeg": decoding,
        "full_jpeg_exact": full_size,
        "prepared": [k for k in loops if k.startswith(READER) and k != UNDECODED],
    }

    def against(key, other):
        ratios = [a / b for a, b in zip(rounds[key], rounds[other], strict=True)]
        return statistics.median(ratios), ratios

    found: dict[str, Any] = {}
    for key, names in bounds.items():
        bound = max(names, key=rate.__getitem__)
        ratio, ratios = against(key, bound)
        found[key] = {
            "images_per_second": rate[key],
            "decode_bound": {"by": bound, "images_per_second": rate[bound]},
            "ratio_to_decode_bound": ratio,
            "ratio_in_rounds": ratios,
        }
        if key == "prepared":
            found[key]["ratio_to_undecoded"] = against(key, UNDECODED)[0]
        else:
            if key == "full_jpeg":
                best = max(full_size, key=rate.__getitem__)
                found[key]["ratio_to_full_size_bound"] = against(key, best)[0]
                found[key]["ratio_to_decoding_from_files"] = against(key, FROM_FILES)[0]
            picture = f"{key} picture"
            found[key]["picture_bound"] = {"images_per_second": rate[picture]}
            found[key]["ratio_to_picture_bound"] = against(key, picture)[0]
            found[key]["ratio_to_tf_data"] = against(key, TF_DATA)[0]
    found["tf_data"] = {"images_per_second": rate[TF_DATA]}
    return found | {"plain": {name: rate[name] for name in loops}}


def v3_512() -> dict[str, Any]:
    """Returns what a step of BigGAN-128 on a v3-512 asks of each host."""
    images = _BATCH * _D_STEPS
    return {
        "hosts": _HOSTS,
        "real_images_per_step": images,
        "images_per_second_per_host": {
            f"{ms}_ms": images / _HOSTS / (ms / 1000) for ms in _STEP_MS
        },
    }


def text(found: dict[str, Any]) -> str:
    """Returns the result for people."""
    lines = [
        f"images/s on {found['threads']} threads, medians of {found['repeats']} rounds; the"
        f" machine's load before was {found['load_before']:.1f} on {found['cpu_count']} cores"
    ]
    lines += [f"  {name:28}{rate:10,.0f}" for name, rate in found["plain"].items()]
    lines.append(f"  {TF_DATA:28}{found['tf_data']['images_per_second']:10,.0f}")
    for key in _LOADERS:
        one = found[key]
        line = (
            f"  {'loader, ' + key:28}{one['images_per_second']:10,.0f}"
            f"   {one['ratio_to_decode_bound']:.2f} of {one['decode_bound']['by']}"
        )
        if key == "full_jpeg":
            line += (
                f", {one['ratio_to_decoding_from_files']:.2f} of the same from files,"
                f" {one['ratio_to_full_size_bound']:.2f} of the full-size bound"
            )
        if key == "prepared":
            line += f", {one['ratio_to_undecoded']:.2f} of {UNDECODED}"
        else:
            line += (
                f", {one['ratio_to_picture_bound']:.2f} of the picture bound"
                f" ({one['picture_bound']['images_per_second']:,.0f}),"
                f" {one['ratio_to_tf_data']:.2f} of tf.data"
            )
        lines.append(line)
    asked = found["v3_512"]
    at_32, at_80, at_120 = asked["images_per_second_per_host"].values()
    lines.append(
        f"A step of BigGAN-128 on a v3-512 takes {asked['real_images_per_step']:,} real images"
        f" (batch {_BATCH:,}, {_D_STEPS} D updates), so each of its {_HOSTS} hosts must load"
        f" {at_32:,.0f} images/s at {_STEP_MS[0]} ms a step, which is its FLOPs at the peak rate,"
        f" {at_80:,.0f} at {_STEP_MS[1]} ms and {at_120:,.0f} at {_STEP_MS[2]} ms."
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--photos", help="folder of .jpg files; default: made of two photos")
    parser.add_argument("--resolution", type=int, default=128, choices=config_lib.RESOLUTIONS)
    parser.add_argument("--images", type=int, default=512, help="JPEGs in the data set")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, help="and cores; default: as many as the loader has")
    parser.add_argument("--repeats", type=int, default=8, help="rounds")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    if args.threads is None:
        args.threads = prefetch.threads()
    if args.images < 2:
        parser.error(f"--images={args.images}: must be at least 2, one a class.")
    for name in ("batch", "threads", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name}={getattr(args, name)}: must be at least 1.")
    if args.photos is None and args.images > _DIFFERENT:
        parser.error(f"--images={args.images}: must be at most {_DIFFERENT} without --photos.")
    if args.threads > prefetch.threads():
        parser.error(f"--threads={args.threads}: the loader has at most {prefetch.threads()} here.")
    try:
        with (
            confined(args.threads),
            tempfile.TemporaryDirectory(prefix="biggan-input-") as folder,
        ):
            found = measure(args, folder, (lambda line: None) if args.json else print)
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    print(json.dumps(found) if args.json else text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
