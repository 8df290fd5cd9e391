"""Makes what a recipe asks for: the models, their thread, and what was made lately."""

import collections
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from biggan_jax import api
from biggan_jax.app import recipes
from biggan_jax.app.batcher import Batcher, Gate
from biggan_jax.config import ConfigError
from biggan_jax.evaluate import index as index_lib
from biggan_jax.interop import bundle
from biggan_jax.sample import latents, names, walk
from biggan_jax.train import listing

_MOST_REQUESTS = 64  # At once, and
_MOST_BYTES = 256 << 20  # of their images.
_KEPT_BYTES = 64 << 20  # Of images made lately.
_KEPT = 500
OTHER = "other"  # The name of the model of --compare.


class Shown(NamedTuple):
    """Images that were made.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: [N] classes; of a mix, its heaviest.
      numbers: [N] places in the series of the seed; not 0, 1, ... where sorted.
      captions: N texts.
      logits: [N] of D, or None where not asked for.
      columns: of a sheet.
      column_labels: texts above its columns, or None.
      seconds: of computing.
    """

    images: np.ndarray
    labels: list[int]
    numbers: list[int]
    captions: list[str]
    logits: np.ndarray | None
    columns: int
    column_labels: list[str] | None
    seconds: float


class Nearest(NamedTuple):
    """Images with the real ones nearest to them.

    Attributes:
      shown: the images.
      near: of each, see `evaluate.index`.
    """

    shown: Shown
    near: index_lib.Near


