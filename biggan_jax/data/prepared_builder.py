"""The TFDS data sets that `biggan prepare` makes: square uint8 images of one size.

A shard is a function of its pictures and the recipe alone, so shards can be made by any process, in
any order, again after a crash, or by Beam, which TFDS runs this very builder on. Beside each shard
lies a note: how many records, a hash over their content, what was skipped and why.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from biggan_jax.config import ConfigError
from biggan_jax.data import imagenet_tars, preprocess
from biggan_jax.data.pictures import Collection, Run

RESOLUTIONS = (64, 128, 256, 512)
NOTES = "shards"  # The folder of the notes, within that of the data set.
MANIFEST = "manifest.json"
RECORDS = "records.jsonl"  # What was skipped or altered, by name.

_SHARD_BYTES = 2**27  # Of pixels. TFDS holds a shard in memory when it runs on Beam.
_FEWEST_SHARDS = 16  # So that a small set too is worked on by several processes.


def features(resolution: int, class_names: list[str]) -> tfds.features.FeaturesDict:
    """Returns what a record holds; the image's bytes are stored as they are."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(
                shape=(resolution, resolution, 3),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            ),
            "label": tfds.features.ClassLabel(names=class_names),
            "file_name": tfds.features.Text(),
        }
    )


def digest(name: str, label: int, pixels: bytes) -> bytes:
    """Returns the SHA-256 of one record's content, whatever encoding it is stored in."""
    head = f"{len(name.encode())}:{name}:{label}:".encode()
    return hashlib.sha256(head + pixels).digest()


