"""A cloud for tests: a `gcloud` on the PATH whose TPU workers are folders of this machine.

What is sent to a worker over ssh is run here, with that worker's folder as HOME, so worker.sh does
its real work; only mount, uv and biggan are stand-ins. States of slices follow a script: each
`queued-resources list` gives the next one, and the last one stays.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

WORKERS = 2
_TOOLS = {
    "gcloud": 'exec "{python}" -ISs "{here}" "{root}" "$@"',
    "hostname": 'echo "$FAKE_HOST"',
    "sudo": 'exec "$@"',
    "mount.nfs": "exit 9",
    "python3": '[[ $* == "-c import ensurepip" ]]',
    "apt-get": "exit 9",
    "mount": 'echo "$*" >"$HOME/mounted"',
    "mountpoint": 'test -e "$HOME/mounted"',
}
_UV = """
if [[ $1 == venv ]]; then
  mkdir -p "${@: -1}/bin"
  cp "{root}/biggan" "${@: -1}/bin/biggan"
else
  printf '%s\\n' "$@" >"$HOME/installed"
  test -e "$7"
fi
"""
# Takes the word of its own number from the next line of the plan: an exit code; hang, until
# SIGTERM; or deaf.
_BIGGAN = """
if [[ $1 == --version ]]; then echo biggan-jax 0; exit; fi
printf '%s\\0' "$PWD" "$@" >"{root}/argv-$FAKE_HOST"
echo started >>"{root}/starts-$FAKE_HOST"
read -ra words < <(sed -n "$(wc -l <"{root}/starts-$FAKE_HOST")p" "{root}/plan")
word=${words[${FAKE_HOST#w-}]}
if [[ $word == hang || $word == deaf ]]; then
  [[ $word == hang ]] && trap 'exit 75' TERM || trap '' TERM
  while [[ -e $HOME/mounted ]]; do sleep 0.05; done
fi
exit "$word"
"""


class FakeCloud:
    """The test's side of it."""

    def __init__(self, root):
        """Makes the folders and the tools."""
        self.root = root
        (root / "bin").mkdir(parents=True)
        (root / "mnt").mkdir()
        names = {"python": sys.executable, "here": __file__, "root": str(root)}
        for name, text in _TOOLS.items():
            self._program(root / "bin" / name, text, names)
        self._program(root / "uv", _UV, names)
        self._program(root / "biggan", _BIGGAN, names)
        self.write(slices={}, lives=[], calls=[], silent=[], node="READY", broken="")
        self.env = dict(os.environ, PATH=f"{root / 'bin'}:{os.environ['PATH']}")

    def _program(self, path, text, names):
        for name, value in names.items():
            text = text.replace("{" + name + "}", value)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def write(self, **changes):
        """Changes what the cloud is.

        Keys: lives, the states of each slice that will be asked for; slices; silent, workers that
        answer nobody; node, the state of TPU VMs; broken, a call that fails.
        """
        with _locked(self.root) as state:
            state.update(changes)

    def state(self):
        """Returns what the cloud is."""
        with _locked(self.root) as state:
            return state

    def plan(self, *lines):
        """One line a start, with a word a worker: an exit code, hang or deaf."""
        (self.root / "plan").write_text("".join(f"{line}\n" for line in lines))

    def starts(self):
        """Returns how often each worker has started the command."""
        paths = [self.root / f"starts-w-{i}" for i in range(WORKERS)]
        return [path.read_text().count("\n") if path.exists() else 0 for path in paths]

    def running(self, times=1):
        """Returns whether all workers have started so often and run the command."""
        pids = [self.home(i) / ".biggan-launch/jobs/big/pid" for i in range(WORKERS)]
        return self.starts() == [times] * WORKERS and all(pid.exists() for pid in pids)

    def verbs(self):
        """Returns of each call what was asked, without what only looks."""
        short = [f"{call[2]} {call[3]}" for call in self.state()["calls"]]
        return [
            s.removeprefix("queued-resources ") for s in short if s.endswith(("create", "delete"))
        ]

    def home(self, worker=0):
        """Returns the home folder of a worker."""
        return self.root / "hosts" / f"w-{worker}"

    def shut_down(self):
        """Ends whatever still runs on the workers."""
        _kill(self.root)


@contextlib.contextmanager
def _locked(root):
    """The state, read and written back while no other call does."""
    with open(root / "state.json", "a+", encoding="utf-8") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0)
        state = json.loads(f.read() or "{}")
        yield state
        f.truncate(0)
        f.write(json.dumps(state))


def _kill(root):
    for path in root.glob("hosts/*/.biggan-launch/jobs/*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpgid(int(path.read_text().split()[0])), signal.SIGKILL)
    shutil.rmtree(root / "hosts", ignore_errors=True)


def _main(root, call):
    options = dict(word[2:].split("=", 1) for word in call if word.startswith("--") and "=" in word)
    names = [word for word in call[4:] if not word.startswith("--")]
    verb = " ".join(call[2:4])
    with _locked(root) as state:
        state["calls"].append(call)
        if state["broken"] and state["broken"] in verb:
            print(f"ERROR: (gcloud.{verb}) broken on purpose", file=sys.stderr)
            return 1
        if verb == "queued-resources list":
            print(json.dumps(_list(root, state, options)))
        elif verb == "queued-resources create":
            _create(root, state, names[0], options["labels"].split("=")[1])
        elif verb == "queued-resources delete":
            assert "--force" in call
            del state["slices"][names[0]]
            _kill(root)
        elif verb == "tpu-vm list":
            nodes = f"projects/p/locations/{options['zone']}/nodes/"
            print(
                json.dumps([{"name": nodes + n, "state": state["node"]} for n in state["slices"]])
            )
        else:
            assert verb in ("tpu-vm ssh", "tpu-vm scp"), verb
    if verb.startswith("tpu-vm s"):
        return _workers(root, state, verb, names, options)
    return 0


def _create(root, state, name, owner):
    state["slices"][name] = {"states": state["lives"].pop(0), "owner": owner}
    state["silent"] = []
    for i in range(WORKERS):
        uv = root / f"hosts/w-{i}/.biggan-launch/uv/bin/uv"
        uv.parent.mkdir(parents=True)
        shutil.copy(root / "uv", uv)


def _list(root, state, options):
    items = []
    for name, one in state["slices"].items():
        now = one["states"].pop(0) if len(one["states"]) > 1 else one["states"][0]
        if now in ("SUSPENDED", "FAILED"):
            _kill(root)
        labels = {"biggan-launch": one["owner"]} if one["owner"] else {}
        items.append(
            {
                "name": f"projects/p/locations/{options['zone']}/queuedResources/{name}",
                "state": {"state": now},
                "tpu": {"nodeSpec": [{"nodeId": name, "node": {"labels": labels}}]},
            }
        )
    return items


def _workers(root, state, verb, names, options):
    which = range(WORKERS) if options["worker"] == "all" else [int(options["worker"])]
    code = 0
    for i in which:
        home = root / "hosts" / f"w-{i}"
        if i in state["silent"] or not home.exists():
            print(f"ssh: connect to worker {i}: timed out", file=sys.stderr)
            code = 255
        elif verb == "tpu-vm scp":
            shutil.copy(names[0], home / names[1].partition(":")[2])
        else:
            env = dict(os.environ, HOME=str(home), FAKE_HOST=f"w-{i}")
            done = subprocess.run(["bash", "-c", options["command"]], env=env, cwd=home)
            code = code or done.returncode
    return code


if __name__ == "__main__":
    sys.exit(_main(pathlib.Path(sys.argv[1]), sys.argv[2:]))
