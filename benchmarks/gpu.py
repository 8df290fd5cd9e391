"""Runs everything there is to measure on a GPU, each in a process of its own.

    python -m benchmarks.gpu --json                 # all; about an hour on one GPU
    python -m benchmarks.gpu --only=biggan128 --json
    python -m benchmarks.gpu --dry-run              # only prints the commands

For BigGAN-128, BigGAN-256 and BigGAN-deep-128 at ch 96 or 128, as their configs have it: batch 256
(cut into micro-batches where it does not fit) and the largest micro-batch that fits, in bfloat16
and float32; PyTorch beside it where it has that network; forms of convolutions and attention;
sampling. The last line is JSON: {name: the line that the benchmark printed, or {"error": its last
words}}. Commands run one after the other, and a program that does not fit is a result, not an end.
"""

import argparse
import json
import subprocess
import sys

CONFIGS = ("biggan128", "biggan256", "biggan_deep128")
DTYPES = ("bfloat16", "float32")
BATCHES = (512, 384, 256, 192, 128, 96, 64, 48, 32, 16)  # Of one GPU, the largest first.
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def commands(steps):
    """Yields (name, benchmark, arguments); alternatives, of which the first that fits counts."""
    for dtype in DTYPES:
        yield f"forms {dtype}", "conv_forms", [[f"--dtype={dtype}"]]
        for side in (64, 128):
            shape = [f"--side={side}", "--channels=96", "--batch=16", f"--dtype={dtype}"]
            yield f"attention {side} {dtype}", "attention", [shape]
        for config in CONFIGS:
            common = [f"--config=configs/{config}.py", f"--dtype={dtype}", f"--steps={steps}"]
            sizes = [[*common, f"--batch={batch}"] for batch in BATCHES]
            cuts = [[*common, "--batch=256", f"--accumulation={2**i}"] for i in range(6)]
            yield f"{config} {dtype} largest batch", "train_step", sizes
            yield f"{config} {dtype} batch 256", "train_step", cuts
            if config != "biggan_deep128":
                yield f"{config} {dtype} beside PyTorch", "torch_step", sizes
    yield "overhead", "overhead", [["--resolution=128", "--ch=96", "--batch=64", "--saves=0"]]
    for config in ("biggan128", "biggan_deep128"):
        where = [f"--config=configs/{config}.py", "--batch=256"]
        yield f"sampling {config}", "sample", [where]


def run(benchmark, alternatives, say):
    """The JSON line of the first of the alternatives that fits the device's memory."""
    answer = {"error": "nothing was tried"}
    for arguments in alternatives:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments, "--json"]
        say(" ".join(command[1:]))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        answer = {"error": done.stderr[-500:], "arguments": arguments}
        if OUT_OF_MEMORY not in done.stderr and "OutOfMemory" not in done.stderr:
            return answer
    return answer


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="what has this in its name")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, leave")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    wanted = [entry for entry in commands(args.steps) if args.only in entry[0]]
    if args.dry_run:
        for name, benchmark, alternatives in wanted:
            print(f"{name}: python -m benchmarks.{benchmark} {' '.join(alternatives[0])}")
        return
    say = (lambda line: None) if args.json else print
    print(json.dumps({name: run(benchmark, some, say) for name, benchmark, some in wanted}))


if __name__ == "__main__":
    main()
