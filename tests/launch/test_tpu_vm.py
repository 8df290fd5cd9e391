"""The TPU VM launcher: dry runs, job files, refusals, and what workers do."""

import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from launch import job_file
from launch.tpu_vm import __main__ as cli
from launch.tpu_vm import job as job_lib
from tests.launch.conftest import ROOT

GOLDEN = pathlib.Path(__file__).parent / "golden"
EXAMPLE = "launch/tpu_vm/biggan128.toml"
ODD = """
name = "odd-one"
owner = "jane"
project = "example.com:my-project"
zone = "us-central2-b"
accelerator_type = "v4-32"
runtime_version = "tpu-ubuntu2204-base"
provisioning = "reserved"
internal_ips = true
network = "my-network"
subnetwork = "my-subnetwork"
service_account = "trainer@my-project.iam.gserviceaccount.com"
valid_until_duration = "12h"
[disk]
nfs = "filer:/a/b"
mount = "/mnt/it's \\"here\\""
[code]
repository = "/mnt/code; rm -rf *.git"
release = "v1.2.3"
python = "3.13"
[train]
command = ["biggan", "train", "--workdir=/mnt/it's \\"here\\"/$HOME `x`", "--config.x=", "*"]
"""


def dry_run(action, file, *options):
    """Runs an action with --dry-run, with no gcloud on the PATH."""
    command = [sys.executable, "-m", "launch.tpu_vm", action, file, "--dry-run", *options]
    env = dict(os.environ, PATH="/nowhere")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "action",
    ["create", "wait", "setup", "run", "status", "logs", "stop", "babysit", "delete"],
)
def test_dry_runs(action):
    text = dry_run(action, EXAMPLE)
    assert text == (GOLDEN / f"tpu_vm_{action}.txt").read_text()


@pytest.mark.multiprocess
def test_a_dry_run_of_names_with_blanks_and_quotes(tmp_path):
    file = tmp_path / "it's my job.toml"
    file.write_text(ODD)
    text = dry_run("babysit", file, "--tries=3", "--poll=5", "--keep")
    assert text == (GOLDEN / "tpu_vm_babysit_odd.txt").read_text()
    starts = [line for line in text.splitlines() if " start " in line]
    remote = shlex.split(starts[0])[-1].removeprefix("--command=")  # As gcloud gets it.
    words = shlex.split(remote)  # As the worker's shell splits it.
    assert words[5:] == ["biggan", "train", *job_lib.read(file).command[2:]]
    assert words[4] == '/mnt/it\'s "here"/launch/odd-one'


def _with(old, new):
    text = (ROOT / EXAMPLE).read_text()
    assert old in text
    return text.replace(old, new)


HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "biggan128"', 'name = "Big GAN"', "name='Big GAN': must be small letters"),
        ('name = "biggan128"', 'name = "-x"', "name='-x': must be small letters"),
        ('name = "biggan128"', "name = 3", "name=3: must be a text."),
        ('name = "biggan128"', "", "name: is missing."),
        ('owner = "me"', 'owner = "me, too"', "owner='me, too': must be a label"),
        ('owner = "me"', 'ovner = "me"', "ovner: unknown key; did you mean 'owner'?"),
        ('"my-project"', '"x"', "project='x': is no project id."),
        ('"v3-128"', '"v3"', "accelerator_type='v3': must be like v3-128 or v5litepod-16."),
        ('"spot"', '"cheap"', "provisioning='cheap': must be one of spot, reserved, on-demand."),
        ("# internal_ips = true", 'internal_ips = "yes"', "must be a true or false."),
        ('"10.0.0.2:/biggan"', '"gs://bucket"', "disk.nfs='gs://bucket': must be HOST:/SHARE."),
        ('mount = "/mnt/biggan"', 'mount = "mnt"', "disk.mount='mnt': must be a path from /"),
        ("[disk]", "[disc]", "disc: unknown key; did you mean 'disk'?"),
        (HASH, HASH[:12], "must be a whole commit hash, 40 digits."),
        (HASH, "main", "code.revision='main': must be a whole commit hash, 40 digits."),
        (f'revision = "{HASH}"', "", "code: needs a revision or a release, and not both."),
        (f'revision = "{HASH}"', 'release = "main"', "must be a tag like v1.0.0."),
        ('"https://example.com/biggan-jax.git"', '"--upload-pack=x"', "must be what git fetches"),
        ('"3.12"', '"python3"', "code.python='python3': must be like 3.12."),
        ("--workdir=/mnt/biggan/runs", "--workdir=/home/runs", "below disk.mount (/mnt/biggan)"),
        ('"biggan", "train"', '"biggan", 3', "train.command: must be a list of texts"),
        ('owner = "me"', "owner = me", "is not TOML"),
    ],
)
def test_bad_job_files_are_named(tmp_path, old, new, message):
    file = tmp_path / "job.toml"
    file.write_text(_with(old, new))
    with pytest.raises(job_file.JobError) as e:
        job_lib.read(str(file))
    assert message in str(e.value) and str(e.value).startswith(f"{file}: ")


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create"], "the following arguments are required: JOB.toml"),
        (["make", EXAMPLE], "invalid choice: 'make'"),
        (["create", "no such file"], "no such file: cannot be read: No such file or directory."),
        (["babysit", EXAMPLE, "--tries=0"], "'0': must be at least 1."),
        (["babysit", EXAMPLE, "--poll=0"], "'0': must be more than 0 seconds."),
        (["logs", EXAMPLE, "--worker=0;ls"], "'0;ls': must be like 0, 1-3 or all."),
        (["delete", EXAMPLE, "--force"], "unrecognized arguments: --force"),
    ],
)
def test_bad_arguments(words, message):
    command = [sys.executable, "-m", "launch.tpu_vm", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and message in done.stderr and not done.stdout


@pytest.mark.multiprocess
def test_what_it_did_not_make_is_left_alone(tpu):
    tpu.cloud.write(slices={"big": {"states": ["ACTIVE"], "owner": "you"}})
    for action in ("delete", "setup", "run", "status", "stop", "wait"):
        code, _, err = tpu(action)
        assert code == 2
        assert err == (
            "tpu_vm: big: was not made by this program for 'me' (it carries biggan-launch=you), so"
            " it is left alone.\n"
        )
    tpu.cloud.write(slices={"big": {"states": ["ACTIVE"], "owner": None}})
    code, _, err = tpu("delete")
    assert code == 2 and "(it carries no label biggan-launch)" in err
    code, _, err = tpu("create")
    assert code == 2 and "there is a queued resource of that name in europe-west4-a" in err
    tpu.cloud.write(slices={"bigger": {"states": ["ACTIVE"], "owner": "me"}})
    code, _, err = tpu("delete")
    assert code == 2 and "big: there is no such queued resource in europe-west4-a." in err
    assert tpu.cloud.verbs() == [] and list(tpu.cloud.state()["slices"]) == ["bigger"]


@pytest.mark.multiprocess
def test_step_by_step(tpu):
    tpu.cloud.write(lives=[["WAITING_FOR_RESOURCES", "ACTIVE"]])
    tpu.cloud.plan("hang hang")
    assert tpu("create")[0] == 0
    assert tpu("wait", "--poll=0.05")[0] == 0
    code, _, err = tpu("run")
    assert code == 1  # Before setup.
    code, _, err = tpu("setup")
    assert code == 0 and f"2 workers are ready, commit {tpu.commit}" in err
    code, _, err = tpu("run")
    assert code == 0 and "`logs` follows them" in err
    # The ssh has ended; the command has not.
    code, out, _ = tpu("status")
    assert code == 0 and sorted(out.splitlines()) == [
        "biggan-worker w-0 running",
        "biggan-worker w-1 running",
    ]
    code, _, err = tpu("run")
    assert code == 1 and "w-1: big runs here already" in err
    # Set-up again changes nothing, so it may be done; other code may not come.
    assert tpu("setup")[0] == 0
    tpu.change(f'revision = "{tpu.commit}"', 'release = "v1.0.0"')
    code, _, err = tpu("setup")
    assert code == 1 and "w-0: big runs here with other code; stop it first" in err
    assert tpu("stop")[0] == 0
    for _ in range(100):
        code, out, _ = tpu("status")
        if "running" not in out:
            break
    assert sorted(out.splitlines()) == [
        "biggan-worker w-0 ended 75",
        "biggan-worker w-1 ended 75",
    ]
    assert tpu("setup")[0] == 0  # By its tag.
    assert tpu("delete")[0] == 0
    assert tpu.cloud.verbs() == ["create", "delete"]


@pytest.mark.multiprocess
def test_what_a_set_up_does(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    assert tpu("create")[0] == 0
    assert tpu("setup")[0] == 0
    mount = f"{tpu.cloud.root}/mnt"
    for worker in (0, 1):
        home = tpu.cloud.home(worker)
        assert (home / "mounted").read_text() == f"-t nfs 10.0.0.2:/share {mount}\n"
        code = home / ".biggan-launch/code"
        installed = (home / "installed").read_text().splitlines()
        assert installed[-3:] == ["--constraints", f"{code}/constraints.txt", f"{code}[tpu]"]
        assert not (code / "later").exists()  # That is of the commit after.


@pytest.mark.multiprocess
def test_a_command_that_vanishes_is_lost(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    for action in ("create", "setup", "run"):
        assert tpu(action)[0] == 0
    path = tpu.cloud.home() / ".biggan-launch/jobs/big/pid"
    pid, _ = path.read_text().split()
    path.write_text(f"{pid} another-boot\n")  # The machine was started again.
    _, out, _ = tpu("status")
    assert sorted(out.splitlines()) == ["biggan-worker w-0 lost", "biggan-worker w-1 running"]
    path.write_text(f"{pid} {pathlib.Path('/proc/sys/kernel/random/boot_id').read_text()}")


@pytest.mark.multiprocess
def test_logs_are_followed_to_the_end_of_the_run(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    for action in ("create", "setup", "run"):
        assert tpu(action)[0] == 0
    process = tpu.popen("logs", "--worker=1")
    assert "'biggan' 'train' '--config=a;b &&'" in process.stdout.readline()
    assert tpu("stop")[0] == 0
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    _, out, _ = tpu("logs", "--worker=1")  # It has ended by now.
    assert out.splitlines()[1].endswith("ended with code 75")


def test_the_documented_commands_are_understood():
    lines = (ROOT / "docs" / "pods.md").read_text().splitlines()
    lines = [line for line in lines if line.startswith("python -m launch.tpu_vm ")]
    asked = {cli._parser().parse_args(shlex.split(s, comments=True)[3:]).action for s in lines}
    assert asked == set(cli._ACTIONS)
