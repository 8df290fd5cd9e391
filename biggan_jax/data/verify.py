"""`biggan prepare --verify`: every record of a prepared data set, read and held to its manifest."""

import hashlib
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data.prepare import read_manifest


def verify(folder: str, processes: int | None = None) -> dict[str, Any]:
    """Reads a whole data set: counts, hashes, labels, sizes of images, and what TFDS was told.

    Args:
      folder: of the data set, with its manifest.
      processes: how many read; None for one a core.

    Returns:
      `records` and `shards` (numbers), `problems` (sentences; none if all is well).

    Raises:
      ConfigError: if there is no manifest.
    """
    from tqdm import tqdm

    manifest = read_manifest(folder)
    problems = _disagreements(folder, manifest)
    name = os.path.basename(os.path.dirname(os.path.dirname(os.path.abspath(folder))))
    jobs = []
    for split, facts in manifest["splits"].items():
        count = len(facts["shards"])
        for i, shard in enumerate(facts["shards"]):
            path = os.path.join(folder, f"{name}-{split}.array_record-{i:05d}-of-{count:05d}")
            jobs.append((path, split, shard, manifest["resolution"], len(facts["labels"])))
    total = sum(shard["records"] for _, _, shard, *_ in jobs)
    labels = {split: [0] * len(facts["labels"]) for split, facts in manifest["splits"].items()}
    workers = min(processes or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context, host_tensorflow.silence) as pool,
        tqdm(total=total, unit="img", desc="verifying", file=sys.stderr, mininterval=1) as bar,
    ):
        futures = {pool.submit(_check_shard, *job): job for job in jobs}
        found = {}
        for future in as_completed(futures):
            path, split, shard, *_ = futures[future]
            found[path], counts = future.result()
            for label, count in counts.items():
                labels[split][label] += count
            bar.update(shard["records"])
    problems += [problem for path in sorted(found) for problem in found[path]]
    for split, facts in manifest["splits"].items():
        if not problems and labels[split] != facts["labels"]:
            problems.append(f"split {split!r}: its images a class are not those of the manifest.")
    return {"records": total, "shards": len(jobs), "problems": problems}


def _disagreements(folder, manifest):
    """Where TFDS's own description says otherwise than the manifest."""
    try:
        with open(os.path.join(folder, "dataset_info.json"), encoding="utf-8") as f:
            info = json.load(f)
    except (OSError, json.JSONDecodeError) as e:
        raise ConfigError(f"{folder}: has no readable dataset_info.json: {e}.") from e
    told = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
    wanted = {k: [s["records"] for s in v["shards"]] for k, v in manifest["splits"].items()}
    if told != wanted:
        return [f"{folder}: dataset_info.json has other splits or lengths than the manifest."]
    return []


def _check_shard(path, split, shard, resolution, num_classes):
    """Returns the problems of one shard, and how many images each label has."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    from biggan_jax.data.prepared_builder import digest

    name = os.path.basename(path)
    whole = hashlib.sha256()
    counts: dict[int, int] = {}
    # ArrayRecord's reader and protobuf raise whatever a broken file led them to.
    try:
        reader = array_record_module.ArrayRecordReader(path)
        number = reader.num_records()
        for i in range(number):
            example = tf_example_pb2.Example.FromString(reader.read([i])[0])
            feature = example.features.feature
            label = feature["label"].int64_list.value[0]
            file_name = feature["file_name"].bytes_list.value[0].decode()
            pixels = feature["image"].bytes_list.value[0]
            if len(pixels) != 3 * resolution**2:
                return [f"{name}: record {i} has {len(pixels)} bytes of pixels."], {}
            if not 0 <= label < num_classes:
                return [f"{name}: record {i} has the label {label}."], {}
            whole.update(digest(file_name, label, pixels))
            counts[label] = counts.get(label, 0) + 1
        reader.close()
    except Exception as e:
        reason = " ".join(str(e).split())[:200] or type(e).__name__
        return [f"{name}: cannot be read: {reason}"], {}
    if number != shard["records"]:
        return [f"{name}: holds {number} records, not {shard['records']}."], {}
    if whole.hexdigest() != shard["sha256"]:
        return [f"{name}: its records are not those that were written (SHA-256 differs)."], {}
    return [], counts


def text(facts: dict[str, Any]) -> str:
    """Returns the outcome as lines for people."""
    looked = f"{facts['records']:,} records in {facts['shards']:,} shards"
    if not facts["problems"]:
        return f"{looked}: counts, hashes and labels are those that were written"
    return "\n".join([f"{looked}; problems:", *facts["problems"]])
