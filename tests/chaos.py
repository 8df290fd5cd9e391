"""Trains the digits while everything goes wrong, and compares with a run that nothing disturbed.

`python -m tests.chaos --minutes=10 [--seed=0] [--json]`

Two processes of two simulated devices each are killed (TERM to one, KILL, STOP), their disk is
filled, files of their newest checkpoint are damaged, at moments drawn from the seed; at three
steps, in both runs alike, G's update is made NaN. The pod is started again each time by
`launch/local_pod.py`. At the end the states must be equal bit by bit, no step that TERM had saved
lost, and nothing may have hung. Exit code 1 if not.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[1]
PROCESSES, DEVICES = 2, 2
CHECKPOINT_EVERY = 40
HEARTBEAT, HANG_EXIT, GRACE = 8, 60, 20
SILENCE = 240  # Seconds without a new line, which count as a hang; above all time-outs together.
ACTIONS = ("term", "kill", "stop", "disk", "truncate", "flip", "delete", "empty")
NEEDS_TWO = ("truncate", "flip", "delete", "empty")  # Good checkpoints: one is left.
NAMED = re.compile("|".join(NEEDS_TWO)).search
_STEP = re.compile(r"\[0\] step ([\d,]+)/")
_GOING_ON = re.compile(r"\[0\] going on from the checkpoint of step ([\d,]+)")
_SAVED = re.compile(r"\[0\] saved; step ([\d,]+) is where")


def train_command(workdir: str, steps: int, nan_steps: list[int]) -> list[str]:
    """Returns the command of one process; steps in `nan_steps` go wrong, the n-th after n-1."""
    keys = {
        **{"num_steps": steps, "batch_size": 16, "log_every": 1, "sample_every": 200},
        **{"checkpoint_every": CHECKPOINT_EVERY, "keep_checkpoints": 4},
        **{"model.g_ch": 8, "model.d_ch": 8, "model.shared_dim": 8, "model.z_dim": 12},
        **{"sample.rows": 2, "sample.standing_passes": 2, "watch_every": 20, "watch.margin": 40},
        # A model this small and quick is not healthy; here only NaN is to be answered.
        **{"watch.won_loss": 0.0, "watch.flat_gap": 0.0, "watch.diversity_drop": 0.0},
        **{"watch.max_rollbacks": len(nan_steps), "grace_seconds": float(GRACE)},
        **{"heartbeat_seconds": HEARTBEAT, "hang_exit_seconds": float(HANG_EXIT)},
        **{"hang_dump_seconds": HANG_EXIT / 2},
    }
    return [
        *(sys.executable, "-m", "tests.chaos", "--child", ",".join(map(str, nan_steps)), "train"),
        *("--config=configs/digits.py", f"--workdir={workdir}"),
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]


def child(nan_steps: list[int], argv: list[str]) -> int:
    """Runs `biggan`, with a step that makes NaN where it should."""
    import numpy as np

    from biggan_jax import cli
    from biggan_jax.gan import step as step_lib

    make = step_lib.make_train_step

    def broken(config, mesh):
        step_fn = make(config, mesh)
        place = {"rollbacks": -1, "step": 0}

        def step(state, batch, control):
            before = int(control.noise)
            if place["rollbacks"] != before:  # Counted: reading it each time would wait.
                place.update(rollbacks=before, step=int(state.step))
            if before < len(nan_steps) and place["step"] == nan_steps[before]:
                control = control._replace(g_lr_scale=np.float32(np.nan))
            place["step"] += 1
            return step_fn(state, batch, control)

        return step

    step_lib.make_train_step = broken
    return cli.main(argv)


class Pod:
    """A pod that is started again until it is done, and what it says."""

    def __init__(self, workdir: str, steps: int, nan_steps: list[int]):
        self.pids = workdir + ".pids"
        launch = [
            *(sys.executable, str(ROOT / "launch" / "local_pod.py"), f"--processes={PROCESSES}"),
            *(f"--devices={DEVICES}", "--restart=100000", f"--pids={self.pids}", "--"),
        ]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
        self.process = subprocess.Popen(
            [*launch, *train_command(workdir, steps, nan_steps)],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.step = 0  # The last reported one.
        self.starts: list[dict] = []  # After what, from which step on, how many steps again.
        self.since: list[str] = []  # What happened since the last start.
        self.saved: int | None = None  # The step that a TERM since then has had saved.
        self.heard = time.monotonic()
        self.log = open(workdir + ".log", "w")  # noqa: SIM115
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard = time.monotonic()
            self.lines.append(line)
            self.log.write(f"{time.strftime('%H:%M:%S')} {line}")
            self.log.flush()
            if match := _STEP.match(line):
                self.step = int(match[1].replace(",", ""))
            elif match := _SAVED.match(line):
                self.saved = int(match[1].replace(",", ""))
            elif match := _GOING_ON.match(line):
                step = int(match[1].replace(",", ""))
                since, saved = self.since, self.saved
                self.since, self.saved = [], None
                # A checkpoint damaged after the save is not the fault of the save.
                lost = saved is not None and step < saved and not any(NAMED(x) for x in since)
                again = max(0, self.step - step)
                self.starts.append({"after": since, "from": step, "again": again, "lost": lost})

    def children(self) -> list[int]:
        """Returns the processes that train, as they are now."""
        with contextlib.suppress(OSError, ValueError):
            return [int(pid) for pid in pathlib.Path(self.pids).read_text().split()]
        return []

    def done(self) -> bool:
        """Returns whether the pod has ended by itself."""
        return self.process.poll() is not None and not self.thread.is_alive()

    def end(self) -> None:
        """Kills what is left."""
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.log.close()


def good_checkpoints(workdir: str) -> list[pathlib.Path]:
    """Returns the whole checkpoints, ascending by step."""
    folder = pathlib.Path(workdir, "checkpoints")
    found = [p for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name))


def damage(how: str, place: pathlib.Path, draw: random.Random) -> str:
    """Damages one file of a checkpoint and returns its name."""
    files = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    path = draw.choice(files)
    if how == "delete":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        data = bytearray(path.read_bytes())
        at = draw.randrange(len(data))
        if how == "truncate":
            del data[at:]
        else:
            data[at] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
    return str(path.relative_to(place.parent))


def disturb(action: str, pod: Pod, workdir: str, draw: random.Random) -> str | None:
    """Does one thing to the pod; returns what, or None where it is not possible now."""
    pids = pod.children()
    if len(pids) != PROCESSES:
        return None
    one = draw.randrange(PROCESSES)
    said = f"{action} process {one}"
    with contextlib.suppress(ProcessLookupError):
        if action in NEEDS_TWO:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
            places = good_checkpoints(workdir)
            if len(places) < 2:
                return "kill all processes"
            return f"kill all processes, {action} {damage(action, places[-1], draw)}"
        if action == "disk":
            # What a full disk answers, to these processes alone: no file grows beyond this.
            size = draw.choice((0, 1000, 100_000))
            for pid in pids:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            return f"disk: no file beyond {size} bytes"
        number = {"term": signal.SIGTERM, "kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action]
        os.kill(pids[one], number)
        return said
    return None


def digest(workdir: str) -> dict:
    """Returns step and digest of the newest checkpoint, every byte of it verified."""
    done = subprocess.run(
        [sys.executable, "-m", "biggan_jax.cli", "inspect", workdir, "--digest", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    return {"step": facts["step"], "digest": facts["digest"]}


def run(
    workdir: str, steps: int, nan_steps: list[int], until: float, pause: float, draw, say
) -> dict:
    """Runs a pod to its end, disturbing it until a time; returns what happened."""
    pod = Pod(workdir, steps, nan_steps)
    happened: list[str] = []
    hangs = 0
    next_at = time.monotonic() + draw.uniform(3, pause)
    try:
        while not pod.done():
            time.sleep(0.1)
            now = time.monotonic()
            if now - pod.heard > SILENCE:
                hangs += 1
                say(f"HANG: nothing was said for {SILENCE} s at step {pod.step}; killing all")
                pod.heard = now
                for pid in pod.children():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            if now < next_at or now > until:
                continue
            # Starting takes some ten seconds: moments before and after the first step both come.
            next_at = now + draw.uniform(3, pause)
            what = disturb(draw.choice(ACTIONS), pod, workdir, draw)
            if what:
                happened.append(what)
                pod.since.append(what)
                say(f"step {pod.step}: {what}")
    finally:
        pod.end()
    return {
        "exit_code": pod.process.returncode,
        "happened": happened,
        "starts": len(pod.starts),
        "steps_again": sum(start["again"] for start in pod.starts),
        "saved_steps_lost": sum(start["lost"] for start in pod.starts),
        "hangs": hangs,
        "rollbacks": sum("rollback" in line and "of at most" in line for line in pod.lines),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the tool; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--child"]:
        return child([int(s) for s in argv[1].split(",") if s], argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of disturbing")
    parser.add_argument("--steps", type=int, default=1200, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=60, help="seconds between, at most")
    parser.add_argument("--nan", default="190,410,700", help="steps that go wrong; '' for none")
    parser.add_argument("--workdir", help="to keep; default: a temporary folder, removed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    args = parser.parse_args(argv)
    nan_steps = [int(s) for s in args.nan.split(",") if s]
    draw = random.Random(args.seed)
    began = time.monotonic()

    def say(line):
        print(f"{time.monotonic() - began:6.0f} s  {line}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        folder = args.workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-"))
        os.makedirs(folder, exist_ok=True)
        calm, chaotic = (os.path.join(folder, name) for name in ("calm", "chaos"))
        say(f"the undisturbed run of {args.steps} steps ...")
        undisturbed = run(calm, args.steps, nan_steps, 0.0, args.pause, draw, say)
        say("the disturbed run ...")
        until = time.monotonic() + 60 * args.minutes
        disturbed = run(chaotic, args.steps, nan_steps, until, args.pause, draw, say)
        codes = [undisturbed["exit_code"], disturbed["exit_code"]]
        runs = zip((calm, chaotic), codes, strict=True)
        ends = [digest(workdir) if code == 0 else None for workdir, code in runs]
    result = {
        "seed": args.seed,
        "steps": args.steps,
        "seconds": round(time.monotonic() - began),
        "equal": ends[0] is not None and ends[0] == ends[1],
        "ends": ends,
        **disturbed,
        "rollbacks_undisturbed": undisturbed["rollbacks"],
    }
    good = result["equal"] and not result["hangs"] and not result["saved_steps_lost"]
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
