"""Times features and moments: FID's Inception-v3, beside torch-fidelity.

`python -m benchmarks.evaluate --json`

Both programs hold the same weights and see the same pictures, turn by turn: uint8 pixels in, mean
and covariance of the 2,048 features out, resize included. `difference` says how far the features'
means are apart, as a part of the largest. The last line is JSON: `ratio_to_torch_fidelity` (images
a second of ours over theirs: medians of the steps), `ratio_of_cpu_seconds` (theirs over ours: what
stays steadier on a machine with other work), the seconds of each round, and the setting. Needs the
extra `interop`. The weights are random unless `--weights` names a `.pth` file.
"""

import argparse
import json
import tempfile

import jax
import numpy as np

from benchmarks import common
from biggan_jax.evaluate import evaluator, extractors, images
from biggan_jax.evaluate.engine import Engine
from biggan_jax.interop import pth
from biggan_jax.parallel import mesh as mesh_lib
from tests.evaluate import made, references


def make_theirs(path, threads):
    """Returns what gives mean and covariance of pictures [N, H, W, 3] by torch-fidelity."""
    import torch

    network = references.load("torch_fidelity.feature_extractor_inceptionv3")
    fid = references.load("torch_fidelity.metric_fid")
    torch.set_num_threads(threads)
    model = network.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
    )

    def call(pictures, batch):
        x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            features = torch.cat([model(part)[0] for part in x.split(batch)])
        found = fid.fid_features_to_statistics(features)
        return found["mu"], found["sigma"]

    return call


def make_ours(path, devices):
    """Returns what gives mean and covariance of a file of pictures by this package."""
    with tempfile.TemporaryDirectory() as folder:
        extractors.import_inception(path, f"{folder}/inception")
        extractor = extractors.load("inception", f"{folder}/inception")
    engine = Engine(extractor, mesh_lib.make_mesh(devices))

    def call(pictures):
        found = engine.run(pictures, "images").moments
        return found.mean, found.covariance

    return call, engine.batch


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=int, default=128, help="pictures a round")
    parser.add_argument("--size", type=int, default=128, help="their pixels of a side")
    parser.add_argument("--threads", type=int, default=2, help="of torch; JAX takes all cores")
    parser.add_argument("--devices", type=int, help="default: as biggan evaluate")
    parser.add_argument(
        "--weights", metavar="FILE", help="a .pth of FID's network; default: random"
    )
    common.add_arguments(parser, steps=5)
    args = parser.parse_args(argv)
    evaluator.want(args.devices)
    devices = args.devices or jax.device_count()
    pictures = np.resize(made.squares(8, args.size), (args.num, args.size, args.size, 3))
    pictures = pictures ^ np.arange(args.num, dtype=np.uint8)[:, None, None, None] % 8
    with tempfile.TemporaryDirectory() as folder:
        path = args.weights
        if path is None:
            path = f"{folder}/random.pth"
            pth.write(path, made.inception_state())
        np.savez(f"{folder}/pictures.npz", arr_0=pictures)
        ours, batch = make_ours(path, devices)
        theirs = make_theirs(path, args.threads)
        held = images.FromArray(f"{folder}/pictures.npz")
    calls = {"ours": lambda: ours(held), "theirs": lambda: theirs(pictures, batch)}
    found, seconds, medians = common.side_by_side(calls, args)
    wall, work = medians["wall"], medians["cpu"]
    means = found["ours"][0], np.asarray(found["theirs"][0])
    result = {
        "ratio_to_torch_fidelity": wall["theirs"] / wall["ours"],
        "ratio_of_cpu_seconds": work["theirs"] / work["ours"],
        "images_per_second": args.num / wall["ours"],
        "difference": float(np.abs(means[0] - means[1]).max() / np.abs(means[1]).max()),
        "seconds": seconds["wall"],
        "cpu_seconds": seconds["cpu"],
        "weights": args.weights or "random",
        "device": jax.devices()[0].device_kind,
        "batch": batch,
        "devices": devices,
        **{name: getattr(args, name) for name in ("num", "size", "threads")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
