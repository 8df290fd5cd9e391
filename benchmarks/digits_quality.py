"""How good is a model of the handwritten digits? Four numbers, in a few seconds on a CPU.

    python -m benchmarks.digits_quality runs/digits --json

All images are compared as grey pixels at the resolution of the model, scaled to 0..1.

- `label_accuracy`: a support vector machine (RBF kernel, C = 10), trained on the real images of the
  train split, is asked about the generated images; the share of which it sees the class that was
  asked of the generator. `label_accuracy_real` is the same for the real images of the test split,
  which it has not seen either: more cannot be expected.
- `coverage`: the share of real test images whose ball holds a generated image. The radius of a ball
  is the distance to the 5th nearest other real test image (Naeem et al. 2020, equation 4).
- `copies`: the share of generated images that are nearer to an image of the train split than is
  usual for real ones: nearer than the 1st percentile of the distances of test images to their
  nearest train images. New real images give about 0.01.

The last two are Euclidean distances in PCA space: the components that hold 95 % of the variance of
the train split, not whitened. Generated images are not truncated unless `--truncation` says so.
"""

import argparse
import json
import sys

import ml_collections
import numpy as np

from biggan_jax.config import ConfigError
from biggan_jax.evaluate import classifier
from biggan_jax.evaluate.classifier import grey

NEIGHBOURS = 5
PCA_VARIANCE = 0.95
COPY_PERCENTILE = 1


def quality(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    fake_x: np.ndarray,
    fake_y: np.ndarray,
) -> dict[str, float]:
    """Returns the four numbers that the module describes.

    Args:
      train_x: float `[N, D]`, real images of the train split.
      train_y: int `[N]`, their classes.
      test_x: float `[M, D]`, real images of the test split.
      test_y: int `[M]`, their classes.
      fake_x: float `[K, D]`, generated images.
      fake_y: int `[K]`, the classes asked for.
    """
    from sklearn.decomposition import PCA

    seen = classifier.fit(train_x, train_y)
    pca = PCA(PCA_VARIANCE, svd_solver="full").fit(train_x)
    train_z, test_z, fake_z = (pca.transform(x) for x in (train_x, test_x, fake_x))
    return {
        "label_accuracy": float(np.mean(seen.predict(fake_x) == fake_y)),
        "label_accuracy_real": float(np.mean(seen.predict(test_x) == test_y)),
        "coverage": coverage(test_z, fake_z),
        "copies": copies(train_z, test_z, fake_z),
    }


def coverage(real: np.ndarray, fake: np.ndarray) -> float:
    """Returns the share of reals `[N, D]` with a fake `[M, D]` in their 5-neighbour ball."""
    # The nearest point to a real among the reals is itself.
    radius = _distances(real, real, NEIGHBOURS + 1)[:, -1]
    return float(np.mean(_distances(real, fake, 1)[:, 0] <= radius))


def copies(train: np.ndarray, test: np.ndarray, fake: np.ndarray) -> float:
    """Returns the share of fakes `[M, D]` nearer to a train image than nearly all test images."""
    usual = np.percentile(_distances(test, train, 1), COPY_PERCENTILE)
    return float(np.mean(_distances(fake, train, 1) < usual))


def measure(config, model, num: int, seed: int, truncation: float | None) -> dict[str, float]:
    """Returns `quality` of a model.

    Args:
      config: resolved, of the run that made it; says which digits are the real ones.
      model: of `biggan_jax.load`.
      num: generated images.
      seed: of their latents.
      truncation: of their latents, or None.

    Raises:
      ConfigError: if it was not trained on the digits.
    """
    if config.data.name != "digits":
        raise ConfigError(f"data.name={config.data.name!r}: only a model of 'digits' is measured.")
    labels = np.arange(num) % config.model.num_classes
    fakes = model.sample(labels, seed=seed, truncation=truncation)
    train_x, train_y = _reals(config, "train")
    test_x, test_y = _reals(config, "test")
    return quality(grey(train_x), train_y, grey(test_x), test_y, grey(fakes), labels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits_quality", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", help="folder of a run on the digits")
    parser.add_argument("--step", type=int, help="which checkpoint; default: the latest")
    parser.add_argument("--num", type=int, default=1000, help="generated images, spread evenly")
    parser.add_argument("--seed", type=int, default=0, help="of the latents")
    parser.add_argument("--truncation", type=float, default=None, help="none unless given")
    parser.add_argument("--json", action="store_true", help="print one line for programs")
    args = parser.parse_args(argv)
    if args.num < 1:
        parser.error(f"--num={args.num}: must be at least 1.")

    from biggan_jax import api, host_tensorflow
    from biggan_jax.train import runs

    host_tensorflow.silence()
    try:
        config, model = runs.read_config(args.run), api.load(args.run, args.step)
        found = measure(config, model, args.num, args.seed, args.truncation)
    except ConfigError as e:
        print(e, file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:20} {value:.4f}")
    return 0


def _reals(config, split):
    from biggan_jax.data import datasets

    config = ml_collections.ConfigDict(config)
    config.data.split = split
    source = datasets.open_source(config)
    images, labels = zip(*(source[i] for i in range(len(source))), strict=True)
    return np.stack(images), np.array(labels)


def _distances(points, among, count):
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=count).fit(among).kneighbors(points)[0]


if __name__ == "__main__":
    sys.exit(main())
