"""What the data is, said before training starts: counts, value range, a grid of real images."""

from typing import Any

import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.data.batches import Batches
from biggan_jax.data.source import Source, read

_VALUE_SAMPLE = 1000  # Images looked at for the value range where they are not in memory.
_NAMES_SHOWN = 5


def data_report(source: Source, config: Any, loader: Batches) -> dict[str, Any]:
    """Looks at a data set.

    All labels are counted if the images are in memory or the records number 200,000 at most, else
    50,000 evenly spaced ones; values are those of all images in memory, else of 1,000. Of TFRecord
    files 10,000 labels are counted at most, of the first records of each file.

    Args:
      source: the data set.
      config: as `config.resolve` gives it.
      loader: the loader over `source`.

    Returns:
      Plain numbers, texts and lists, ready for JSON: `name`, `split`, `where`, `resolution`,
      `images`, `classes` (known to the data set), `labels_counted`, `images_per_class` (a list;
      of the labels counted), `smallest` and `largest` (`label`, `class`, `images`; of the classes
      present), `missing_classes` (names), `label_min`, `label_max`, `value_min`, `value_max` (0
      to 255), `values_from_images`, `sampling` (which records were looked at where not all were),
      `fraction`, `fraction_seed` and `crop` (of the config), `missing_guarantees` (of the loader).

    Raises:
      ConfigError: if an image cannot be read.
    """
    _, labels = _labels(source, loader)
    in_range = labels[(labels >= 0) & (labels < source.num_classes)]
    counts = np.bincount(in_range, minlength=source.num_classes)
    images = loader.images
    if images is None:
        images, _ = read(source, source.sample(_VALUE_SAMPLE))
    present = np.flatnonzero(counts)

    def one(label):
        return {
            "label": int(label),
            "class": source.class_names[label],
            "images": int(counts[label]),
        }

    return {
        "name": config.data.name,
        "split": source.split,
        "where": source.where,
        "resolution": source.resolution,
        "images": len(source),
        "classes": source.num_classes,
        "labels_counted": len(labels),
        "images_per_class": counts.tolist(),
        "smallest": one(present[counts[present].argmin()]) if len(present) else None,
        "largest": one(present[counts[present].argmax()]) if len(present) else None,
        "missing_classes": [source.class_names[i] for i in np.flatnonzero(counts == 0)],
        "label_min": int(labels.min()),
        "label_max": int(labels.max()),
        "value_min": int(images.min()),
        "value_max": int(images.max()),
        "values_from_images": len(images),
        "sampling": source.sampling,
        "fraction": config.data.fraction,
        "fraction_seed": config.data.fraction_seed,
        "crop": config.data.crop,
        "missing_guarantees": list(loader.missing_guarantees),
    }


def check(report: dict[str, Any], config: Any) -> None:
    """Stops a run whose labels do not fit the model.

    Args:
      report: from `data_report`.
      config: as `config.resolve` gives it.

    Raises:
      ConfigError: if all images are of one class though several are configured, the data set has
        another number of classes than `model.num_classes`, or a label is outside of it.
    """
    configured = config.model.num_classes
    found = report["classes"]
    what = f"data.name={report['name']!r} ({report['where']})"
    present = sum(1 for n in report["images_per_class"] if n)
    if configured > 1 and present == 1 and report["label_min"] == report["label_max"]:
        only = report["smallest"]
        remedy = (
            "point data.dir at a folder with one sub-folder a class, or set model.num_classes=1"
            if found == 1
            else "choose a data.split that holds every class"
        )
        raise ConfigError(
            f"model.num_classes={configured}: all {report['labels_counted']} images looked at in"
            f" {what} are of the one class {only['class']!r}; {remedy}."
        )
    if found != configured:
        raise ConfigError(
            f"model.num_classes={configured}: {what} has {found} classes; set"
            f" model.num_classes={found}."
        )
    if report["label_min"] < 0 or report["label_max"] >= configured:
        raise ConfigError(
            f"data.split={report['split']!r}: {what} has labels from {report['label_min']} to"
            f" {report['label_max']}, but with model.num_classes={configured} they must lie in 0 to"
            f" {configured - 1}; set data.split to a labelled split."
        )


def text(report: dict[str, Any]) -> str:
    """Returns the report as a few lines for people, with a newline at the end."""
    sampled = report["labels_counted"] < report["images"]
    of = f" (of {report['labels_counted']:,} labels, {report['sampling']})" if sampled else ""
    lines = [
        f"Data: {report['name']}, split {report['split']}, in {report['where']}",
        f"  images            {report['images']:,} at"
        f" {report['resolution']} x {report['resolution']} px",
        f"  classes           {report['classes']:,}",
    ]
    if report["fraction"] < 1:
        lines.append(
            f"  fraction          {report['fraction']:g} of the records, drawn by"
            f" data.fraction_seed={report['fraction_seed']}"
        )
    if report["crop"] != "center":
        lines.append(f"  crop              {report['crop']}")
    smallest, largest = report["smallest"], report["largest"]
    if smallest:
        lines.append(
            f"  images per class  {smallest['images']:,} ({smallest['class']}) to"
            f" {largest['images']:,} ({largest['class']}){of}"
        )
    missing = report["missing_classes"]
    if missing:
        shown = ", ".join(missing[:_NAMES_SHOWN]) + (", ..." if missing[_NAMES_SHOWN:] else "")
        lines.append(f"  without images    {len(missing):,} classes: {shown}{of}")
    lines.append(
        f"  values            {report['value_min']} to {report['value_max']} of 0 to 255"
        f" (of {report['values_from_images']:,} images)"
    )
    if report["missing_guarantees"]:
        lines.append("  not guaranteed, since the data set is stored as TFRecord files:")
        lines += [f"  - {sentence}" for sentence in report["missing_guarantees"]]
    return "\n".join(lines) + "\n"


def reals(loader_or_source: Batches | Source, config: Any, rows: int, classes: int) -> np.ndarray:
    """Picks real images for a sheet with one column a class.

    Args:
      loader_or_source: where the images come from; a loader may have them in memory.
      config: as `config.resolve` gives it.
      rows: images a class, the first ones of the data set; a class with fewer repeats them.
      classes: columns, for the labels 0 to classes - 1.

    Returns:
      `[rows * classes, R, R, 3]` uint8, row by row. The column of a class without any image
      (among the labels that `data_report` counts) is mid-grey.

    Raises:
      ConfigError: if there are fewer classes, or an image cannot be read.
    """
    loader = loader_or_source if isinstance(loader_or_source, Batches) else None
    source = loader_or_source.source if isinstance(loader_or_source, Batches) else loader_or_source
    if classes > source.num_classes:
        raise ConfigError(
            f"sample.classes={classes}: data.name={config.data.name!r} has"
            f" {source.num_classes} classes; set sample.classes={source.num_classes} or less."
        )
    records, labels = _labels(source, loader)
    sheet = np.full((rows, classes, source.resolution, source.resolution, 3), 128, np.uint8)
    for label in range(classes):
        chosen = records[np.flatnonzero(labels == label)[:rows]]
        if len(chosen) == 0:
            continue
        if loader is not None and loader.images is not None:
            images = loader.images[chosen]
        else:
            images, _ = read(source, chosen)
        sheet[:, label] = images[np.arange(rows) % len(chosen)]
    return sheet.reshape(rows * classes, *sheet.shape[2:])


def _labels(source, loader):
    if loader is not None and loader.labels is not None:
        return np.arange(len(source)), loader.labels
    return source.label_sample()
