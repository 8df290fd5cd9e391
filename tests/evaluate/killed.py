"""`biggan evaluate` in a process of its own, to be killed: `python -m tests.evaluate.killed ...`.

It writes its progress after each batch, says on stderr where it begins each set of images, and with
SLOW in the environment waits so many seconds a batch.
"""

import os
import sys
import time

from biggan_jax import cli
from biggan_jax.evaluate import extractors, images, progress
from tests.evaluate.test_evaluator import extractor


def main():
    progress.EVERY = 0.0
    extractors.load = lambda name, weights=None: extractor(name)
    read = images.FromArray.read

    def slow(self, index):
        print(f"reads {index[0]} to {index[-1]}", file=sys.stderr, flush=True)
        time.sleep(float(os.environ.get("SLOW", "0")))
        return read(self, index)

    images.FromArray.read = slow
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
