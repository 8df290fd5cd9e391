"""`biggan prepare`: pictures made square once, written as a TFDS data set.

Work is cut into shards, each made by one process and put in place whole, in a folder beside the
data set's. Started again after any end, only the shards that are missing are made; the folder gets
the data set's name when all is there.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from biggan_jax import files, host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data.pictures import Collection, Folder, Tfds

_SUFFIX = ".preparing"
_PLAN = "plan.json"
_LOCK = "lock"


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
      dataset: "imagenet2012", another TFDS name, or "folder:PATH".
      resolution: pixels of a side.
      data_dir: TFDS data directory to write to; None for TFDS's own default.
      manual_dir: where ImageNet's tars are.
      resize: as in `preprocess.Recipe`.
      splits: those wanted; () for all.
      name: of the data set to be made; None for one derived from `dataset`.
      skip_errors: leave out pictures that cannot be used, rather than stop.
      processes: how many work; None for one a core.
    """

    dataset: str
    resolution: int
    data_dir: str | None = None
    manual_dir: str | None = None
    resize: str = "area"
    splits: tuple[str, ...] = ()
    name: str | None = None
    skip_errors: bool = False
    processes: int | None = None


def builder_for(request: Request, collection: Collection | None) -> Any:
    """Returns the TFDS builder of the data set to be made.

    Args:
      request: which.
      collection: its pictures; None if only its place on disk is wanted.

    Raises:
      ConfigError: if the name is none that TFDS takes, or the size is not to be had.
    """
    import tensorflow_datasets as tfds

    from biggan_jax.data import prepared_builder

    name = request.name or default_name(request.dataset)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"--name={name}: must be small letters, digits and _, a letter first.")
    if request.resolution < 1:
        raise ConfigError(f"--resolution={request.resolution}: must be at least 1.")
    config = prepared_builder.make_config(
        request.resolution,
        request.resize,
        collection=collection or _NoPictures(),
        splits=request.splits,
        skip_errors=request.skip_errors,
    )
    # TFDS takes a data set's name from the class.
    with tfds.core.registered.skip_registration():
        kind = type(name, (prepared_builder.Prepared,), {"BUILDER_CONFIGS": [config]})
    data_dir = os.path.expanduser(request.data_dir) if request.data_dir else None
    return kind(data_dir=data_dir, config=config.name, file_format="array_record")


def default_name(dataset: str) -> str:
    """Returns what the prepared set is called: "biggan_" and the source's name."""
    if dataset == "imagenet2012":
        return "biggan_imagenet"
    if dataset.startswith("folder:"):
        dataset = os.path.basename(os.path.abspath(os.path.expanduser(dataset[7:])))
    return "biggan_" + re.sub(r"[^a-z0-9]+", "_", dataset.lower()).strip("_")


