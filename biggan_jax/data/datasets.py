"""Where images come from: the embedded digits, a folder, or any image data set TFDS can prepare.

All of them become a `Source`: records by number, in any order, from any thread. TFDS data sets are
read from ArrayRecord files, which allow that; reading them needs no TensorFlow, only preparing
them does.
"""

import abc
import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from biggan_jax import host_tensorflow
from biggan_jax.config import ConfigError
from biggan_jax.data import preprocess

COUNT_ALL_UP_TO = 200_000  # Records. Reading every label of more would delay the start by minutes.
LABEL_SAMPLE = 50_000

# TFDS tries ten times, which takes 204 s without a network; five times take 6 s.
_DOWNLOAD_RETRIES = 5


class Source(abc.ABC):
    """Random access to labelled images; safe to read from several threads.

    Attributes:
      name: `data.name` of the config.
      split: `data.split` of the config.
      where: the folder that holds the data, for messages.
      class_names: one for each label, in the order of the labels.
      resolution: pixels of a side of every image.
    """

    def __init__(
        self, name: str, split: str, where: str, class_names: Sequence[str], resolution: int
    ):
        self.name = name
        self.split = split
        self.where = where
        self.class_names = tuple(class_names)
        self.resolution = resolution
        self._label_sample: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes the data set knows, whether or not this split has images of each."""
        return len(self.class_names)

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        """Returns record `i`: image `[R, R, 3]` uint8, and its label.

        Raises:
          ConfigError: if the record cannot be read as an image.
        """

    @abc.abstractmethod
    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""

    @abc.abstractmethod
    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32, or None where that takes too long."""

    def label_sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (record numbers, their labels): of all, or of 50,000 evenly spaced ones."""
        if self._label_sample is None:
            labels = self.labels()
            if labels is None:
                chosen = evenly_spaced(len(self), LABEL_SAMPLE)
                self._label_sample = chosen, self._read_labels(chosen)
            else:
                self._label_sample = np.arange(len(self)), labels
        return self._label_sample

    def _read_labels(self, records):
        return np.array([self.label(int(i)) for i in records], np.int32)


def open_source(config: Any) -> Source:
    """Opens the data set a resolved config names, preparing it first where TFDS has to.

    Args:
      config: as `config.resolve` gives it; `data.name`, `data.dir`, `data.split`, `data.classes`,
        `data.resize` and `model.resolution` are read.

    Raises:
      ConfigError: if there is no such data set, split, folder or class, it holds no labelled
        images, or it cannot be prepared.
    """
    data = config.data
    directory = os.path.expanduser(data.dir) if data.dir else None
    source: Source
    if data.name == "folder":
        source = FolderSource(directory, data.split, config.model.resolution, data.resize)
    else:
        source = TfdsSource(data.name, directory, data.split, config.model.resolution, data.resize)
    return ClassesSource(source, tuple(data.classes)) if data.classes else source


def evenly_spaced(length: int, count: int) -> np.ndarray:
    """Returns at most `count` of the numbers 0..length - 1, evenly spaced, `[count]` int64."""
    if length <= count:
        return np.arange(length)
    return np.arange(count) * length // count


class FolderSource(Source):
    """A folder with one sub-folder a class, each holding pictures in any format Pillow reads.

    Classes are the sub-folders sorted by name, records the pictures sorted by class and name.
    Hidden entries and files whose ending belongs to no picture format are passed over.
    """

    def __init__(self, directory: str | None, split: str, resolution: int, resize: str):
        if directory is None:
            raise ConfigError(
                "data.dir is not set: data.name='folder' needs the folder that holds one"
                " sub-folder of pictures a class."
            )
        if not os.path.isdir(directory):
            raise ConfigError(f"data.dir={directory!r}: there is no such folder.")
        if split != "train":
            raise ConfigError(
                f"data.split={split!r}: a folder has no splits; leave it at 'train' and set"
                " data.dir to the folder of the images meant."
            )
        classes = sorted(e.name for e in _visible(directory) if e.is_dir())
        if not classes:
            raise ConfigError(
                f"data.dir={directory!r}: holds no sub-folders; there must be one for each class."
            )
        super().__init__("folder", split, directory, classes, resolution)
        self._resize = resize
        self._paths: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            paths = _pictures(os.path.join(directory, name))
            self._paths += paths
            labels += [label] * len(paths)
        self._labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        path = self._paths[i]
        return preprocess.decode(path, path, self.resolution, self._resize), int(self._labels[i])

    def label(self, i: int) -> int:
        """Returns the number of the sub-folder record `i` lies in."""
        return int(self._labels[i])

    def labels(self) -> np.ndarray:
        """Returns the labels of all records, `[len]` int32."""
        return self._labels


class TfdsSource(Source):
    """One split of a TFDS data set with an image and a class label a record."""

    def __init__(self, name: str, directory: str | None, split: str, resolution: int, resize: str):
        builder = _prepared_builder(name, directory)
        image_key, label_key = _image_and_label(name, builder.info)
        self._records = _open_split(name, builder, split, image_key)
        label_feature = builder.info.features[label_key]
        super().__init__(name, split, str(builder.data_path), label_feature.names, resolution)
        self._image_key, self._label_key, self._resize = image_key, label_key, resize

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        record = self._records[i]
        where = f"record {i} of data.name={self.name!r}, split {self.split!r},"
        # Decoded here and not by TFDS, which takes OpenCV where it is installed, and else Pillow:
        # pixels must not depend on that.
        image = preprocess.decode(record[self._image_key], where, self.resolution, self._resize)
        return image, int(record[self._label_key])

    def label(self, i: int) -> int:
        """Returns the label of record `i` without decoding the image."""
        return int(self._records[i][self._label_key])

    def labels(self) -> np.ndarray | None:
        """Returns the labels of all records, `[len]` int32; None if there are over 200,000."""
        if len(self) > COUNT_ALL_UP_TO:
            return None
        return self._read_labels(range(len(self)))


class ClassesSource(Source):
    """Some classes of a data set, numbered anew in the order they are named.

    Finding their records takes every label: of a TFDS data set as large as ImageNet, minutes.
    """

    def __init__(self, source: Source, classes: tuple[int, ...]):
        """Takes the numbers that the classes have in `source`.

        Raises:
          ConfigError: if one is no class or named twice, or none of them has images.
        """
        for i, number in enumerate(classes):
            if type(number) is not int or not 0 <= number < source.num_classes:
                raise ConfigError(
                    f"data.classes={classes}: {number!r} is no class of"
                    f" data.name={source.name!r}, which has 0 to {source.num_classes - 1}."
                )
            if number in classes[:i]:
                raise ConfigError(f"data.classes={classes}: {number} is named twice.")
        names = [source.class_names[number] for number in classes]
        super().__init__(source.name, source.split, source.where, names, source.resolution)
        self._source = source
        labels = source.labels()
        if labels is None:
            labels = source._read_labels(range(len(source)))
        self._records = np.flatnonzero(np.isin(labels, classes))
        self._labels = np.array([classes.index(k) for k in labels[self._records]], np.int32)
        if not len(self._records):
            raise ConfigError(
                f"data.classes={classes}: split {source.split!r} of data.name={source.name!r} has"
                " no images of these classes."
            )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        image, _ = self._source[int(self._records[i])]
        return image, int(self._labels[i])

    def label(self, i: int) -> int:
        """Returns the new label of record `i`."""
        return int(self._labels[i])

    def labels(self) -> np.ndarray:
        """Returns the new labels of all records, `[len]` int32."""
        return self._labels


def _visible(directory):
    with os.scandir(directory) as entries:
        return [e for e in entries if not e.name.startswith(".")]


def _pictures(directory):
    from PIL import Image

    endings = Image.registered_extensions()
    files = [
        e
        for e in _visible(directory)
        if e.is_file() and os.path.splitext(e.name)[1].lower() in endings
    ]
    if not files:
        raise ConfigError(
            f"{directory} holds no pictures, though every sub-folder of data.dir is a class;"
            " remove it or fill it."
        )
    for entry in files:
        # Found here because it costs little; else training would stop at such a file, hours in.
        if entry.stat().st_size == 0:
            raise ConfigError(f"{entry.path} is not a picture: it is an empty file.")
    return sorted(e.path for e in files)


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
