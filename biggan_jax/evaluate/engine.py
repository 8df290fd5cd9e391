"""Features of many images, on the mesh, and what is kept of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biggan_jax.evaluate import frechet, progress
from biggan_jax.evaluate.extractors import Extractor
from biggan_jax.evaluate.images import Images
from biggan_jax.parallel import mesh as mesh_lib

# Images a device and pass; whole tiles of a generator, see `sample.tiles`.
BATCH = {"cpu": 32}
BATCH_ELSEWHERE = 64


@dataclasses.dataclass
class Kept:
    """What is left of a set of images.

    moments: of the features.
    spatial: moments of the spatial features, or None.
    features: [N, D] float32, or None.
    logits: [N, K] float32, or None.
    classes: [N] int, what `classify` said, or None.
    """

    moments: frechet.Gaussian
    spatial: Any
    features: Any
    logits: Any
    classes: Any


class Engine:
    """Runs one extractor on one mesh."""

    def __init__(self, extractor: Extractor, mesh: Mesh):
        """Puts the network's weights on the mesh."""
        whole = mesh_lib.replicated(mesh)
        self.extractor, self.mesh = extractor, mesh
        platform = mesh.devices.flat[0].platform
        self.batch = BATCH.get(platform, BATCH_ELSEWHERE) * mesh.size
        self._cut = mesh_lib.batch_sharding(mesh, 0)
        self._params = jax.device_put(extractor.params, whole)
        self._call = jax.jit(extractor, out_shardings=whole)

    def run(
        self,
        images: Images,
        what: str,
        spatial: bool = False,
        logits: bool = False,
        features: int = 0,
        classify: Callable[[np.ndarray], np.ndarray] | None = None,
        classifier: Any = None,
    ) -> Kept:
        """Extracts features of all images, with a bar that shows the rate and the time left.

        What was killed in the middle goes on from its last write, to the same bits.

        Args:
          images: what to look at.
          what: for the bar.
          spatial: whether moments of spatial features are wanted.
          logits: whether logits are kept.
          features: of how many images, evenly spaced, features are kept: of n among N images those
            at i * N // n.
          classify: called on images [N, H, W, 3] uint8, on the host; gives a class for each.
          classifier: what names it, for JSON.

        Raises:
          ConfigError: if there are fewer than two images or they cannot be made or read.
        """
        import tqdm

        count = len(images)
        chosen = np.zeros(count, bool)
        chosen[np.arange(min(features, count)) * count // max(1, min(features, count))] = True
        so_far = _SoFar(("features", "spatial")[: 1 + spatial], logits)
        done = progress.Progress(
            {
                "images": images.about(),
                "extractor": self.extractor.about(),
                "kept": [spatial, logits, features],
                "classifier": classifier,
            }
        )
        if (saved := done.load()) is not None:
            so_far.restore(saved)
        waiting: Any = None
        with tqdm.tqdm(
            total=count, initial=so_far.count, desc=what, unit=" images", smoothing=0.1
        ) as bar:
            # The last step only takes what the devices were left with.
            for start in (*range(so_far.count, count, self.batch), count):
                before, waiting = waiting, None
                if start < count:
                    index = np.arange(start, min(start + self.batch, count))
                    x = images.read(index)
                    seen = None if classify is None else classify(x)
                    # The last batch is filled up: every batch has one size and compiles once.
                    x = jax.device_put(np.resize(x, (self.batch, *x.shape[1:])), self._cut)
                    waiting = index, seen, self._call(self._params, x)
                # The host works on a batch while the devices work on the next.
                if before is not None:
                    place, classes, found = before
                    so_far.add(found, chosen[place], classes)
                    bar.update(len(place))
                    done.offer(so_far.state)
        done.done()
        return Kept(
            so_far.moments["features"].gaussian(),
            so_far.moments["spatial"].gaussian() if spatial else None,
            so_far.kept("features") if features else None,
            so_far.kept("logits") if logits else None,
            so_far.kept("classes") if classify else None,
        )


class _SoFar:
    """Moments and kept arrays of the images until now."""

    def __init__(self, kinds, logits):
        self.count = 0
        self.moments: dict[str, frechet.Moments] = {}
        self._kinds, self._logits = kinds, logits
        self._kept: dict[str, list[np.ndarray]] = {
            "features": [],
            "logits": [],
            "classes": [],
        }

    def add(self, found, chosen, classes=None):
        """Adds the first of a batch's images; features of those `chosen` [N] are kept."""
        found = {kind: np.asarray(array)[: len(chosen)] for kind, array in found.items()}
        for kind in self._kinds:
            if kind not in self.moments:
                self.moments[kind] = frechet.Moments(found[kind].shape[1])
            self.moments[kind].add(found[kind])
        self._kept["features"].append(found["features"][chosen])
        if self._logits:
            self._kept["logits"].append(found["logits"])
        if classes is not None:
            self._kept["classes"].append(np.asarray(classes))
        self.count += len(chosen)

    def kept(self, name):
        """Returns what was kept, in one piece."""
        return np.concatenate(self._kept[name])

    def state(self):
        """Returns all of it as arrays."""
        arrays = {name: self.kept(name) for name in self._kept if self._kept[name]}
        for kind, moments in self.moments.items():
            arrays |= {f"{kind}/{name}": array for name, array in moments.state().items()}
        return arrays | {"count": np.array(self.count)}

    def restore(self, arrays):
        """The inverse of `state`."""
        self.count = int(arrays["count"])
        for name in self._kept:
            self._kept[name] = [arrays[name]] if name in arrays else []
        for kind in self._kinds:
            start = f"{kind}/"
            state = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            self.moments[kind] = frechet.Moments.restore(state)