def prepare(request: Request, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Makes the data set, going on where an earlier start stopped.

    Args:
      request: what.
      log: gets lines for people.

    Returns:
      The manifest, and `folder`, `data_name` and `data_dir` to train with.

    Raises:
      ConfigError: if the source or the place cannot be used, a picture is bad (unless those are
        skipped), the disk is full, or another process is at it. What was done is kept.
    """
    from biggan_jax.data import prepared_builder

    host_tensorflow.silence()
    folder = str(builder_for(request, None).data_path)
    files.check_folder(folder, "--data-dir")
    if os.path.exists(os.path.join(folder, "dataset_info.json")):
        manifest = read_manifest(folder)
        if manifest["resize"] != request.resize:
            raise ConfigError(
                f"--resize={request.resize}: {folder} is prepared with {manifest['resize']}"
                " already; choose another --name or --data-dir."
            )
        log(f"{folder} is prepared already")
        return _result(manifest, folder, request)
    staging = folder + _SUFFIX
    os.makedirs(staging, exist_ok=True)
    with _locked(staging), _speaking_of_the_disk(staging):
        log(f"looking for the pictures of {request.dataset} ...")
        collection = open_collection(request)
        builder = builder_for(request, collection)
        shards = builder.shards(os.path.join(staging, prepared_builder.NOTES), collection)
        _check_plan(staging, request, collection)
        log(_overview(shards, collection, request.resolution, staging))
        _make(builder, shards, staging, request.processes or os.cpu_count() or 1)
        log("writing what TFDS wants to know of it ...")
        manifest = _finish(builder, shards, collection, staging)
        os.rename(staging, folder)
    shutil.rmtree(os.path.join(folder, prepared_builder.NOTES))
    return _result(manifest, folder, request)


def read_manifest(folder: str) -> dict[str, Any]:
    """Returns the manifest of a prepared data set.

    Raises:
      ConfigError: if there is none.
    """
    from biggan_jax.data.prepared_builder import MANIFEST

    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, json.JSONDecodeError) as e:
        raise ConfigError(f"{folder}: is no data set made by biggan prepare: {e}.") from e


def open_collection(request: Request) -> Collection:
    """Finds the pictures; a TFDS data set that is not on disk is prepared by TFDS first.

    Raises:
      ConfigError: if there are none, or not as they must be.
    """
    from biggan_jax.data import tfds_source

    if request.dataset.startswith("folder:"):
        return Folder(request.dataset[7:])
    data_dir = os.path.expanduser(request.data_dir) if request.data_dir else None
    if request.dataset == "imagenet2012":
        from biggan_jax.data.imagenet_tars import ImageNetTars

        if request.manual_dir:
            return ImageNetTars(os.path.expanduser(request.manual_dir))
        if not tfds_source.is_prepared(tfds_source.open_builder("imagenet2012", data_dir)):
            raise ConfigError(
                "--manual-dir: say which folder holds ImageNet's two tar files, or name a"
                " --data-dir in which TFDS has prepared imagenet2012."
            )
    builder = tfds_source.prepared_builder(request.dataset, data_dir)
    keys = tfds_source.image_and_label(request.dataset, builder.info)
    return Tfds(builder, *keys)


class _NoPictures(Collection):
    """Stands for pictures not looked for yet."""

    class_names = ("none",)
    splits = {}  # noqa: RUF012
    identity = {}  # noqa: RUF012

    def run(self, split, start, stop):
        raise KeyError(split)  # There are none.


def _result(manifest, folder, request):
    name = request.name or default_name(request.dataset)
    root = os.path.dirname(os.path.dirname(os.path.dirname(folder)))
    data_name = f"{name}/{request.resolution}"
    return {**manifest, "folder": folder, "data_name": data_name, "data_dir": root}


@contextlib.contextmanager
def _locked(staging):
    with open(os.path.join(staging, _LOCK), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{staging}: another process is preparing this data set.") from None
        yield


@contextlib.contextmanager
def _speaking_of_the_disk(staging):
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"{staging}: cannot be written to: {e.strerror or e}; what was done is kept, and the"
            " same command goes on with it."
        ) from e


def _check_plan(staging, request, collection):
    plan = {
        "source": dict(collection.identity),
        "pictures": dict(collection.splits),
        "classes": len(collection.class_names),
        "splits": list(request.splits),
        "resize": request.resize,
    }
    path = os.path.join(staging, _PLAN)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            before = json.load(f)
        plan = json.loads(json.dumps(plan))
        changed = [k for k in plan if plan[k] != before.get(k)]
        if changed:
            raise ConfigError(
                f"{staging}: was begun with {changed[0]}={before.get(changed[0])!r}, and now it is"
                f" {plan[changed[0]]!r}; give the same command as then, or remove that folder."
            )
        return
    files.write_whole(path, json.dumps(plan, indent=1) + "\n")


def _overview(shards, collection, resolution, staging):
    counts = {split: sum(len(s.run) for s in parts) for split, parts in shards.items()}
    need = sum(counts.values()) * resolution**2 * 3
    free = shutil.disk_usage(staging).free
    text = (
        f"{', '.join(f'{k}: {v:,} pictures' for k, v in counts.items())} in"
        f" {len(collection.class_names):,} classes; up to {_size(need)} on disk"
    )
    if free < need:
        text += f", where {_size(free)} are free"
    return text


def _size(count):
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def text(facts: dict[str, Any]) -> str:
    """Returns what was made as lines for people."""
    lines = []
    for split, made in facts["splits"].items():
        classes = sum(1 for n in made["labels"] if n)
        line = f"{split}: {made['records']:,} images of {classes:,} classes"
        if made["skipped"]:
            line += f"; {made['skipped']:,} skipped"
        if made["altered"]:
            line += "; " + ", ".join(f"{v:,} {k}" for k, v in made["altered"].items())
        lines.append(line)
    lines += [
        f"the data set is in {facts['folder']} (records.jsonl names what was skipped or altered)",
        f"train on it with --config.data.name={facts['data_name']}"
        f" --config.data.dir={facts['data_dir']}",
    ]
    return "\n".join(lines)


# --- The work, spread over processes ---------------------------------------------------------


def _make(builder, shards, staging, processes):
    """Makes the shards that are missing."""
    todo = [
        s for parts in shards.values() for s in parts if not _is_made(builder, s, shards, staging)
    ]
    total = sum(len(s.run) for parts in shards.values() for s in parts)
    left = sum(len(s.run) for s in todo)
    with _progress(total, total - left) as (done, bar):
        if not todo:
            return
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(
            min(processes, len(todo)), context, _start_worker, (done, os.getpid())
        )
        try:
            waiting = {
                pool.submit(
                    _make_shard, s, _place(builder, s, shards, staging), builder.info.features
                )
                for s in todo
            }
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                bar()
                for future in finished:
                    future.result()
        except BrokenProcessPool:
            raise ConfigError(
                f"{staging}: a working process was killed (out of memory?); what was done is kept;"
                " the same command goes on with it, --processes=N uses fewer."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _place(builder, shard, shards, staging):
    name = f"{builder.name}-{shard.split}.array_record"
    return os.path.join(staging, f"{name}-{shard.number:05d}-of-{len(shards[shard.split]):05d}")


def _is_made(builder, shard, shards, staging):
    # The note is written before the shard gets its name.
    return os.path.exists(_place(builder, shard, shards, staging)) and os.path.exists(shard.note)


_done: Any = None  # In a working process: the counter shared with the one that shows progress.


def _start_worker(done, parent):
    global _done
    _done = done
    host_tensorflow.silence()

    def leave_with_parent():
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _make_shard(shard, path, features):
    from tensorflow_datasets.core import example_serializer, file_adapters, writer
    from tensorflow_datasets.proto import tf_example_pb2

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def records():
        for key, example in shard():
            data = serializer.serialize_example(features.encode_example(example))
            # The order of the features within a record would differ from process to process.
            record = tf_example_pb2.Example.FromString(data)
            yield key, record.SerializeToString(deterministic=True)
            with _done.get_lock():
                _done.value += 1

    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        writer.ExampleWriter(file_adapters.FileFormat.ARRAY_RECORD).write(temporary, records())
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def _progress(total: int, already: int) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A counter for the processes, and what shows how far it has come."""
    from tqdm import tqdm

    done = multiprocessing.get_context("spawn").Value(ctypes.c_long, 0)
    with tqdm(
        total=total, initial=already, unit="img", desc="preparing", file=sys.stderr, mininterval=1
    ) as bar:

        def show():
            bar.update(already + done.value - bar.n)

        yield done, show
        show()


def _finish(builder, shards, collection, staging):
    import tensorflow_datasets as tfds

    from biggan_jax.data import prepared_builder

    manifest = prepared_builder.write_manifest(builder, staging, shards, collection.identity)
    infos = []
    for split, parts in shards.items():
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[s["records"] for s in manifest["splits"][split]["shards"]],
                num_bytes=sum(os.path.getsize(_place(builder, s, shards, staging)) for s in parts),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=builder.data_path,
                    dataset_name=builder.name,
                    split=split,
                    filetype_suffix="array_record",
                ),
            )
        )
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    for leftover in os.listdir(staging):
        if leftover.endswith(".tmp"):
            os.remove(os.path.join(staging, leftover))
    builder.info.write_to_directory(staging)
    os.remove(os.path.join(staging, _PLAN))
    os.remove(os.path.join(staging, _LOCK))
    return manifest
