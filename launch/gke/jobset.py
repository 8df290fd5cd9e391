"""The JobSet of one training run on one TPU slice of a GKE cluster.

Of the exit codes of `biggan train`, 2 and 3 fail the job by its pod failure policy, and that fails
the JobSet; any other end, a lost node included, starts all of it again, a bounded number of times.
"""

import json
import math
import re
from typing import Any

from launch import job_file
from launch.job_file import LABEL, MUST, JobError, must
from launch.local_pod import NOT_AGAIN

NAME_LABEL = "biggan-name"
_CONTAINER = "train"
_NO_STRINGS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")  # In YAML 1.1.
_KEYS: dict[str, dict[str, tuple[type, Any]]] = {
    "": {
        "name": (str, MUST),
        "owner": (str, MUST),
        "namespace": (str, "default"),
        "accelerator": (str, MUST),
        "topology": (str, MUST),
        "chips_per_host": (int, 4),
        "spot": (bool, False),
        "image": (str, MUST),
        "tries": (int, 20),
        "termination_seconds": (int, 60),
    },
    "disk": {"claim": (str, MUST), "mount": (str, MUST)},
    "train": {"command": (list, MUST)},
}


def read(path: str) -> dict[str, Any]:
    """Reads a job file; launch/gke/biggan128.toml says what its keys mean.

    Raises:
      JobError: naming the file, the key and what is allowed.
    """
    try:
        values = job_file.read(path, _KEYS)
        _check(values)
    except JobError as e:
        raise JobError(f"{path}: {e}") from None
    return values


def _check(values):
    job_file.check_common(values)
    # It becomes part of the pods' host names, which have 63 characters at most.
    if len(values["name"]) > 40:
        raise JobError(f"name={values['name']!r}: must have 40 characters at most.")
    must(values, "namespace", job_file.NAME, job_file.NAME_WORDS)
    must(values, "accelerator", r"tpu[a-z0-9-]+", "must be like tpu-v5-lite-podslice")
    must(values, "topology", r"\d+(x\d+){1,2}", "must be like 8x16 or 4x4x8")
    # A tag can be moved; so that all restarts run the same code, an image is named by its hash.
    must(values, "image", r"\S+@sha256:[0-9a-f]{64}", "must end with @sha256: and its 64 digits")
    must(values, "disk.claim", job_file.NAME, job_file.NAME_WORDS)
    for key in ("chips_per_host", "tries", "termination_seconds"):
        if values[key] < 1:
            raise JobError(f"{key}={values[key]}: must be at least 1.")
    chips, per_host = _chips(values), values["chips_per_host"]
    if chips % per_host:
        raise JobError(
            f"topology={values['topology']!r}: has {chips} chips, which are no multiple of"
            f" chips_per_host={per_host}."
        )


def _chips(values):
    return math.prod(int(side) for side in values["topology"].split("x"))


def jobset(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the JobSet as JSON values; `values` as `read` gives them."""
    hosts = _chips(values) // values["chips_per_host"]
    labels = {LABEL: values["owner"], NAME_LABEL: values["name"]}
    stop = {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": _CONTAINER,
            "operator": "In",
            "values": [code for code in NOT_AGAIN if code],
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": values["name"],
            "namespace": values["namespace"],
            "labels": labels,
            # All pods on one slice: that is a node pool.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": values["tries"] - 1,
                "rules": [
                    {
                        "name": "notAgain",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": 1,
                    "template": {
                        "spec": {
                            "parallelism": hosts,
                            "completions": hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,  # A run is all of its processes or none.
                            "podFailurePolicy": {"rules": [stop]},
                            "template": {
                                "metadata": {"labels": labels},
                                "spec": _pod(values),
                            },
                        }
                    },
                }
            ],
        },
    }


def _pod(values):
    selector = {
        "cloud.google.com/gke-tpu-accelerator": values["accelerator"],
        "cloud.google.com/gke-tpu-topology": values["topology"],
    }
    tolerations = []
    if values["spot"]:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations = [
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    chips = {"google.com/tpu": values["chips_per_host"]}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": values["termination_seconds"],
        "nodeSelector": selector,
        "containers": [
            {
                "name": _CONTAINER,
                "image": values["image"],
                # Process 1 of the container, so that SIGTERM comes to it. Kubernetes expands $(X).
                "command": [word.replace("$", "$$") for word in values["train.command"]],
                "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
                "resources": {"requests": chips, "limits": chips},
                "volumeMounts": [{"name": "shared", "mountPath": values["disk.mount"]}],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": values["disk.claim"]}}
        ],
    }
    return pod | ({"tolerations": tolerations} if tolerations else {})


def to_yaml(value: Any, indent: int = 0) -> str:
    """Returns JSON values as block YAML, two spaces a level."""
    pad = " " * indent
    lines = []
    if isinstance(value, dict):
        for key, item in value.items():
            lines.append(f"{pad}{_scalar(key)}:{_item(item, indent)}")
    else:
        for item in value:
            if isinstance(item, dict | list):
                lines.append(f"{pad}- {to_yaml(item, indent + 2).lstrip()}".rstrip("\n"))
            else:
                lines.append(f"{pad}- {_scalar(item)}")
    return "".join(line.rstrip("\n") + "\n" for line in lines)


def _item(item, indent):
    if isinstance(item, dict | list):
        return "\n" + to_yaml(item, indent + 2)
    return f" {_scalar(item)}"


def _scalar(value):
    # A string in JSON is one in YAML; what could be taken for something else is written so.
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9./_-]*", value)
    if plain and value.lower() not in _NO_STRINGS:
        return value
    return json.dumps(value, ensure_ascii=False)
