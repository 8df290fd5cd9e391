"""The babysitter against a fake cloud whose workers run the real worker.sh."""

import os
import signal

import pytest

pytestmark = pytest.mark.multiprocess
SOON = ("--poll=0.05",)
STARTED = "started; the logs are in "


def test_ready_preempted_recreated_done(tpu):
    running = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "ACTIVE"]
    tpu.cloud.write(lives=[[*running, "SUSPENDING", "SUSPENDED"], ["CREATING", "ACTIVE"]])
    tpu.cloud.plan("hang hang", "0 0")
    code, _, err = tpu("babysit", *SOON)
    assert code == 0, err
    assert tpu.cloud.verbs() == ["create", "delete", "create", "delete"]
    assert tpu.cloud.starts() == [2, 2] and not tpu.cloud.state()["slices"]
    told = [line.removeprefix("tpu_vm: ") for line in err.splitlines() if "tpu_vm: " in line]
    assert told == [
        "big is asked for",
        "big is WAITING_FOR_RESOURCES",
        "big is PROVISIONING",
        "big is ACTIVE",
        "setting up all workers; this takes some minutes",
        f"2 workers are ready, commit {tpu.commit}",
        f"started; the logs are in {tpu.cloud.root}/mnt/launch/big",
        "big is SUSPENDING",
        "big is SUSPENDED",
        "the slice was lost (SUSPENDED); tries left: 19",
        "big is asked for",
        "big is CREATING",
        "big is ACTIVE",
        "setting up all workers; this takes some minutes",
        f"2 workers are ready, commit {tpu.commit}",
        f"started; the logs are in {tpu.cloud.root}/mnt/launch/big",
        "training ended with code 0",
        "big is deleted; the run folder and the logs are on the shared disk",
    ]
    # Quotes, blanks and empty words come through gcloud, ssh, and two shells as they were.
    for worker in ("w-0", "w-1"):
        words = (tpu.cloud.root / f"argv-{worker}").read_text().split("\0")
        assert words[1:-1] == ["train", "--config=a;b &&", f"--workdir={tpu.workdir}", ""]
        assert words[0].endswith(f"{worker}/.biggan-launch/code")


