"""The JobSet: against its schema, against the exit codes, and as kubectl is given it."""

import copy
import json
import os
import pathlib
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch import job_file, local_pod
from launch.gke import jobset
from tests.launch.conftest import ROOT

HERE = pathlib.Path(__file__).parent
EXAMPLE = "launch/gke/biggan128.toml"
SCHEMA = jsonschema.Draft202012Validator(json.loads((HERE / "jobset_schema.json").read_text()))


def gke(*words, path="/nowhere"):
    command = [sys.executable, "-m", "launch.gke", *words]
    env = dict(os.environ, PATH=path)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def changed(tmp_path, *pairs):
    text = (ROOT / EXAMPLE).read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "it's a job.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.multiprocess
@pytest.mark.parametrize("action", ["create", "logs", "delete"])
def test_dry_runs(action):
    code, out, err = gke(action, EXAMPLE, "--dry-run")
    assert (code, err) == (0, "")
    assert out == (HERE / "golden" / f"gke_{action}.txt").read_text()


ODD = (
    """train", "--workdir=/mnt/biggan/it's \\"here\\": # $(HOME) $$","""
    """ "", "no", "3", "é\\t\\n", "- x"""
)


def test_the_jobset_is_one_and_its_yaml_says_the_same(tmp_path):
    old = 'train", "--config=configs/biggan128.py",\n'
    workdir = '  "--workdir=/mnt/biggan/runs/biggan128",\n'
    for pairs in [(), ((old, ODD + '",\n'), (workdir, ""), ("spot = true", ""))]:
        values = jobset.read(changed(tmp_path, *pairs))
        made = jobset.jobset(values)
        SCHEMA.validate(made)
        assert yaml.safe_load(jobset.to_yaml(made)) == made
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    assert words[2] == '--workdir=/mnt/biggan/it\'s "here": # $$(HOME) $$$$'
    assert words[3:8] == ["", "no", "3", "é\t\n", "- x"]
    assert "tolerations" not in pod


def test_the_schema_finds_mistakes():
    good = jobset.jobset(jobset.read(str(ROOT / EXAMPLE)))
    for path, value in [
        (("spec", "failurePolicy", "maxRestart"), 3),
        (("spec", "failurePolicy", "maxRestarts"), "3"),
        (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
        (
            ("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"),
            "No",
        ),
        (("metadata", "labels", "biggan-launch"), "a b"),
    ]:
        bad = copy.deepcopy(good)
        node = bad
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        assert not SCHEMA.is_valid(bad), path


def test_exit_codes_are_those_of_all_launchers():
    spec = jobset.jobset(jobset.read(str(ROOT / EXAMPLE)))["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In"
    assert {0, *codes["values"]} == set(local_pod.NOT_AGAIN)
    names = [one["name"] for one in job["template"]["spec"]["containers"]]
    assert codes["containerName"] in names
    # That ends the JobSet; every other failed job starts it again, as often as it says.
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["failurePolicy"]["maxRestarts"] == 19 and job["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("topology", "per_host", "hosts"), [("8x16", 4, 32), ("4x4x8", 4, 32), ("2x4", 8, 1)]
)
def test_one_pod_a_host(tmp_path, topology, per_host, hosts):
    file = changed(
        tmp_path, ("8x16", topology), ("chips_per_host = 4", f"chips_per_host = {per_host}")
    )
    job = jobset.jobset(jobset.read(file))["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"biggan128"', '"Big"', "name='Big': must be small letters"),
        ('"biggan128"', f'"{"a" * 41}"', "must have 40 characters at most."),
        ('"8x16"', '"128"', "topology='128': must be like 8x16 or 4x4x8."),
        ('"8x16"', '"3x3"', "has 9 chips, which are no multiple of chips_per_host=4."),
        ("tries = 20", "tries = 0", "tries=0: must be at least 1."),
        ("@sha256:", ":latest", "must end with @sha256: and its 64 digits."),
        ("--workdir=/mnt/biggan/", "--workdir=gs://bucket/", "below disk.mount (/mnt/biggan)"),
        ("spot = true", "spot = 1", "spot=1: must be a true or false."),
    ],
)
def test_bad_job_files_are_named(tmp_path, old, new, message):
    with pytest.raises(job_file.JobError) as e:
        jobset.read(changed(tmp_path, (old, new)))
    assert message in str(e.value)


@pytest.mark.multiprocess
def test_what_kubectl_is_given(tmp_path):
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f"#!/bin/bash\nprintf '%s\\n' \"$@\" >'{tmp_path}/words'\n"
        f"[[ $1 != create ]] || cat >'{tmp_path}/stdin'\nexit 7\n"
    )
    kubectl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert gke("create", EXAMPLE, path=path)[0] == 7
    given = yaml.safe_load((tmp_path / "stdin").read_text())
    assert given == jobset.jobset(jobset.read(str(ROOT / EXAMPLE)))
    assert gke("delete", EXAMPLE, path=path)[0] == 7
    assert (tmp_path / "words").read_text().splitlines() == [
        "delete",
        "jobsets.jobset.x-k8s.io",
        "--selector=biggan-launch=me,biggan-name=biggan128",
        "--namespace=default",
    ]
    code, _, err = gke("delete", EXAMPLE)
    assert code == 1 and "kubectl cannot be started" in err