class Studio:
    """Everything behind the page and the HTTP API; its methods may be called by many threads."""

    def __init__(
        self,
        path: str,
        step: int | None = None,
        compare: str | None = None,
        devices: int = 1,
        together: bool = True,
        index: str | None = None,
    ):
        """Loads the model, and the one to compare with.

        Args:
          path: a run folder or a bundle.
          step: which checkpoint of a run folder; None for the latest.
          compare: another run folder or bundle.
          devices: see `api.load`.
          together: see `Batcher`.
          index: a file of real images, see `evaluate.index`; None for none.

        Raises:
          ConfigError: as `api.load`.
        """
        self.path, self._devices = path, devices
        self.index = index_lib.Index(index) if index else None
        self.model = api.load(path, step, devices)
        self._models = {"": self.model}
        if compare:
            self._models[OTHER] = api.load(compare, None, devices)
        steps = [] if bundle.is_bundle(path) else listing.checkpoints(path)
        usable = [row["name"] for row in steps if row["state"] in ("good", "unverified")]
        self.checkpoints = (*((OTHER,) if compare else ()), *usable)
        self.gate = Gate(_MOST_REQUESTS, _MOST_BYTES)
        self._batcher = Batcher(self._compute, self._at_once, together)
        self._results: collections.OrderedDict[Any, Future] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def most_images(self) -> int:
        """Images a request: fewer of large ones."""
        return max(1, min(recipes.MAX_IMAGES, recipes.MAX_IMAGES * 128**2 // self._pixels))

    @property
    def most_frames(self) -> int:
        """Frames a walk."""
        return max(16, min(recipes.MAX_FRAMES, recipes.MAX_FRAMES * 128**2 // self._pixels))

    @property
    def _pixels(self):
        return self.model.config.model.resolution**2

    def close(self) -> None:
        """Ends the thread."""
        self._batcher.close()

    def picked(self, classes: str | None) -> list[int]:
        """Returns the class numbers of a recipe's `classes`, see `names.pick`.

        Raises:
          ConfigError: if one is none of the model's, or there are too many.
        """
        if classes is None:
            return list(range(min(10, len(self.model.class_names))))
        if classes.count(",") >= recipes.MAX_CLASSES:
            raise ConfigError(f"classes: must be at most {recipes.MAX_CLASSES}.")
        try:
            found = names.pick(classes, self.model.class_names)
        except ConfigError as e:
            raise ConfigError(recipes.shortened(str(e).removeprefix("--"))) from None
        if len(found) > recipes.MAX_CLASSES:
            raise ConfigError(f"classes: must be at most {recipes.MAX_CLASSES}.")
        return found

    def images(self, recipe: recipes.Images) -> Shown:
        """Makes the images of a recipe, or takes them from those made lately.

        Raises:
          ConfigError: if the recipe is none for this model.
          Busy: if too much is asked for at once.
        """
        return self._once(recipe, lambda: self._images(recipe))

    def walk(self, recipe: recipes.Walk) -> np.ndarray:
        """Makes the frames of a walk, uint8 [F, H, W, 3]; errors as for `images`."""
        return self._once(recipe, lambda: self._walk(recipe))

    def nearest(self, recipe: recipes.Images) -> Nearest:
        """Finds the real images nearest to those of a recipe; errors as for `images`."""
        index = self.index
        if index is None:
            raise ConfigError("nearest: there is no index; biggan app --index names one.")

        def make():
            shown = self.images(recipe)
            return Nearest(shown, self._batcher.call(lambda: index.find(shown.images)))

        return self._once(("nearest", recipe), make)

    def default_num(self) -> int:
        """Returns how many images are made where a recipe does not say."""
        return max(1, min(20, self.most_images, 20 * 64**2 // self._pixels))

    def facts(self, recipe: recipes.Recipe) -> dict[str, Any]:
        """Returns how a recipe's images are made: weights, truncation, mode, statistics, dtype."""
        model = self._model(recipe.checkpoint)
        return {"model": model.title, **model.protocol(recipe.truncation, recipe.mode)}

    def _images(self, recipe):
        model = self._model(recipe.checkpoint)
        picked = self.picked(recipe.classes)
        num = self.default_num() if recipe.num is None else recipe.num
        if num > self.most_images:
            raise ConfigError(f"num={num}: must be at most {self.most_images} at this resolution.")
        truncation, mode = self._checked(model, recipe)
        width = len(picked) if recipe.weights is None else 1
        size = num * self._pixels * 3
        with self.gate.admitted(size):
            index = np.arange(num) // width if recipe.lock_z else np.arange(num)
            z = model.latents(int(index[-1]) + 1, truncation, recipe.seed, mode)[index]
            z = self._varied(model, z, recipe.chunks)
            labels, mix = self._classes(model, picked, recipe.weights, num)
            if recipe.sort and recipe.weights is not None:
                raise ConfigError("sort: the discriminator judges single classes, not a mix.")
            if recipe.sort and not model.has_discriminator:
                raise ConfigError(f"sort: {model.name} has no discriminator.")
            images, seconds = self._batcher.images((recipe.checkpoint, truncation, mode), z, mix)
            logits = None
            order = np.arange(num)
            if recipe.sort:
                logits = self._batcher.call(lambda: _judged(model, images, labels))
                order = np.argsort(-logits, kind="stable")
                logits = logits[order]
        shown = [model.class_names[i] for i in labels]
        captions = [
            ("a mix" if recipe.weights is not None else shown[i])
            + (f", D {logits[place]:+.2f}" if logits is not None else "")
            for place, i in enumerate(order)
        ]
        by_class = len(picked) > 1 and recipe.weights is None and not recipe.sort
        columns = min(num, len(picked)) if by_class else math.ceil(math.sqrt(num))
        return Shown(
            images[order],
            [int(labels[i]) for i in order],
            [int(i) for i in order],
            captions,
            logits,
            columns,
            [model.class_names[i] for i in picked[:columns]] if by_class else None,
            seconds,
        )

    def _walk(self, recipe):
        model = self._model(recipe.checkpoint)
        picked = self.picked(recipe.classes)
        if recipe.lock_z and len(set(picked)) < 2:
            raise ConfigError("lock_z: needs two classes or more, or nothing would move.")
        count = recipe.points or (len(picked) if len(picked) > 1 else 4)
        total = (count if recipe.loop else count - 1) * recipe.frames + (not recipe.loop)
        if total > self.most_frames:
            raise ConfigError(
                f"frames={recipe.frames}: {count} points make {total} frames; must be at most"
                f" {self.most_frames}."
            )
        truncation, mode = self._checked(model, recipe)
        with self.gate.admitted(total * self._pixels * 3):
            z = model.latents(count, truncation, recipe.seed, mode)
            if recipe.lock_z:
                z[:] = z[0]
            z = self._varied(model, z, recipe.chunks)
            rows = np.eye(len(model.class_names), dtype=np.float32)
            ends = rows[[picked[i % len(picked)] for i in range(count)]]
            path, mix = walk.path(z, ends, recipe.frames, recipe.how, recipe.loop)
            return self._batcher.images((recipe.checkpoint, truncation, mode), path, mix).images

    def _checked(self, model, recipe):
        try:
            truncation, mode = model.check(recipe.truncation, recipe.mode, recipe.seed)
            grid = model.bundle.grid
            if grid and mode == model.truncation_mode and truncation is not None:
                low, high = max(grid[0], 0.01), grid[-1]
                if not low <= truncation <= high:
                    raise ConfigError(
                        f"truncation={truncation:g}: must be from {low:g} to {high:g}, where this"
                        " model has statistics."
                    )
            return truncation, mode
        except ConfigError as e:
            raise ConfigError(str(e).removeprefix("--")) from None

    def _varied(self, model, z, chunks):
        if chunks is None:
            return z
        words = [word.strip() for word in chunks.split(",")]
        if not all(word.isdecimal() and len(word) < 4 for word in words):
            raise ConfigError(
                f"chunks={recipes.shortened(chunks)}: must be numbers with commas between."
            )
        if model.slots == 1:
            raise ConfigError(f"chunks: {model.name} does not split z into chunks.")
        try:
            return walk.only_chunks(z, z[0], [int(word) for word in words], model.slots)
        except ConfigError as e:
            raise ConfigError(str(e).removeprefix("--")) from None

    def _classes(self, model, picked, weights, num):
        """Labels [N] and mixes [N, K]."""
        count = len(model.class_names)
        if weights is None:
            labels = np.resize(picked, num)
            return labels, np.float32(labels[:, None] == np.arange(count))
        try:
            numbers = [float(word) for word in weights.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != len(picked) or not all(0 <= w <= 1e6 for w in numbers):
            raise ConfigError(
                f"weights={recipes.shortened(weights)}: must be {len(picked)} numbers from 0, one a"
                " class, with commas between."
            )
        # Numbers as keys: two classes of one name are two.
        row = np.zeros(count, np.float32)
        np.add.at(row, picked, np.asarray(numbers, np.float32))
        if not row.sum() > 0:
            raise ConfigError(f"weights={recipes.shortened(weights)}: one must be above 0.")
        return np.full(num, row.argmax()), np.tile(row / row.sum(), (num, 1))

    def _model(self, name):
        """The model of a checkpoint; one is kept besides those of the start."""
        if name is None or name == "":
            return self.model
        if name not in self.checkpoints:
            raise ConfigError(
                f"checkpoint={recipes.shortened(name)}: must be one of"
                f" {', '.join(self.checkpoints) or 'none: there is but one'}."
            )
        with self._lock:
            found = self._models.get(name)
        if found is None:
            found = self._batcher.call(lambda: self._load(name))
        return found

    def _load(self, name):
        """Called by the one thread that computes."""
        if name not in self._models:
            loaded = api.load(self.path, int(name), self._devices)
            with self._lock:
                for key in [k for k in self._models if k not in ("", OTHER)]:
                    del self._models[key]
                self._models[name] = loaded
        return self._models[name]

    def _compute(self, key, z, mix):
        name, truncation, mode = key
        model = self._models.get(name or "") or self._load(name)
        return model.render(z, mix, truncation, mode)

    def _at_once(self, key):
        return self.model.tile * self.model.devices

    def _once(self, recipe, make: Callable[[], Any]):
        """What was made of an equal recipe lately, or is being made; else makes it."""
        with self._lock:
            known = self._results.get(recipe)
            if known is not None:
                self._results.move_to_end(recipe)
            else:
                mine: Future = Future()
                self._results[recipe] = mine
        if known is not None:
            return known.result()
        try:
            made = make()
        except BaseException as e:
            with self._lock:
                self._results.pop(recipe, None)
            mine.set_exception(e)
            raise
        mine.set_result(made)
        with self._lock:
            self._forget()
        return made

    def _forget(self):
        """Lets go of the oldest results beyond the bounds."""
        kept = [f for f in self._results.values() if f.done()]
        held = sum(_bytes(f.result()) for f in kept if f.exception() is None)
        while len(self._results) > 1 and (held > _KEPT_BYTES or len(self._results) > _KEPT):
            oldest = next(iter(self._results))
            if not self._results[oldest].done():
                break
            held -= _bytes(self._results.pop(oldest).result())


def _bytes(made):
    if isinstance(made, Nearest):
        return sum(array.nbytes for array in made.near)
    return (made.images if isinstance(made, Shown) else made).nbytes


def _judged(model, images, labels):
    """D's logits in blocks of one size, so that every number of images compiles once."""
    size, done = model.tile, []
    for start in range(0, len(images), size):
        index = np.minimum(np.arange(start, start + size), len(images) - 1)
        done.append(model.discriminate(images[index], labels[index]))
    return np.concatenate(done)[: len(images)]


def about(studio: Studio) -> Mapping[str, Any]:
    """Returns what a client should know of the model and of what may be asked."""
    model = studio.model
    return {
        "name": model.name,
        "title": model.title,
        "resolution": model.config.model.resolution,
        "classes": len(model.class_names),
        "modes": list(latents.MODES),
        "mode": model.truncation_mode,
        "chunks": model.slots,
        "discriminator": model.has_discriminator,
        "index": studio.index is not None,
        "checkpoints": list(studio.checkpoints),
        "state": studio.facts(recipes.Images()),
        "limits": {
            "num": studio.most_images,
            "frames": studio.most_frames,
            "classes": recipes.MAX_CLASSES,
        },
        "fields": {
            "images": list(recipes.Images.model_fields),
            "walk": list(recipes.Walk.model_fields),
        },
    }