def test_failed_thrice(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("1 69", "137 69", "70 70", "0 0")
    code, _, err = tpu("babysit", "--tries=3", *SOON)
    assert code == 70
    assert "training ended with code 1; tries left: 2" in err
    assert "training ended with code 137; tries left: 1" in err
    last = err.splitlines()[-1]
    assert last == (
        "tpu_vm: big: gave up, no try is left; at the last one training ended with code 70. Given"
        " again, the command goes on from the last checkpoint."
    )
    assert tpu.cloud.starts() == [3, 3] and tpu.cloud.verbs() == ["create", "delete"]


def test_lost_thrice(tpu):
    tpu.cloud.write(lives=[["FAILED"], ["ACTIVE", "SUSPENDED"], ["SUSPENDED"], ["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    code, _, err = tpu("babysit", "--tries=3", *SOON)
    assert code == 69
    assert "at the last one the slice was lost (SUSPENDED)." in err
    assert tpu.cloud.verbs() == ["create", "delete"] * 3


@pytest.mark.parametrize(
    ("plan", "want", "starts"),
    [
        (["75 75", "75 69", "0 0"], 0, 3),
        (["2 69", "0 0"], 2, 1),
        (["3 3", "0 0"], 3, 1),
        (["1 143", "2 2"], 2, 2),
    ],
)
def test_exit_codes(tpu, plan, want, starts):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan(*plan)
    code, _, err = tpu("babysit", "--keep", *SOON)
    assert code == want, err
    assert tpu.cloud.starts() == [starts] * 2
    assert tpu.cloud.verbs() == ["create"]
    assert "big is kept, and costs money until it is deleted" in err


def test_when_one_worker_ends_the_others_are_ended(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("69 hang", "69 deaf", "0 0")
    code, _, err = tpu("babysit", "--grace=1", *SOON)
    assert code == 0, err
    assert "training ended with code 69; tries left: 19" in err
    assert "training ended with code 69; tries left: 18" in err
    log = (tpu.cloud.root / "mnt/launch/big/w-1.log").read_text()
    ends = [line.rpartition(" ")[2] for line in log.splitlines() if "ended with code" in line]
    assert ends == ["75", "137", "0"]  # SIGTERM, and SIGKILL where that is not heard.
    words = [" ".join(call) for call in tpu.cloud.state()["calls"]]
    assert sum(call.endswith("stop big TERM") for call in words) == 2
    assert tpu.cloud.verbs() == ["create", "delete"]


def test_a_babysitter_that_is_ended_leaves_all_and_the_next_one_goes_on(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("hang hang", "0 0")
    first = tpu.popen("babysit", *SOON)
    _read_until(first, STARTED)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 130, err
    second = tpu.popen("babysit", *SOON)
    _read_until(second, "the command runs there already, and goes on as it was started")
    code, _, err = tpu("stop")
    assert code == 0, err
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert tpu.cloud.starts() == [2, 2] and tpu.cloud.verbs() == ["create", "delete"]


def test_a_slice_that_somebody_else_deleted_is_not_made_again(tpu):
    tpu.cloud.write(lives=[["ACTIVE"], ["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    process = tpu.popen("babysit", *SOON)
    _read_until(process, STARTED)
    code, _, err = tpu("delete")
    assert code == 0, err
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "big: was deleted by somebody else, so it is not made again." in err
    assert tpu.cloud.verbs() == ["create", "delete"]


def test_a_lost_tpu_vm_is_made_anew(tpu):
    tpu.cloud.write(lives=[["ACTIVE"], ["ACTIVE"]])
    tpu.cloud.plan("hang hang", "0 0")
    process = tpu.popen("babysit", *SOON)
    _read_until(process, STARTED)
    tpu.cloud.write(silent=[0, 1], node="PREEMPTED")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "the TPU VM was lost (PREEMPTED); tries left: 19" in err
    assert tpu.cloud.verbs() == ["create", "delete"] * 2


def test_one_lost_worker_costs_the_slice_once_the_others_have_ended(tpu):
    tpu.cloud.write(lives=[["ACTIVE"], ["ACTIVE"]])
    tpu.cloud.plan("hang hang", "0 0")
    process = tpu.popen("babysit", *SOON)
    _read_until(process, STARTED)
    tpu.cloud.write(silent=[1])
    pid = int((tpu.cloud.home() / ".biggan-launch/jobs/big/pid").read_text().split()[0])
    os.kill(pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "a worker does not answer, and the TPU VM is READY; tries left: 19" in err
    assert tpu.cloud.verbs() == ["create", "delete"] * 2


def test_workers_out_of_reach_are_left_alone(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    process = tpu.popen("babysit", *SOON)
    _read_until(process, STARTED)
    tpu.cloud.write(silent=[0, 1])
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "is READY, but none of its workers answers, 10 times in a row" in err
    assert tpu.cloud.verbs() == ["create"]


def test_a_setup_that_fails(tpu):
    tpu.change(tpu.commit, "0" * 40)
    tpu.cloud.write(lives=[["ACTIVE"]])
    code, _, err = tpu("babysit", "--tries=2", *SOON)
    assert code == 1
    assert "not our ref" in err  # Says git.
    assert "the set-up failed" in err and "tries left: 1" in err
    assert tpu.cloud.starts() == [0, 0] and tpu.cloud.verbs() == ["create", "delete"]


def test_refused_by_the_cloud(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]], broken="create")
    code, _, err = tpu("babysit", *SOON)
    assert code == 1 and "tpu_vm: code 1 from: gcloud compute tpus queued-resources create" in err
    assert tpu.cloud.verbs() == ["create"]

    tpu.cloud.write(broken="", slices={"big": {"states": ["ACTIVE"], "owner": "you"}})
    code, _, err = tpu("babysit", *SOON)
    assert code == 2 and "it carries biggan-launch=you" in err
    assert tpu.cloud.verbs() == ["create"] and tpu.cloud.starts() == [0, 0]


def test_a_cloud_that_cannot_be_seen(tpu):
    tpu.cloud.write(lives=[["ACTIVE"]])
    tpu.cloud.plan("hang hang")
    process = tpu.popen("babysit", *SOON)
    _read_until(process, STARTED)
    tpu.cloud.write(broken="queued-resources list")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "big: left as it is, 10 failures in a row" in err
    assert tpu.cloud.verbs() == ["create"]


def _read_until(process, words):
    """Looking at the workers alone would come while the babysitter still waits for their answer."""
    told = ""
    while words not in told:
        told = process.stderr.readline()
        assert told
