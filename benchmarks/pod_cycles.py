"""Reads how long a step is to take on a pod out of the program compiled for it; no pod is needed.

`python -m benchmarks.pod_cycles --config=configs/biggan128.py --slice=v3-512 --json`

The TPU compiler writes an estimate of its cycles beside each operation. Their sum over the program,
divided by the clock, is `total_ms`; `parts_ms` are by kind of operation (`plan/hlo.py` says what a
kind is). It sees padding and small batches, which FLOPs do not. It does not see links: `link_ms` is
the least that the collectives' bytes take at published rates. Needs `pip install -e .[plan]`; the
program is compiled as training compiles it, which takes some minutes.
"""

import argparse
import json
import sys

from biggan_jax import config as config_lib
from biggan_jax.parallel import slices
from biggan_jax.plan import bounds, hlo
from biggan_jax.plan import compile as compile_lib


def measure(config, where, say, hlo_file=None):
    """Returns the numbers of one compile."""
    facts = compile_lib.facts(config, where, say=say, hlo=hlo_file)
    gib = {k: round(v / slices.GIB, 3) for k, v in facts["memory"].items()}
    common = {
        "config": config.name,
        "slice": where.name,
        "batch_size": config.batch_size,
        "images_a_device": config.batch_size / config.accumulation / where.devices,
        "dtype": config.model.dtype,
        "fits": facts["fits"],
        "memory_gib": gib,
        "compile_seconds": round(facts["compile_seconds"]),
        "versions": facts["versions"],
    }
    if not facts["fits"]:
        return common | {"total_ms": None, "compiler_says": facts["compiler_says"]}
    milliseconds = {k: 1e3 * v / where.chip.clock for k, v in facts["cycles"].items()}
    times = bounds.seconds(facts, where)
    return common | {
        "total_ms": round(sum(milliseconds.values()), 2),
        "parts_ms": {k: round(v, 2) for k, v in milliseconds.items()},
        "link_ms": round(1e3 * times["links"], 2),
        "flop_bound_ms": round(1e3 * times["flops"], 2),
        "roofline_ms": round(1e3 * times["roofline"], 2) if "roofline" in times else None,
        "collectives": facts["collectives"],
        "clock_mhz": where.chip.clock / 1e6,
        "clock_source": where.chip.clock_source,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--slice", required=True)
    parser.add_argument("--hlo", help="a file to write the compiled text to")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args, rest = parser.parse_known_args(argv)
    pairs = [arg.removeprefix("--config.").split("=", 1) for arg in rest]
    if any(not a.startswith("--config.") or "=" not in a for a in rest):
        parser.error(f"unknown: {' '.join(rest)}")
    where = slices.find(args.slice)
    config = config_lib.resolve(config_lib.load(args.config, pairs), where.devices)
    result = measure(config, where, lambda line: print(line, file=sys.stderr), args.hlo)
    if not args.json:
        for kind, text in hlo.KINDS.items():
            if result["total_ms"] is not None:
                print(f"{result['parts_ms'][kind]:8.2f} ms  {kind}: {text}")
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except config_lib.ConfigError as e:
        sys.exit(f"pod_cycles: {e}")
