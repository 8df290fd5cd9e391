"""The job file of one training run on one TPU slice."""

import dataclasses
from typing import Any

from launch import job_file
from launch.job_file import MUST, JobError, must

_KINDS = ("spot", "reserved", "on-demand")
_OPTIONS = ("network", "subnetwork", "service_account", "valid_until_duration")
_KEYS: dict[str, dict[str, tuple[type, Any]]] = {
    "": {
        "name": (str, MUST),
        "owner": (str, MUST),
        "project": (str, MUST),
        "zone": (str, MUST),
        "accelerator_type": (str, MUST),
        "runtime_version": (str, MUST),
        "provisioning": (str, MUST),
        "internal_ips": (bool, False),
        **{key: (str, "") for key in _OPTIONS},
    },
    "disk": {"nfs": (str, MUST), "mount": (str, MUST)},
    "code": {
        "repository": (str, MUST),
        "revision": (str, ""),
        "release": (str, ""),
        "python": (str, "3.12"),
    },
    "train": {"command": (list, MUST)},
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A job file, read and checked.

    Attributes:
      name: of the queued resource and of its TPU VM.
      owner: the value of the label that says who made the slice; others' are not touched.
      project: on Google Cloud.
      zone: where the slice is.
      accelerator_type: v3-128, say; the number is that of cores up to v4 and v5p, then of chips.
      runtime_version: the image of the TPU VMs.
      provisioning: "spot", "reserved" or "on-demand".
      options: further flags for the queued resource, by name.
      internal_ips: whether the workers have no external address and are spoken to by their own.
      nfs: HOST:/SHARE of the disk that all workers mount.
      mount: where.
      repository: from where git fetches the code.
      revision: a commit (40 hexadecimal digits) or a release tag.
      python: the version of Python on the workers.
      command: what every worker runs, in the folder of the code.
    """

    name: str
    owner: str
    project: str
    zone: str
    accelerator_type: str
    runtime_version: str
    provisioning: str
    options: dict[str, str]
    internal_ips: bool
    nfs: str
    mount: str
    repository: str
    revision: str
    python: str
    command: tuple[str, ...]

    @property
    def logs(self) -> str:
        """The folder on the shared disk with one log a worker."""
        return f"{self.mount}/launch/{self.name}"


def read(path: str) -> Job:
    """Reads a job file.

    Raises:
      JobError: naming the file, the key and what is allowed.
    """
    try:
        values = job_file.read(path, _KEYS)
        _check(values)
    except JobError as e:
        raise JobError(f"{path}: {e}") from None
    return Job(
        **{key: values[key] for key in _KEYS[""] if key not in _OPTIONS},
        options={key: values[key] for key in _OPTIONS if values[key]},
        nfs=values["disk.nfs"],
        mount=values["disk.mount"],
        repository=values["code.repository"],
        revision=values["code.revision"] or values["code.release"],
        python=values["code.python"],
        command=tuple(values["train.command"]),
    )


def _check(values):
    job_file.check_common(values)
    must(values, "zone", job_file.NAME, job_file.NAME_WORDS)
    must(values, "project", r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]", "is no project id")
    must(values, "accelerator_type", r"[a-z0-9]+-\d+", "must be like v3-128 or v5litepod-16")
    must(values, "runtime_version", r"[A-Za-z0-9._-]+", "must be like tpu-ubuntu2204-base")
    for key in _OPTIONS:
        must(values, key, r"\S*", "must hold no blanks")
    if values["provisioning"] not in _KINDS:
        kinds = ", ".join(_KINDS)
        raise JobError(f"provisioning={values['provisioning']!r}: must be one of {kinds}.")
    must(values, "disk.nfs", r"[^\s:/-][^\s:/]*:/[^\s/]\S*", "must be HOST:/SHARE")
    must(values, "code.repository", r"[^-].*", "must be what git fetches from")
    must(values, "code.python", r"3\.\d+(\.\d+)?", "must be like 3.12")
    if bool(values["code.revision"]) == bool(values["code.release"]):
        raise JobError("code: needs a revision or a release, and not both.")
    if values["code.revision"]:  # Branches move, and so do short hashes.
        must(values, "code.revision", r"[0-9a-f]{40}", "must be a whole commit hash, 40 digits")
    else:
        must(values, "code.release", r"v\d+(\.\d+)*[A-Za-z0-9.]*", "must be a tag like v1.0.0")
