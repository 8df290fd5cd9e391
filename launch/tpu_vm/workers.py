"""What the workers of a slice are asked: all of them, over ssh, by worker.sh."""

import dataclasses

from launch import local_pod
from launch.tpu_vm import gcloud, slices
from launch.tpu_vm.gcloud import CommandFailed, Shell, say
from launch.tpu_vm.job import Job

_MARK = "biggan-worker"  # First on the lines of worker.sh that are meant for this program.
LOST = 69  # A worker that was started and is gone: as biggan says of a process that is lost.


@dataclasses.dataclass(frozen=True)
class Status:
    """What the workers say of themselves.

    Attributes:
      reached: whether all of them answered.
      running: how many run the command.
      idle: how many have not been asked to since the slice was made.
      codes: exit codes of those that ended.
    """

    reached: bool
    running: int
    idle: int
    codes: tuple[int, ...]


def setup(shell: Shell, job: Job) -> None:
    """Mounts the disk and installs the code at its pinned version, on all workers.

    Raises:
      CommandFailed: if a worker cannot, or they come to different commits.
      Refused: if the slice is not ours.
    """
    slices.require(shell, job)
    install(shell, job)


def install(shell: Shell, job: Job) -> None:
    """`setup` of a slice that is known to be ours."""
    shell.run(gcloud.send_script(job))
    words = ["setup", job.nfs, job.mount, job.repository, job.revision, job.python, "tpu"]
    output = shell.read(gcloud.on_workers(job, words))
    if shell.dry_run:
        return
    ready = [words for words in _lines(output) if words[1] == "ready"]
    commits = {words[2] for words in ready}
    if len(commits) != 1:
        raise CommandFailed(f"{job.name}: the workers have different commits: {sorted(commits)}.")
    say(f"{len(ready)} workers are ready, commit {commits.pop()}")


def run(shell: Shell, job: Job) -> None:
    """Starts the command on all workers, where it goes on without this program.

    Raises:
      CommandFailed: if it runs already, or cannot be started.
      Refused: if the slice is not ours.
    """
    slices.require(shell, job)
    start(shell, job)
    if not shell.dry_run:
        say(f"started; the logs are in {job.logs}, and `logs` follows them")


def start(shell: Shell, job: Job) -> None:
    """`run` of a slice that is known to be ours."""
    shell.read(gcloud.on_workers(job, ["start", job.name, job.logs, *job.command]))


def status(shell: Shell, job: Job) -> Status:
    """Asks all workers how the command stands."""
    reached, output = shell.try_read(gcloud.on_workers(job, ["status", job.name]))
    lines = _lines(output)
    codes = [int(words[2]) for words in lines if words[1] == "ended"]
    codes += [LOST for words in lines if words[1] == "lost"]
    states = [words[1] for words in lines]
    return Status(reached, states.count("running"), states.count("idle"), tuple(codes))


def show_status(shell: Shell, job: Job) -> None:
    """Prints what each worker says of the command."""
    slices.require(shell, job)
    shell.run(gcloud.on_workers(job, ["status", job.name]))


def stop(shell: Shell, job: Job) -> None:
    """Sends SIGTERM to the command on all workers, once: it saves, and ends with code 75."""
    slices.require(shell, job)
    end(shell, job, "TERM")


def end(shell: Shell, job: Job, signal: str) -> None:
    """Sends a signal to the command on all workers that still run it."""
    shell.run(gcloud.on_workers(job, ["stop", job.name, signal]))


def logs(shell: Shell, job: Job, workers: str) -> None:
    """Follows the log of worker 0, which alone prints progress, or of others."""
    shell.run(gcloud.on_workers(job, ["follow", job.name, job.logs], workers))


def code_of(codes: tuple[int, ...]) -> int:
    """Returns one exit code for all workers, by the same rule as on one machine."""
    return local_pod.common_code(codes)


def _lines(output):
    """Returns the words of the workers' lines: host, state, and what belongs to it."""
    lines = [line.split() for line in output.splitlines()]
    return [words[1:] for words in lines if len(words) > 2 and words[0] == _MARK]
