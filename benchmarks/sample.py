"""Times sampling: BigGAN-deep-128 with random weights, beside `pytorch_pretrained_biggan`.

`python -m benchmarks.sample --json`

Both programs hold the same weights and make images from the same latents, at truncation 0.5, turn
by turn; `difference` says how far the images are apart, in [-1, 1]. The last line is JSON:
`ratio_to_huggingface` (images a second of ours over theirs: medians of the seconds a batch),
`ratio_of_cpu_seconds` (theirs over ours: what stays steady on a machine with other work), the
seconds of each round, and the setting. Needs the extra `interop`. `--alone=BUNDLE` leaves the
other program out, and with it torch; `--config=FILE.py` times a generator with random weights,
folded and a whole batch at once, and wants no more packages than a training step.
"""

import argparse
import json
import tempfile

import jax
import numpy as np

from benchmarks import common

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
    from biggan_jax import api
    from biggan_jax.interop import huggingface, pth

    with tempfile.TemporaryDirectory() as folder:
        state = {name: value.numpy() for name, value in theirs.state_dict().items()}
        pth.write(f"{folder}/pytorch_model.bin", state)
        with open(f"{folder}/config.json", "w") as f:
            f.write(theirs.config.to_json_string())
        return api.Model(huggingface.read(folder), devices)


def load(path, devices):
    from biggan_jax import api

    return api.load(path, None, devices)


def time_config(args):
    """Times the generator of a config file with random weights."""
    from biggan_jax import config as config_lib
    from biggan_jax.gan import step as step_lib
    from biggan_jax.models import networks
    from biggan_jax.parallel import mesh as mesh_lib
    from biggan_jax.sample import folding

    c = config_lib.load(args.config)
    c.update(batch_size=args.batch * args.devices, accumulation=1, device_count=args.devices)
    c.model.dtype = args.dtype
    config = config_lib.resolve(c, args.devices)
    mesh = mesh_lib.make_mesh(args.devices)
    generator, _ = networks.build(config, mesh.devices.flat[0].platform)
    state = step_lib.init_state(config, mesh)
    weights = folding.fold(generator, {"params": state.g_params, "spectral": state.g_spectral})
    cut = mesh_lib.batch_sharding(mesh, 0)
    z = jax.device_put(np.ones((config.batch_size, config.model.z_dim), np.float32), cut)
    classes = np.eye(config.model.num_classes, dtype=np.float32)
    mix = jax.device_put(classes[np.arange(config.batch_size) % len(classes)], cut)
    run = jax.jit(lambda w, s, z, mix: folding.apply(generator, w, s, z, mix))
    call = lambda: jax.block_until_ready(run(weights, state.g_batch_stats, z, mix))  # noqa: E731
    _, seconds, medians = common.side_by_side({"ours": call}, args)
    rate = config.batch_size / medians["wall"]["ours"]
    result = {
        "images_per_second": rate,
        "seconds": seconds["wall"]["ours"],
        "memory": common.device_memory(),
    }
    common.print_json(result | {"device": jax.devices()[0].device_kind}, args)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of torch; JAX takes all cores")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--alone", metavar="BUNDLE", help="time this model, without torch")
    parser.add_argument("--config", help="time a generator of FILE.py, without torch")
    parser.add_argument("--dtype", default="float32", help="of convolutions, with --config")
    common.add_arguments(parser, steps=5)
    args = parser.parse_args(argv)
    if args.config:
        time_config(args)
        return
    theirs = None if args.alone else make_theirs(args.threads)
    ours = load(args.alone, args.devices) if args.alone else make_ours(theirs, args.devices)
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
    images, seconds, medians = common.side_by_side(calls, args)
    wall, work = medians["wall"], medians["cpu"]
    result = {
        "images_per_second": args.batch / wall["ours"],
        "seconds": seconds["wall"],
        "cpu_seconds": seconds["cpu"],
        "device": jax.devices()[0].device_kind,
        "devices": args.devices,
        "batch": args.batch,
        "tile": ours.tile,
    }
    if theirs:
        apart = np.abs(images["ours"] - images["theirs"].transpose(0, 2, 3, 1)).max()
        result = {
            "ratio_to_huggingface": wall["theirs"] / wall["ours"],
            "ratio_of_cpu_seconds": work["theirs"] / work["ours"],
            "difference": float(apart),
            **result,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
