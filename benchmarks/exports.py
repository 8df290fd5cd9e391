"""Exports a model of full size with random weights, and runs each export in a process without us.

`python -m benchmarks.exports --config=configs/biggan128.py --json`

The last line is JSON: for each format MB, the seconds of the whole `biggan export` and of the
process that loads the export and makes one and two images, and `difference`, the largest of a pixel
(in [-1, 1]) between those images and the model's own.
"""

import argparse
import contextlib
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from biggan_jax import api, cli
from biggan_jax import config as config_lib
from biggan_jax.gan import state as state_lib
from biggan_jax.interop import bundle as bundle_lib
from biggan_jax.interop import comparing, layout

# What each process may not import, and how it comes to `generate(z, y, truncation)`.
_RUNNERS = {
    "stablehlo": (
        ("biggan_jax", "flax", "tensorflow", "onnxruntime"),
        "sys.path.insert(0, folder)\nfrom load import generate",
    ),
    "saved-model": (
        ("biggan_jax", "jax", "flax", "onnxruntime"),
        "import tensorflow as tf\n"
        "call = tf.saved_model.load(folder).signatures['default']\n"
        "generate = lambda z, y, t: call(\n"
        "    z=tf.constant(z), y=tf.constant(y), truncation=tf.constant(t))['default'].numpy()",
    ),
    "onnx": (
        ("biggan_jax", "jax", "flax", "tensorflow", "onnx"),
        "import onnxruntime\n"
        "call = onnxruntime.InferenceSession(f'{folder}/generator.onnx')\n"
        "generate = lambda z, y, t: call.run(['images'], {'z': z, 'y': y, 'truncation': t})[0]",
    ),
}
_PROCESS = """
import sys
for name in {without}:
    sys.modules[name] = None  # An import of it fails.
import numpy as np
folder, given, out = sys.argv[1:]
{load}
given = np.load(given)
images = [generate(given["z"][i:j], given["y"][i:j], given["t"]) for i, j in ((0, 2), (2, 3))]
np.save(out, np.concatenate(images))
"""


def made_up(config_file):
    """A bundle of a config's generator as it is before training."""
    # Exports run in float32, whatever the model was trained in.
    c = config_lib.resolve(config_lib.load(config_file, [("model.dtype", "float32")]), 1)
    model = bundle_lib.resolve_model(dict(c.model))
    found = bundle_lib.Bundle(c.name, model, {})
    found.standing_images = 16
    state = jax.jit(lambda: state_lib.init(c))()
    trees = {
        "params": state.ema_params,
        "batch_stats": state.ema_batch_stats,
        "spectral": state.g_spectral,
    }
    flat = {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }
    for place in layout.abstract(model)[0]:
        found.tensors[f"ema/{place}"] = flat[place]
    return found


def measure(name, source, folder, given, truncation):
    """The numbers of one format; see above."""
    out, images = folder / name, folder / f"{name}.npy"
    words = ["export", str(source), str(out), f"--format={name}", f"--truncations={truncation}"]
    start = time.perf_counter()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(words)
    if code:
        sys.exit(f"biggan {' '.join(words)} ended with {code}")
    wrote = time.perf_counter() - start
    without, load = _RUNNERS[name]
    code = _PROCESS.format(without=without, load=load)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(out), str(given), str(images)], check=True
    )
    ran = time.perf_counter() - start
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    return images, {
        "megabytes": round(size / 1e6, 1),
        "export_seconds": round(wrote, 1),
        "process_seconds": round(ran, 1),
        "said": said.getvalue().strip(),
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/biggan128.py")
    parser.add_argument("--formats", default=",".join(_RUNNERS))
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    result = {"config": args.config, "formats": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        bare = made_up(args.config)
        bundle_lib.write(bare, str(folder / "bare"))
        truncation, classes = 1.0, bare.model["num_classes"]
        # With statistics, made once; those of an untrained generator's running means are none.
        words = ["export", str(folder / "bare"), str(folder / "source"), "--format=bundle"]
        with contextlib.redirect_stdout(io.StringIO()):
            if cli.main([*words, f"--truncations={truncation}"]):
                sys.exit("the bundle could not be written")
        model = api.load(str(folder / "source"))
        z = np.random.default_rng(0).normal(size=(3, bare.model["z_dim"])).astype(np.float32)
        labels = np.arange(3) * (classes // 3)
        y = comparing.one_hot(labels, classes)
        np.savez(folder / "given.npz", z=z, y=y, t=np.float32(truncation))
        want = model.generate(z, labels, truncation)
        result["pixels"] = {"mean": float(want.mean()), "std": float(want.std())}
        for form in args.formats.split(","):
            images, numbers = measure(
                form, folder / "source", folder, folder / "given.npz", truncation
            )
            numbers["difference"] = float(np.abs(np.load(images) - want).max())
            result["formats"][form] = numbers
            if not args.json:
                print(form, numbers, flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
