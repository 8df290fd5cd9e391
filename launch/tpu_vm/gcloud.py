"""The `gcloud` commands, and how they are run or, in a dry run, printed."""

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from launch.job_file import LABEL
from launch.tpu_vm.job import Job

_FLAGS = {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}
_SCRIPT = "biggan-worker.sh"  # In the home folder of every worker.


class CommandFailed(RuntimeError):
    """A command ended with an error; the message says which and with what code."""


class Shell:
    """Runs commands, or prints them: one a line, quoted for a shell."""

    def __init__(self, dry_run: bool):
        """Takes whether to print instead of to run."""
        self.dry_run = dry_run

    def run(self, command: Sequence[str]) -> None:
        """Runs a command whose output the user sees.

        Raises:
          CommandFailed: if its exit code is not 0.
        """
        code, _ = self._run(command, None)
        _check(command, code)

    def read(self, command: Sequence[str]) -> str:
        """Runs a command and returns what it prints; nothing in a dry run.

        Raises:
          CommandFailed: if its exit code is not 0.
        """
        code, output = self._run(command, subprocess.PIPE)
        _check(command, code)
        return output

    def try_read(self, command: Sequence[str]) -> tuple[bool, str]:
        """Returns whether a command's exit code was 0, and what it printed."""
        code, output = self._run(command, subprocess.PIPE)
        return code == 0, output

    def note(self, line: str) -> None:
        """Prints a line for the reader of a dry run."""
        if self.dry_run:
            print(f"# {line}", flush=True)

    def _run(self, command, stdout):
        if self.dry_run:
            print(shlex.join(command), flush=True)
            return 0, ""
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=stdout, text=True)
        except OSError as e:
            raise CommandFailed(f"{command[0]}: cannot be started: {e.strerror}.") from None
        return done.returncode, done.stdout or ""


def say(line: str) -> None:
    """Prints a line of our own, apart from what commands print."""
    print(f"tpu_vm: {line}", file=sys.stderr, flush=True)


def _check(command, code):
    if code:
        raise CommandFailed(f"code {code} from: {shlex.join(command)}")


def list_slices(job: Job) -> list[str]:
    """All queued resources of the zone: unlike `describe`, no error where there is none."""
    return [*_queue("list"), *_place(job), "--format=json"]


def list_nodes(job: Job) -> list[str]:
    """All TPU VMs of the zone."""
    return [*_vm("list"), *_place(job), "--format=json"]


def create_slice(job: Job) -> list[str]:
    """The request for the slice."""
    return [
        *_queue("create"),
        job.name,
        *_place(job),
        f"--node-id={job.name}",
        f"--accelerator-type={job.accelerator_type}",
        f"--runtime-version={job.runtime_version}",
        *_FLAGS[job.provisioning],
        *[f"--{key.replace('_', '-')}={value}" for key, value in job.options.items()],
        *(["--internal-ips"] if job.internal_ips else []),
        f"--labels={LABEL}={job.owner}",
        "--quiet",
    ]


def delete_slice(job: Job) -> list[str]:
    """Takes the request away with its TPU VM (`--force`), and returns when both are gone."""
    return [*_queue("delete"), job.name, *_place(job), "--force", "--quiet"]


def send_script(job: Job) -> list[str]:
    """Copies worker.sh to all workers."""
    script = pathlib.Path(__file__).with_name("worker.sh")
    if script.is_relative_to(pathlib.Path.cwd()):
        script = script.relative_to(pathlib.Path.cwd())
    return [*_vm("scp"), str(script), f"{job.name}:{_SCRIPT}", *_all(job)]


def on_workers(job: Job, words: Sequence[str], workers: str = "all") -> list[str]:
    """Lets workers run worker.sh with these words."""
    command = shlex.join(["bash", _SCRIPT, *words])
    return [*_vm("ssh"), job.name, *_all(job, workers), f"--command={command}"]


def _queue(verb):
    return ["gcloud", "compute", "tpus", "queued-resources", verb]


def _vm(verb):
    return ["gcloud", "compute", "tpus", "tpu-vm", verb]


def _place(job):
    return [f"--project={job.project}", f"--zone={job.zone}"]


def _all(job, workers="all"):
    internal = ["--internal-ip"] if job.internal_ips else []
    return [*_place(job), f"--worker={workers}", *internal, "--quiet"]
