"""A fake cloud, a repository to fetch from, and a job file for both."""

import pathlib
import subprocess
import sys

import pytest

from tests.launch import fake_cloud

ROOT = pathlib.Path(__file__).parents[2]


class Tpu:
    """Runs `python -m launch.tpu_vm` against the fake cloud."""

    def __init__(self, folder):
        """Makes a cloud, a repository with one commit and a tag, and the job file."""
        self.cloud = fake_cloud.FakeCloud(folder / "cloud")
        self.repository = folder / 'it\'s a "repository"'
        self.commit = self._repository()
        self.workdir = f'{self.cloud.root}/mnt/runs/it\'s $HOME "mine"'
        self.file = folder / "my job.toml"
        self.text = f"""
name = "big"
owner = "me"
project = "my-project"
zone = "europe-west4-a"
accelerator_type = "v3-16"
runtime_version = "tpu-ubuntu2204-base"
provisioning = "spot"
[disk]
nfs = "10.0.0.2:/share"
mount = "{self.cloud.root}/mnt"
[code]
repository = '''{self.repository}'''
revision = "{self.commit}"
[train]
command = ["biggan", "train", "--config=a;b &&", '''--workdir={self.workdir}''', ""]
"""
        self.file.write_text(self.text)

    def _repository(self):
        def git(*words):
            done = subprocess.run(
                ["git", "-C", self.repository, "-c", "user.name=n", "-c", "user.email=e", *words],
                check=True,
                capture_output=True,
                text=True,
            )
            return done.stdout.strip()

        self.repository.mkdir()
        (self.repository / "constraints.txt").write_text("jax==0\n")
        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message=one")
        git("tag", "v1.0.0")
        commit = git("rev-parse", "HEAD")
        (self.repository / "later").write_text("")
        git("add", ".")
        git("commit", "--quiet", "--message=two")
        return commit

    def popen(self, *words):
        """Starts the program; words are the action and its options."""
        command = [sys.executable, "-m", "launch.tpu_vm", words[0], self.file, *words[1:]]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, env=self.cloud.env, stdout=pipe, stderr=pipe, text=True
        )

    def __call__(self, *words):
        """Runs it to its end; returns exit code, stdout and stderr."""
        process = self.popen(*words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def change(self, old, new):
        """Changes the job file."""
        assert old in self.text
        self.text = self.text.replace(old, new)
        self.file.write_text(self.text)


@pytest.fixture
def tpu(tmp_path):
    """A cloud, a repository and a job file of one test."""
    made = Tpu(tmp_path)
    yield made
    made.cloud.shut_down()
