"""Which files a split of a TFDS data set means, and what is in them; they are made at need.

Preparing pulls in TensorFlow, opening what is prepared does not.
"""

import contextlib
import difflib
import sys
from typing import Any

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data.array_record import ArrayRecordSource
from biggan_jax.data.examples import Examples
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.shards import Shards
from biggan_jax.data.source import Source
from biggan_jax.data.tfrecord import TfrecordSource

# TFDS tries ten times, which takes 204 s without a network; five times take 6 s.
_DOWNLOAD_RETRIES = 5


def open_split(name: str, directory: str | None, split: str, recipe: Recipe) -> Source:
    """Opens one split of a TFDS data set with an image and a class label a record.

    A set that is not prepared yet is prepared as ArrayRecord files. One that `biggan prepare` made
    is known by its features: its images are bare bytes.

    Args:
      name: what `tfds.builder` takes, or "digits".
      directory: TFDS's `data_dir`; None for its default.
      split: a split of the data set, parts and sums of splits (`train[:50%]+test`).
      recipe: how pictures become images.

    Raises:
      ConfigError: if there is no such data set or split, it cannot be prepared or is stored in
        files of another kind than ArrayRecord and TFRecord, or lacks images or labels.
    """
    builder = prepared_builder(name, directory)
    info = builder.info
    image_key, label_key = image_and_label(name, info, bare=True)
    names = info.features[label_key].names
    bare = not _is_encoded(info.features[image_key])
    pixels = info.features[image_key].shape[0] if bare else None
    examples = Examples(image_key, label_key, len(names), pixels, recipe)
    chosen = _open_split(name, info, split)
    shards = Shards((f.filename, f.skip, f.take) for f in chosen.file_instructions)
    kind = TfrecordSource if info.file_format.value == "tfrecord" else ArrayRecordSource
    return kind(name, split, str(builder.data_path), tuple(names), shards, examples)


def prepared_builder(name: str, directory: str | None) -> Any:
    """Returns the TFDS builder of a data set that is on disk, prepared here if it was not.

    Raises:
      ConfigError: see `open_split`.
    """
    builder = open_builder(name, directory)
    if not is_prepared(builder):
        # Asked before, since preparing may mean to download many gigabytes.
        image_and_label(name, builder.info)
        _prepare(name, directory, builder)
        # A fresh one: `builder` knows nothing of a copy that another process finished meanwhile.
        builder = open_builder(name, directory)
    formats = {f.value: f for f in builder.info.available_file_formats()}
    for wanted in ("array_record", "tfrecord"):
        if wanted in formats:
            # A data set may lie there in several formats.
            builder.info.set_file_format(
                formats[wanted], override=True, override_if_initialized=True
            )
            return builder
    raise ConfigError(
        f"data.name={name!r}: the copy in {builder.data_path} is stored as"
        f" {', '.join(sorted(formats))}, and only array_record and tfrecord are read; set data.dir"
        " to another folder to have it prepared there."
    )


def is_prepared(builder: Any) -> bool:
    """Returns whether a builder's data set is on disk."""
    # `builder.is_prepared()` says the same, but logs a warning where the answer is no.
    return (builder.data_path / "dataset_info.json").exists()


def open_builder(name: str, directory: str | None) -> Any:
    """Returns the TFDS builder of a data set, whether or not it is on disk.

    Raises:
      ConfigError: if TFDS knows none of this name, or cannot open it.
    """
    import tensorflow_datasets as tfds

    if name.partition(":")[0] == "digits":
        from biggan_jax.data import digits_builder  # noqa: F401  Registers the builder.
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError:
        ours = ["digits", "folder", "fake"]
        known = [*ours, *tfds.list_builders(with_community_datasets=False)]
        raise ConfigError(
            f"data.name={name!r}: not 'digits', 'folder' or 'fake', nor a data set TFDS knows"
            f"{_nearest(name, known)}."
        ) from None
    except Exception as e:  # An unknown config or version, a builder that lacks a package, ...
        raise ConfigError(f"data.name={name!r}: TFDS cannot open it: {_reason(e)}") from e


