"""One split of a TFDS data set: preparing it at need, then random access to its ArrayRecord files.

Preparing pulls in TensorFlow, reading does not.
"""

import contextlib
import difflib
import sys

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess
from biggan_jax.data.source import Source

COUNT_ALL_UP_TO = 200_000  # Records. Reading every label of more would delay the start by minutes.

# TFDS tries ten times, which takes 204 s without a network; five times take 6 s.
_DOWNLOAD_RETRIES = 5


class TfdsSource(Source):
    """One split of a TFDS data set with an image and a class label a record."""

    def __init__(self, name: str, directory: str | None, split: str, recipe: preprocess.Recipe):
        builder = _prepared_builder(name, directory)
        image_key, label_key = _image_and_label(name, builder.info)
        self._records = _open_split(name, builder, split, image_key)
        label_feature = builder.info.features[label_key]
        super().__init__(name, split, str(builder.data_path), label_feature.names, recipe)
        self._image_key, self._label_key = image_key, label_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        record = self._records[i]
        where = f"record {i} of data.name={self.name!r}, split {self.split!r},"
        # Decoded here and not by TFDS, which takes OpenCV where it is installed, and else Pillow:
        # pixels must not depend on that.
        image = preprocess.decode(record[self._image_key], where, self.recipe)
        return image, int(record[self._label_key])

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        return int(self._records[i][self._label_key])

    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32; None if there are over 200,000."""
        if len(self) > COUNT_ALL_UP_TO:
            return None
        return self._read_labels(range(len(self)))


def _prepared_builder(name, directory):
    builder = _builder(name, directory)
    if not _is_prepared(builder):
        # Asked before, since preparing may mean to download many gigabytes.
        _image_and_label(name, builder.info)
        _prepare(name, directory, builder)
        # A fresh one: `builder` knows nothing of a copy that another process finished meanwhile.
        builder = _builder(name, directory)
    formats = {f.value for f in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise ConfigError(
            f"data.name={name!r}: the copy in {builder.data_path} is stored as"
            f" {', '.join(sorted(formats))}, but random access needs array_record; set data.dir to"
            " another folder to have it prepared there."
        )
    return builder


def _is_prepared(builder):
    # `builder.is_prepared()` says the same, but logs a warning where the answer is no.
    return (builder.data_path / "dataset_info.json").exists()


def _builder(name, directory):
    import tensorflow_datasets as tfds

    if name.partition(":")[0] == "digits":
        from biggan_jax.data import digits_builder  # noqa: F401  Registers the builder.
    try:
        return tfds.builder(name, data_dir=directory)
    except tfds.core.DatasetNotFoundError:
        known = ["digits", "folder", *tfds.list_builders(with_community_datasets=False)]
        raise ConfigError(
            f"data.name={name!r}: neither 'digits' nor 'folder' nor a data set TFDS knows"
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
        if _is_prepared(builder):
            return
        raise ConfigError(
            f"data.name={name!r}: TFDS could not prepare it in {builder.data_path}"
            f"{_network_hint(e)}: {_reason(e)}"
        ) from e
    finally:
        downloader.MAX_RETRIES = retries
    if not _is_prepared(builder):
        raise ConfigError(
            f"data.name={name!r}: {builder.data_path} exists but is not a data set TFDS prepared;"
            " remove it or set data.dir to another folder."
        )


def _image_and_label(name, info):
    import tensorflow_datasets as tfds

    features = info.features
    pairs = []
    if isinstance(features, tfds.features.FeaturesDict):
        keys = list(features)
        if info.supervised_keys and len(info.supervised_keys) == 2:
            pairs.append(info.supervised_keys)
        pairs.append(("image", "label"))
        # An image of floats is stored as a PNG whose four channels are the bytes of a float.
        images = [
            k
            for k in keys
            if isinstance(features[k], tfds.features.Image)
            and features[k].np_dtype in (np.uint8, np.uint16)
        ]
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


def _open_split(name, builder, split, image_key):
    import tensorflow_datasets as tfds

    splits = dict(builder.info.splits)
    try:
        records = builder.as_data_source(
            split, decoders={image_key: tfds.decode.SkipDecoding()}, file_format="array_record"
        )
    except ValueError as e:
        raise ConfigError(
            f"data.split={split!r}: data.name={name!r} has no such split or it is empty; it has"
            f" {', '.join(f'{k} ({v.num_examples} images)' for k, v in splits.items())}"
            f"{_nearest(split, splits)}."
        ) from e
    if len(records) == 0:
        raise ConfigError(f"data.split={split!r}: holds no images of data.name={name!r}.")
    return records


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
