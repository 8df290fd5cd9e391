"""`python -m launch.tpu_vm ACTION JOB.toml`: a training run on a TPU slice, from any machine.

Exit codes: those of `biggan train` where it was watched to its end (babysit); 2 bad arguments, or
refused; 1 a command failed, and nothing after it was done.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from launch.job_file import JobError
from launch.tpu_vm import babysit, slices, workers
from launch.tpu_vm.gcloud import CommandFailed, Shell, say
from launch.tpu_vm.job import read

_ACTIONS = {
    "create": "ask for the slice (a queued resource)",
    "wait": "wait until it is there",
    "setup": "mount the disk and install the code, on all workers",
    "run": "start the command on all workers, detached",
    "status": "what each worker says: idle, running, ended CODE or lost",
    "logs": "the last lines that the run printed, and the next ones as long as it runs",
    "stop": "SIGTERM to the command: it saves and ends with code 75",
    "babysit": "all of the above; makes it anew after preemption, until it is done",
    "delete": "delete the slice",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, does one action and returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        job = read(args.job)
        return _act(args, Shell(args.dry_run), job) or 0
    except (JobError, slices.Refused) as e:
        say(str(e))
        return 2
    except CommandFailed as e:
        say(str(e))
        return 1
    except babysit.GaveUp as e:
        say(str(e))
        return e.code
    except KeyboardInterrupt:
        say("left as it is; the same command goes on")
        return 130


def _act(args, shell, job):
    if args.action == "babysit":
        return babysit.babysit(shell, job, args.tries, args.poll, args.grace, args.keep)
    if args.action == "wait":
        slices.wait(shell, job, args.poll)
    elif args.action == "logs":
        workers.logs(shell, job, args.worker)
    else:
        action = {
            "create": slices.create,
            "delete": slices.delete,
            "setup": workers.setup,
            "run": workers.run,
            "status": workers.show_status,
            "stop": workers.stop,
        }[args.action]
        action(shell, job)
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m launch.tpu_vm", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in _ACTIONS.items():
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        verb.add_argument("job", metavar="JOB.toml", help="launch/tpu_vm/biggan128.toml is one")
        verb.add_argument("--dry-run", action="store_true", help="print the commands, run none")
        if name in ("wait", "babysit"):
            verb.add_argument(
                "--poll",
                type=_seconds,
                default=30.0,
                metavar="SECONDS",
                help="between two looks (default: 30)",
            )
        if name == "logs":
            verb.add_argument(
                "--worker",
                default="0",
                type=_workers,
                help="which: 0 (alone prints progress; the default), 1-3 or all",
            )
        if name == "babysit":
            verb.add_argument(
                "--tries",
                type=_count,
                default=20,
                metavar="N",
                help="how often training may end early, or its slice be lost (default: 20)",
            )
            verb.add_argument(
                "--grace",
                type=_seconds,
                default=90.0,
                metavar="SECONDS",
                help="for the other workers when one has ended; more than heartbeat_seconds"
                " (default: 90)",
            )
            verb.add_argument(
                "--keep", action="store_true", help="leave the slice at the end; it costs money"
            )
    return parser


def _seconds(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be more than 0 seconds.")
    return value


def _workers(text):
    if not re.fullmatch(r"all|\d+([-,]\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be like 0, 1-3 or all.")
    return text


def _count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be at least 1.")
    return value


if __name__ == "__main__":
    sys.exit(main())
