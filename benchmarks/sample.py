"""Times sampling: BigGAN-deep-128 with random weights, beside `pytorch_pretrained_biggan`.

`python -m benchmarks.sample --json`

Both programs hold the same weights and make images from the same latents, at truncation 0.5, turn
by turn; `difference` says how far the images are apart, in [-1, 1]. The last line is JSON:
`ratio_to_huggingface` (images a second of ours over theirs: medians of the seconds a batch),
`ratio_of_cpu_seconds` (theirs over ours: what stays steady on a machine with other work), the
seconds of each round, and the setting. Needs the extra `interop`. `--alone` leaves the other
program out, and with it torch.
"""

import argparse
import json
import statistics
import tempfile
import time

import jax
import numpy as np

from biggan_jax import api
from biggan_jax.interop import huggingface, pth

TRUNCATION = 0.5


def make_theirs(threads):
    """Their default model, BigGAN-deep-128, with random weights that give finite images."""
    import torch
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = BigGAN(BigGANConfig())
    # The last batch norm is uninitialised memory, and spectral norm wants some iterations.
    model.generator.bn.weight.data.fill_(1)
    model.generator.bn.bias.data.zero_()
    with torch.no_grad():
        label = torch.zeros(2, 1000)
        label[:, 3] = 1
        for _ in range(3):
            model.train()(torch.randn(2, 128), label, 1.0)
        for module in model.modules():
            if hasattr(module, "gamma"):
                module.gamma.data.fill_(0.5)  # Zero would leave attention out.
    return model.eval()


def make_ours(theirs, devices):
    with tempfile.TemporaryDirectory() as folder:
        state = {name: value.numpy() for name, value in theirs.state_dict().items()}
        pth.write(f"{folder}/pytorch_model.bin", state)
        with open(f"{folder}/config.json", "w") as f:
            f.write(theirs.config.to_json_string())
        return api.Model(huggingface.read(folder), devices)


def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    images = call()
    return images, time.perf_counter() - wall, time.process_time() - cpu


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch; JAX takes all cores")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--alone", metavar="BUNDLE", help="time this model, without torch")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    theirs = None if args.alone else make_theirs(args.threads)
    ours = (
        api.load(args.alone, None, args.devices) if args.alone else make_ours(theirs, args.devices)
    )
    z = ours.latents(args.batch, TRUNCATION, seed=0, mode="hub")
    labels = np.arange(args.batch) % ours.config.model.num_classes
    calls = {"ours": lambda: ours.generate(z, labels, TRUNCATION)}
    if theirs:
        import torch

        def call_theirs():
            one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), 1000).float()
            with torch.inference_mode():
                return theirs(torch.from_numpy(z), one_hot, TRUNCATION).numpy()

        calls["theirs"] = call_theirs
    wall, cpu, images = ({name: [] for name in calls} for _ in range(3))
    for i in range(args.rounds + 1):
        for name, call in calls.items():
            images[name], a, b = timed(call)
            if i:  # The first round compiles, and warms caches.
                wall[name].append(a)
                cpu[name].append(b)
            if not args.json:
                print(f"{i if i else 'warm-up'}: {name} {a:.2f} s, {b:.2f} s of CPU")
    seconds = {name: statistics.median(values) for name, values in wall.items()}
    result = {
        "images_per_second": args.batch / seconds["ours"],
        "seconds": wall,
        "cpu_seconds": cpu,
        "device": jax.devices()[0].device_kind,
        "devices": args.devices,
        "batch": args.batch,
        "tile": ours.tile,
    }
    if theirs:
        work = {name: statistics.median(values) for name, values in cpu.items()}
        apart = np.abs(images["ours"] - images["theirs"].transpose(0, 2, 3, 1)).max()
        result = {
            "ratio_to_huggingface": seconds["theirs"] / seconds["ours"],
            "ratio_of_cpu_seconds": work["theirs"] / work["ours"],
            "difference": float(apart),
            **result,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
