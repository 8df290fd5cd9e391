"""The life of a slice: asked for, waited for, deleted, and never another's."""

import dataclasses
import json
import time

from launch.job_file import LABEL
from launch.tpu_vm import gcloud
from launch.tpu_vm.gcloud import Shell, say
from launch.tpu_vm.job import Job

# https://cloud.google.com/tpu/docs/queued-resources names the states.
ACTIVE = "ACTIVE"
GONE = ("FAILED", "SUSPENDED")  # Nothing comes of the request any more; it has to be deleted.
GOING = ("SUSPENDING", "DELETING")
# And those of the TPU VM in it.
READY = "READY"
NODE_GONE = ("PREEMPTED", "TERMINATED", "STOPPED")


class Refused(RuntimeError):
    """What was asked is not done; the message is one sentence that says why."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """A queued resource as it was seen."""

    state: str
    owner: str | None  # The value of our label.


def look(shell: Shell, job: Job) -> Slice | None:
    """Returns the job's slice, or None if there is none.

    Raises:
      CommandFailed: if gcloud cannot tell.
    """
    for item in json.loads(shell.read(gcloud.list_slices(job)) or "[]"):
        if item["name"].rpartition("/")[2] == job.name:
            specs = item.get("tpu", {}).get("nodeSpec") or [{}]
            labels = specs[0].get("node", {}).get("labels", {})
            return Slice(item["state"]["state"], labels.get(LABEL))
    return None


def node_state(shell: Shell, job: Job) -> str:
    """Returns the state of the slice's TPU VM, "absent" if there is none.

    Raises:
      CommandFailed: if gcloud cannot tell.
    """
    for item in json.loads(shell.read(gcloud.list_nodes(job)) or "[]"):
        if item["name"].rpartition("/")[2] == job.name:
            return item["state"]
    return "absent"


def create(shell: Shell, job: Job) -> None:
    """Asks for the slice.

    Raises:
      Refused: if there is one of that name.
    """
    shell.note(f"goes on only if no queued resource is called {job.name}")
    there = look(shell, job)
    if there is not None:
        raise Refused(
            f"{job.name}: there is a queued resource of that name in {job.zone} (state"
            f" {there.state}); delete it or choose another name."
        )
    shell.run(gcloud.create_slice(job))


def wait(shell: Shell, job: Job, poll: float) -> None:
    """Waits until the slice is there to be used.

    Raises:
      Refused: if it is not ours, or will never be there.
    """
    shell.note(f"every {poll:g} seconds, until the state is {ACTIVE}")
    seen = None
    began = time.monotonic()
    while True:
        found = look(shell, job)
        if shell.dry_run:
            return
        found = check_ours(job, found)
        if found.state != seen:
            seen = found.state
            say(f"{job.name} is {seen} after {time.monotonic() - began:.0f} s")
        if seen == ACTIVE:
            return
        if seen in GONE + GOING:
            raise Refused(f"{job.name}: is {seen}, so it will not come; delete it and ask again.")
        time.sleep(poll)


def delete(shell: Shell, job: Job) -> None:
    """Deletes the slice, if it was made for this owner.

    Raises:
      Refused: if there is none, or it is another's.
    """
    require(shell, job)
    shell.run(gcloud.delete_slice(job))


def require(shell: Shell, job: Job) -> None:
    """Lets pass only if there is a slice that was made for this owner.

    Raises:
      Refused: if not.
    """
    shell.note(f"goes on only if {job.name} carries the label {LABEL}={job.owner}")
    found = look(shell, job)
    if not shell.dry_run:
        check_ours(job, found)


def check_ours(job: Job, found: Slice | None) -> Slice:
    """Lets pass only what this program made for this owner.

    Raises:
      Refused: if there is no slice, or it does not carry the label with the owner's name.
    """
    if found is None:
        raise Refused(f"{job.name}: there is no such queued resource in {job.zone}.")
    if found.owner != job.owner:
        label = f"{LABEL}={found.owner}" if found.owner else f"no label {LABEL}"
        raise Refused(
            f"{job.name}: was not made by this program for {job.owner!r} (it carries {label}), so"
            " it is left alone."
        )
    return found