def _prepare(name, directory, builder):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    host_tensorflow.load()
    if name.partition(":")[0] == "digits":
        tfds.disable_progress_bar()  # Nothing is downloaded and it takes a second.
    retries = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = _DOWNLOAD_RETRIES
    try:
        # TFDS prints to stdout, which may be a pipe that expects JSON.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except Exception as e:
        # TFDS writes aside and renames at the end. Of two processes that prepare the same data set
        # the later one fails at the rename, and finds a good copy in place.
        if is_prepared(builder):
            return
        raise ConfigError(
            f"data.name={name!r}: TFDS could not prepare it in {builder.data_path}"
            f"{_network_hint(e)}: {_reason(e)}"
        ) from e
    finally:
        downloader.MAX_RETRIES = retries
    if not is_prepared(builder):
        raise ConfigError(
            f"data.name={name!r}: {builder.data_path} exists but is not a data set TFDS prepared;"
            " remove it or set data.dir to another folder."
        )


def image_and_label(name: str, info: Any, bare: bool = False) -> tuple[str, str]:
    """Returns the names of both features of a data set.

    Args:
      name: of the data set, for messages.
      info: its TFDS info.
      bare: whether an image may be stored as bare bytes.

    Raises:
      ConfigError: if it has not one of each, or several and none is called so.
    """
    import tensorflow_datasets as tfds

    features = info.features
    pairs = []
    if isinstance(features, tfds.features.FeaturesDict):
        keys = list(features)
        if info.supervised_keys and len(info.supervised_keys) == 2:
            pairs.append(info.supervised_keys)
        pairs.append(("image", "label"))
        images = [k for k in keys if _is_encoded(features[k]) or (bare and _is_bare(features[k]))]
        labels = [
            k
            for k in keys
            if isinstance(features[k], tfds.features.ClassLabel) and features[k].num_classes
        ]
        if len(images) == len(labels) == 1:
            pairs.append((images[0], labels[0]))
        for image, label in pairs:
            if image in images and label in labels:
                return image, label
        found = ", ".join(f"{k} ({type(features[k]).__name__})" for k in keys)
    else:
        found = type(features).__name__
    raise ConfigError(
        f"data.name={name!r}: needs one image and one class label a record, but its features are:"
        f" {found}."
    )


def _is_encoded(feature):
    import tensorflow_datasets as tfds

    # An image of floats is stored as a PNG whose four channels are the bytes of a float.
    return isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)


def _is_bare(feature):
    import tensorflow_datasets as tfds

    if type(feature) is not tfds.features.Tensor or feature.np_dtype != np.uint8:
        return False
    shape = feature.shape
    square = len(shape) == 3 and shape[0] is not None and shape == (shape[0], shape[0], 3)
    return square and feature.to_json_content().encoding == tfds.features.Encoding.BYTES.value


def _open_split(name, info, split):
    splits = dict(info.splits)
    try:
        chosen = info.splits[split]
    except ValueError as e:
        raise ConfigError(
            f"data.split={split!r}: data.name={name!r} has no such split; it has"
            f" {', '.join(f'{k} ({v.num_examples} images)' for k, v in splits.items())}"
            f"{_nearest(split, splits)}."
        ) from e
    if not sum(f.take for f in chosen.file_instructions):
        raise ConfigError(f"data.split={split!r}: holds no images of data.name={name!r}.")
    return chosen


def _network_hint(error):
    seen = error
    while seen is not None:
        if isinstance(seen, ConnectionError | TimeoutError) or "Connection" in type(seen).__name__:
            return " (a download failed: is there a network?)"
        seen = seen.__cause__ or seen.__context__
    return ""


def _nearest(word, known):
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {match[0]!r}?" if match else ""


def _reason(error):
    text = " ".join(str(error).split()).rstrip(".:") or type(error).__name__
    return f"{text}." if len(text) <= 500 else f"{text[:497]}..."
