"""Loads the HTTP API of `biggan app`: many clients at once, computed together and one at a time.

`python -m benchmarks.app --json [PATH]`

Starts the app on a model (PATH, a run folder or a bundle; else one of the digits' shape with random
weights) in a process of its own, twice: as it is, and so that it computes one request at a time.
Each time `--clients` ask for `--images` images as JSON, each request of another seed, for
`--seconds`. The last line is JSON: for both, answers by status, requests a second, p50 and p95 of
the seconds a request, and the resident memory at a quarter of the time, at the end, and the growth
in between; `ratio_of_batching` is the throughput together over that of one at a time.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

SERVER = (
    "import sys; from biggan_jax.app import server;"
    " server.serve(sys.argv[1], port=0, together=sys.argv[2] == 'True')"
)


def random_model(folder):
    """Writes a bundle of the shape of configs/digits.py; its images are noise."""
    import jax
    import jax.numpy as jnp

    from biggan_jax import config as config_lib
    from biggan_jax.interop import bundle, layout
    from biggan_jax.models import networks

    config = config_lib.load("configs/digits.py")
    generator, _ = networks.build(config)
    z, labels = jnp.zeros((1, config.model.z_dim)), jnp.zeros(1, jnp.int32)
    variables = jax.jit(lambda k: generator.init(k, z, labels, train=False))(jax.random.key(0))
    model = {k: list(v) if isinstance(v, tuple) else v for k, v in config.model.items()}
    images = config.sample.standing_batch * config.sample.standing_passes
    made = bundle.Bundle("digits", model, {}, standing_images=images)
    for part in ("g", "ema"):
        made.add(part, layout.flatten(variables))
    bundle.write(made, folder)


def resident(pid):
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def client(url, number, images, until, statuses, seconds):
    place = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=120)
    seed = number * 1_000_000
    while time.perf_counter() < until:
        begun = time.perf_counter()
        connection.request("GET", f"/api/images?format=json&classes=3&num={images}&seed={seed}")
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
        if answer.status == 200:
            seconds.append(time.perf_counter() - begun)
        else:
            time.sleep(0.05)
        seed += 1
    connection.close()


def measure(path, together, args):
    command = [sys.executable, "-c", SERVER, path, str(together)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if "is ready" not in line:
            raise SystemExit("the app did not start.")
        url = line.split()[2]
        statuses, seconds = [], []
        begun = time.perf_counter()
        memory = {}
        quarter = threading.Timer(
            args.seconds / 4, lambda: memory.update(early=resident(process.pid))
        )
        quarter.start()
        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
            tasks = [
                pool.submit(client, url, i, args.images, begun + args.seconds, statuses, seconds)
                for i in range(args.clients)
            ]
        for task in tasks:
            task.result()
        quarter.join()
        spent = time.perf_counter() - begun
        memory["late"] = resident(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        process.stdout.close()
    cuts = statistics.quantiles(seconds, n=20)
    return {
        "statuses": {str(k): v for k, v in sorted(collections.Counter(statuses).items())},
        "requests_per_second": len(seconds) / spent,
        "p50_seconds": cuts[9],
        "p95_seconds": cuts[18],
        "mib_at_a_quarter": memory["early"],
        "mib_at_the_end": memory["late"],
        "mib_growth": memory["late"] - memory["early"],
        "exit_code": code,
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", help="a run folder or a bundle")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--images", type=int, default=1, help="a request")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    args = parser.parse_args(argv)
    found = {"clients": args.clients, "seconds": args.seconds, "images": args.images}
    with tempfile.TemporaryDirectory() as folder:
        path = args.path or os.path.join(folder, "digits")
        if not args.path:
            random_model(path)
        for name, together in (("together", True), ("one_at_a_time", False)):
            found[name] = measure(path, together, args)
            if not args.json:
                print(name, found[name])
    rates = [found[name]["requests_per_second"] for name in ("together", "one_at_a_time")]
    print(json.dumps({"ratio_of_batching": rates[0] / rates[1], **found}))


if __name__ == "__main__":
    main()
