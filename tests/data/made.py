"""Small data sets for the tests: one in memory, TFDS sets of both kinds, and configs for them."""

import os

import numpy as np
import tensorflow_datasets as tfds

from biggan_jax import config as config_lib
from biggan_jax.config import ConfigError
from biggan_jax.data import datasets
from biggan_jax.data.crops import CENTRED
from biggan_jax.data.preprocess import Recipe
from biggan_jax.data.source import Source


class Made(Source):
    """Record i is an image of the value i, modulo 256, with the label i % 3 or the one given."""

    def __init__(
        self, length, resolution=4, broken=(), labels=None, names="abc", cheap=True, split="train"
    ):
        super().__init__("made", split, "memory", names, Recipe(resolution))
        self._length, self._broken, self._cheap = length, broken, cheap
        self._labels = labels
        self.decoded = []
        self.crops = []
        self.asked = []

    def __len__(self):
        return self._length

    def get(self, i, crop):
        if i in self._broken:
            raise ConfigError(f"record {i} is broken.")
        self.decoded.append(i)
        if crop != CENTRED:
            self.crops.append(crop)
        return np.full((self.resolution, self.resolution, 3), i % 256, np.uint8), self._label(i)

    def label(self, i):
        self.asked.append(i)
        return self._label(i)

    def labels(self):
        if not self._cheap:
            return super().labels()
        return np.array([self._label(i) for i in range(self._length)], np.int32)

    def _label(self, i):
        return i % 3 if self._labels is None else int(self._labels[i])


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Record i of a split is a picture of the value 10 i with the label i % 3."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "picture": tfds.features.Image(shape=(None, None, 3)),
                    "kind": tfds.features.ClassLabel(names=["disc", "square", "star"]),
                }
            ),
            supervised_keys=("picture", "kind"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "test": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            picture = np.full((20 + i, 30, 3), 10 * i, np.uint8)
            yield i, {"id": str(i), "picture": picture, "kind": i % 3}


def prepare_shapes(directory, file_format="tfrecord", shards=3):
    """Lets TFDS write TinyShapes; returns the folder of the files."""
    builder = tfds.builder("tiny_shapes", data_dir=str(directory), file_format=file_format)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
    )
    return str(builder.data_path)


class BareBytes(tfds.core.GeneratorBasedBuilder):
    """A description alone; `write_bare` writes the files."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=str(r)) for r in (8, 16, 32)]  # noqa: RUF012

    def _info(self):
        side = int(self.builder_config.name)
        image = tfds.features.Tensor(
            shape=(side, side, 3), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        )
        features = {
            "image": image,
            "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        raise NotImplementedError

    def _generate_examples(self):
        raise NotImplementedError


def bare_images(count, side):
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), np.uint8)


def write_bare(directory, count=50, side=16, shards=3, change=lambda i, example: example):
    """Writes a set as `biggan prepare` lays it out: `bare_images`, record i with the label i % 3.

    Args:
      change: makes of a record's bytes what is written; for damaged records.

    Returns:
      The paths of the shards, and how many records each holds.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    builder = tfds.builder(f"bare_bytes/{side}", data_dir=str(directory))
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    os.makedirs(builder.data_path)
    images = bare_images(count, side)
    paths, lengths = [], []
    for shard, records in enumerate(np.array_split(np.arange(count), shards)):
        name = f"bare_bytes-train.array_record-{shard:05d}-of-{shards:05d}"
        paths.append(os.path.join(builder.data_path, name))
        writer = array_record_module.ArrayRecordWriter(paths[-1], "group_size:1")
        for i in records.tolist():
            example = {"image": images[i], "label": i % 3, "file_name": f"{i}.png"}
            data = serializer.serialize_example(features.encode_example(example))
            writer.write(change(i, data))
        writer.close()
        lengths.append(len(records))
    template = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path,
        dataset_name="bare_bytes",
        split="train",
        filetype_suffix="array_record",
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=images.nbytes, filename_template=template
    )
    builder.info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD, override=True)
    builder.info.set_splits(tfds.core.splits.SplitDict([split]))
    builder.info.write_to_directory(builder.data_path)
    return paths, lengths


def make_config(
    name, directory="", split="train", resolution=32, num_classes=10, batch_size=8, **data
):
    """A resolved config; `data` are further keys of `config.data`."""
    c = config_lib.default()
    c.update(batch_size=batch_size)
    c.data.update(name=name, dir=str(directory), split=split, **data)
    c.model.update(resolution=resolution, num_classes=num_classes, g_attention=(), d_attention=())
    return config_lib.resolve(c, 1)


def open_source(*args, **kwargs):
    return datasets.open_source(make_config(*args, **kwargs))


def same(a, b):
    """Whether two batches are equal, byte for byte."""
    return all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in ("image", "label"))
