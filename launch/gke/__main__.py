"""`python -m launch.gke ACTION JOB.toml`: a training run as a JobSet of a GKE cluster.

The cluster is the one that kubectl speaks to. Exit codes: 0, 2 for bad arguments, else kubectl's.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from launch.gke import jobset
from launch.job_file import LABEL, JobError

_ACTIONS = {
    "create": "create the JobSet; an error if there is one of its name",
    "logs": "follow what process 0 prints, as it is now",
    "delete": "delete the JobSet, if it was made for this owner",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line, does one action and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.gke", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, words in _ACTIONS.items():
        verb = verbs.add_parser(name, help=words, description=words, allow_abbrev=False)
        verb.add_argument("job", metavar="JOB.toml", help="launch/gke/biggan128.toml is one")
        verb.add_argument("--dry-run", action="store_true", help="print what would be done")
    args = parser.parse_args(argv)
    try:
        values = jobset.read(args.job)
    except JobError as e:
        print(f"gke: {e}", file=sys.stderr)
        return 2
    command: list[str] = [
        "kubectl",
        *_command(args.action, values),
        f"--namespace={values['namespace']}",
    ]
    text = jobset.to_yaml(jobset.jobset(values)) if args.action == "create" else ""
    if args.dry_run:
        # A comment where YAML follows, so that all of it can be piped on.
        print(f"# {shlex.join(command)}, which reads:" if text else shlex.join(command))
        print(text, end="")
        return 0
    try:
        return subprocess.run(command, input=text, text=True).returncode
    except OSError as e:
        print(f"gke: kubectl cannot be started: {e.strerror}.", file=sys.stderr)
        return 1


def _command(action, values):
    ours = f"--selector={LABEL}={values['owner']},{jobset.NAME_LABEL}={values['name']}"
    return {
        "create": ["create", "--filename=-"],
        "logs": ["logs", "--follow", f"{ours},batch.kubernetes.io/job-completion-index=0"],
        "delete": ["delete", "jobsets.jobset.x-k8s.io", ours],
    }[action]


if __name__ == "__main__":
    sys.exit(main())