@dataclasses.dataclass(frozen=True)
class Shard:
    """Makes the records of one shard, and its note once they are all made."""

    split: str
    number: int
    first: int  # Number of its first picture within the split.
    run: Run
    recipe: preprocess.Recipe
    num_classes: int
    skip_errors: bool
    note: str  # Path of the note.

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Gives (key, example) pairs in order.

        Raises:
          ConfigError: naming the first bad picture, if errors are not to be skipped.
        """
        whole = hashlib.sha256()
        labels: dict[int, int] = {}
        remarks: list[dict[str, str]] = []
        for i, (name, label, data) in enumerate(self.run):
            notes: list[str] = []
            try:
                image = self._image(name, label, data, notes)
            except ConfigError as e:
                if not self.skip_errors:
                    raise
                remarks.append({"name": name, "skipped": str(e)})
                continue
            remarks += [{"name": name, "altered": text} for text in notes]
            whole.update(digest(name, label, image.tobytes()))
            labels[label] = labels.get(label, 0) + 1
            yield self.first + i, {"image": image, "label": label, "file_name": name}
        note = {
            "records": sum(labels.values()),
            "sha256": whole.hexdigest(),
            "labels": {str(k): labels[k] for k in sorted(labels)},
            "remarks": remarks,
        }
        epath.Path(self.note).parent.mkdir(parents=True, exist_ok=True)
        epath.Path(self.note).write_text(json.dumps(note))

    def _image(self, name, label, data, notes):
        where = f"{self.split} picture {name}"
        if isinstance(data, ConfigError):
            raise ConfigError(f"{where}: {data}.")
        if not 0 <= label < self.num_classes:
            raise ConfigError(
                f"{where}: its label {label} is outside of 0 to {self.num_classes - 1}."
            )
        return preprocess.decode(data, where, self.recipe, notes=notes)


@dataclasses.dataclass
class PreparedConfig(tfds.core.BuilderConfig):
    """One size of a prepared data set.

    Attributes:
      recipe: how pictures become images.
      collection: the pictures, where they are known.
      splits: those wanted; () for all.
      skip_errors: leave out what cannot be read, rather than stop.
    """

    recipe: preprocess.Recipe = dataclasses.field(default=preprocess.Recipe(128))
    collection: Collection | None = None
    splits: tuple[str, ...] = ()
    skip_errors: bool = False


def make_config(resolution: int, resize: str = "area", **kwargs: Any) -> PreparedConfig:
    """Returns the config named after a size."""
    recipe = preprocess.Recipe(resolution, resize, strict=True)
    return PreparedConfig(
        name=str(resolution),
        description=f"{resolution} x {resolution} pixels, centred square, {resize}",
        recipe=recipe,
        **kwargs,
    )


class Prepared(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the prepared data sets; a config knows the pictures."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012
    builder_config: PreparedConfig

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        names = self._class_names()
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Pictures made square once, by biggan prepare: the centred square,"
                f" {config.recipe.resize} resampling to {config.recipe.resolution} pixels, uint8."
            ),
            features=features(config.recipe.resolution, names),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                crop="center", resize=config.recipe.resize, resolution=config.recipe.resolution
            ),
        )

    def _class_names(self):
        return list(self._collection(None).class_names)

    def shards(self, notes: epath.PathLike, collection: Collection) -> dict[str, list[Shard]]:
        """Cuts every split wanted into shards.

        Args:
          notes: the folder for the notes.
          collection: the pictures.

        Raises:
          ConfigError: if a split is wanted that there is not, or one is empty.
        """
        config = self.builder_config
        wanted = config.splits or tuple(collection.splits)
        found: dict[str, list[Shard]] = {}
        for split in wanted:
            count = collection.splits.get(split, 0)
            if not count:
                raise ConfigError(
                    f"--splits={','.join(wanted)}: there is no split {split!r} with pictures;"
                    f" there is {', '.join(f'{k} ({v:,})' for k, v in collection.splits.items())}."
                )
            limit = max(1, _SHARD_BYTES // (3 * config.recipe.resolution**2))
            size = min(limit, -(-count // _FEWEST_SHARDS))
            found[split] = [
                Shard(
                    split,
                    number,
                    first,
                    collection.run(split, first, min(first + size, count)),
                    config.recipe,
                    len(collection.class_names),
                    config.skip_errors,
                    str(epath.Path(notes) / f"{split}-{number:05d}.json"),
                )
                for number, first in enumerate(range(0, count, size))
            ]
        return found

    def _shard_iterators_per_split(self, dl_manager):
        collection = self._collection(dl_manager)
        self._made = self.shards(self.data_path / NOTES, collection)
        self._identity = dict(collection.identity)
        return self._made

    def _collection(self, dl_manager):
        assert self.builder_config.collection is not None
        return self.builder_config.collection

    def _download_and_prepare(self, dl_manager, download_config=None):
        # Reached through TFDS, on Beam or in one process; `prepare` does this part itself.
        options = download_config.beam_options if download_config else None
        if options and not download_config.beam_runner:
            # TFDS looks at the runner alone to decide for Beam; its command line sets options.
            runner = options.get_all_options()["runner"] or "DirectRunner"
            download_config = dataclasses.replace(download_config, beam_runner=runner)
        super()._download_and_prepare(dl_manager, download_config)
        write_manifest(self, self.data_path, self._made, self._identity)


class BigganImagenet(Prepared):
    """ImageNet (ILSVRC 2012) from its two tar files in the manual folder."""

    BUILDER_CONFIGS = [make_config(r) for r in RESOLUTIONS]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{imagenet_tars.TRAIN} and {imagenet_tars.VALIDATION}, from image-net.org."
    )

    def _class_names(self):
        from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

        with open(imagenet_common.label_names_file(), encoding="utf-8") as f:
            return f.read().split()

    def _collection(self, dl_manager):
        return imagenet_tars.ImageNetTars(str(dl_manager.manual_dir))


def write_manifest(
    builder: Prepared,
    folder: epath.PathLike,
    shards: Mapping[str, list[Shard]],
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Merges the notes into the manifest and the list of remarks; counts go into the metadata.

    Args:
      builder: of the data set; its info's metadata is changed.
      folder: where the data set is being written.
      shards: all of it.
      identity: of the collection.

    Returns:
      The manifest.

    Raises:
      ConfigError: if no picture of a split could be used.
    """
    folder = epath.Path(folder)
    recipe = builder.builder_config.recipe
    manifest: dict[str, Any] = {
        "source": dict(identity),
        "resolution": recipe.resolution,
        "crop": "center",
        "resize": recipe.resize,
        "splits": {},
    }
    lines = []
    for split, parts in shards.items():
        notes = [json.loads(epath.Path(part.note).read_text()) for part in parts]
        labels = np.zeros(parts[0].num_classes, np.int64)
        skipped = 0
        altered: dict[str, int] = {}
        for note, part in zip(notes, parts, strict=True):
            for label, count in note["labels"].items():
                labels[int(label)] += count
            for remark in note["remarks"]:
                lines.append({"split": split, "shard": part.number, **remark})
                skipped += "skipped" in remark
                if "altered" in remark:
                    kind = remark["altered"].partition(":")[0]
                    altered[kind] = altered.get(kind, 0) + 1
        if not labels.sum():
            raise ConfigError(
                f"split {split!r}: none of its {skipped:,} pictures can be used; the first:"
                f" {notes[0]['remarks'][0]['skipped']}"
            )
        manifest["splits"][split] = {
            "records": int(labels.sum()),
            "skipped": skipped,
            "altered": altered,
            "labels": labels.tolist(),
            "shards": [{k: note[k] for k in ("records", "sha256")} for note in notes],
        }
    builder.info.metadata["skipped"] = {k: v["skipped"] for k, v in manifest["splits"].items()}
    builder.info.metadata["altered"] = {k: v["altered"] for k, v in manifest["splits"].items()}
    (folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest
