"""Times our training step beside a plain PyTorch one of the same shapes, in turns, in one run.

    python -m benchmarks.torch_step --resolution=32 --ch=32 --batch=64 --d-steps=2 --json

On a GPU PyTorch gets channels_last, autocast where `--dtype=bfloat16`, torch.compile, fused Adam,
TF32; on a CPU both layouts, and ours is compared with the faster one. The last line is JSON:
`ratio` (medians of the seconds a step, theirs over ours), `ratio_of_cpu_seconds` (processor time
instead: what stays steadier on a machine with other work), `ratios` (of each round), `torch` (its
numbers), `torch_images_per_second` (by layout) and all that `benchmarks.train_step` says of ours.
Needs torch.
"""

import argparse
import os

from benchmarks import common, train_step


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    train_step.add_model_arguments(parser)
    common.add_arguments(parser)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU; default: one a core")
    args = parser.parse_args(argv)
    # Both want most of a GPU's memory; JAX would take three quarters at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import torch

    from benchmarks import torch_networks

    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    config = train_step.make_config(args)
    if config.model.arch != "biggan" or config.accumulation > 1 or config.device_count > 1:
        parser.error("PyTorch's side has BigGAN, on one device and without accumulation alone.")
    say = (lambda line: None) if args.json else print
    say("compiling ...")
    theirs = {"channels_last": torch_networks.Step(config)}
    if not torch.cuda.is_available():
        theirs["contiguous"] = torch_networks.Step(config, channels_last=False)
    calls = {"ours": train_step.Ours(config)} | theirs
    _, spent, medians = common.side_by_side(calls, args)
    seconds, work = medians["wall"], medians["cpu"]
    best = min(theirs, key=seconds.get)
    rounds = zip(spent["wall"]["ours"], spent["wall"][best], strict=True)
    images = config.batch_size * config.d_steps
    result = {
        "ratio": seconds[best] / seconds["ours"],
        "ratio_of_cpu_seconds": work[best] / work["ours"],
        "ratios": [round(b / a, 3) for a, b in rounds],
        "torch": {
            "layout": best,
            "step_seconds": seconds[best],
            "cpu_seconds": work[best],
            "real_images_per_second": images / seconds[best],
            "memory": theirs[best].memory(),
            "version": torch.__version__,
        },
        "torch_images_per_second": {name: images / seconds[name] for name in theirs},
    }
    ours = train_step.numbers(config, spent["wall"]["ours"], spent["cpu"]["ours"], calls["ours"])
    common.print_json(result | ours, args)


if __name__ == "__main__":
    main()
