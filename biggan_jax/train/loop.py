"""The loop around the step: data in, reports, pictures and checkpoints out.

It can die at any instruction: batches and draws are functions of (seed, step), so starting it again
from the latest checkpoint gives the run that would have been.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from biggan_jax import config as config_lib
from biggan_jax import files, host_tensorflow
from biggan_jax.data import datasets
from biggan_jax.data import report as data_report
from biggan_jax.data.batches import Batches
from biggan_jax.gan import step as step_lib
from biggan_jax.gan.state import GanState
from biggan_jax.parallel import distributed
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.sample import sampler, sheets
from biggan_jax.train import checkpoint, hang, probe, report, runs, warm_start
from biggan_jax.train.keep import Keep

# Keys that may change from one start of a run to the next: they move no weight.
FREE_KEYS = (
    "num_steps",
    "device_count",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "best_metric",
    "best_is",
    "sample_every",
    "compilation_cache",
    "grace_seconds",
    "heartbeat_seconds",
    "hang_dump_seconds",
    "hang_exit_seconds",
    "watch_every",
    "data.dir",
    "data.cache_mib",
)


class Diverged(RuntimeError):
    """A loss is not a finite number any more."""


def train(config: ml_collections.ConfigDict, workdir: str) -> GanState:
    """Trains to `config.num_steps`, going on from the latest checkpoint in `workdir`.

    Args:
      config: as a config file gives it; resolved here.
      workdir: the run folder; made at need.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: if config, data or run folder cannot be used; nothing has been written then.
      Diverged: if a loss is not finite; the checkpoints of before are kept.
      CannotWrite: if the disk is full, say; the checkpoints of before are kept.
    """
    host_tensorflow.silence()
    files.check_folder(workdir, "--workdir")
    # `resolve` refuses numbers below 1, but needs to know the devices.
    with distributed.joined(max(1, config.heartbeat_seconds)):
        return _train(config, workdir)


def _train(config, workdir):
    if (config.device_count or 0) > 0:
        mesh_lib.request_cpu_devices(config.device_count)
    resolved = config_lib.resolve(config, jax.device_count())
    mesh = mesh_lib.make_mesh(resolved.device_count)
    _check_same_run(resolved, workdir)
    source = datasets.open_source(resolved)
    _check_same_classes(source, workdir)
    columns = mesh_lib.local_columns(mesh, config_lib.micro_batch_size(resolved))
    batches = datasets.make_loader(source, resolved, columns)
    facts = data_report.data_report(source, resolved, batches)
    data_report.check(facts, resolved)
    run = _Run(resolved, workdir, mesh, source.class_names)
    _say(data_report.text(facts))
    first_state = None
    if resolved.init_from and not _has_checkpoint(workdir):
        first_state, lines = warm_start.start_state(resolved, mesh, source.class_names)
        _say("\n".join(lines))
    probe.check_shared(workdir)
    with files.disk_errors_named(workdir):
        run.write_start(facts, data_report.reals(batches, resolved, run.rows, run.classes))
        return run.train(batches, first_state)


class _Run:
    """One start of a run: what the loop needs at each step."""

    def __init__(self, config, workdir: str, mesh: Mesh, class_names: tuple[str, ...]):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.class_names = class_names
        self.rows = config.sample.rows
        self.classes = config.sample.classes
        self.images_per_step = config.batch_size * config.d_steps
        self.sampler = sampler.Sampler(config, mesh)
        self.is_main = jax.process_index() == 0  # Which alone writes reports and pictures.

    def write_start(self, facts: Mapping[str, Any], reals: np.ndarray) -> None:
        """Writes what is known before the first step."""
        if not self.is_main:
            return
        os.makedirs(os.path.join(self.workdir, "samples"), exist_ok=True)
        facts = {**facts, "class_names": self.class_names}
        files.write_whole(os.path.join(self.workdir, runs.DATA), json.dumps(facts, indent=2) + "\n")
        # The config last: a folder that holds one is a run.
        files.write_whole(os.path.join(self.workdir, runs.CONFIG), config_lib.to_json(self.config))
        self._save_sheet(reals, os.path.join("samples", "reals.png"), f"{facts['name']}: reals")

    def train(self, batches: Batches, first_state: GanState | None) -> GanState:
        """Restores or starts, from `first_state` or random weights, then steps to the end."""
        c = self.config
        folder = os.path.join(self.workdir, runs.CHECKPOINTS)
        with (
            checkpoint.Checkpoints(folder, _what_to_keep(c), say=_say) as saved,
            report.Reporter(
                self.workdir, c.num_steps, self.images_per_step, self.is_main
            ) as reporter,
        ):
            if saved.latest_step() is None:
                first = 0
                state = first_state or step_lib.init_state(c, self.mesh)
                self._sample(state, 0, reporter)
            else:
                state, _ = saved.restore(step_lib.abstract_state(c, self.mesh))
                first = int(state.step)
                if first > c.num_steps:
                    raise config_lib.ConfigError(
                        f"num_steps={c.num_steps}: {self.workdir!r} is at step {first} already."
                    )
                _say(f"going on from the checkpoint of step {first:,}")
            reporter.start(first)
            reporter.status("train", last_checkpoint=first or None)
            with self._hang_watch() as watch:
                state = self._steps(state, first, batches, saved, reporter, watch)
                saved.wait()
            reporter.status("train", last_checkpoint=saved.latest_step())
            self._finish(state, reporter, ended_before=first == c.num_steps)
        return state

    def _hang_watch(self):
        path = os.path.join(self.workdir, f"hang-{jax.process_index()}.txt")
        say = lambda line: print(f"\n{line}", file=sys.stderr, flush=True)  # noqa: E731
        return hang.HangWatch(
            self.config.hang_dump_seconds, self.config.hang_exit_seconds, say, path
        )

    def _steps(self, state, first, batches, saved, reporter, watch):
        c = self.config
        step_fn = step_lib.make_train_step(c, self.mesh)
        if first < c.num_steps:
            _say("compiling the step; the first one takes a while ...")
        pending: tuple[int, dict] | None = None
        # Left as a context, so that no thread is at the devices when the process ends.
        with batches.prefetch(first, c.num_steps, put=self._put) as on_devices:
            for i, batch in on_devices:
                state, metrics = step_fn(state, batch)
                done = i + 1
                watch.beat(f"step {done:,}")
                # Numbers of a step are read once the next is on its way, so the device never waits.
                if pending is not None:
                    _report(reporter, *pending)
                    pending = None
                saved.check()
                if done == first + 1:
                    _check_best_metric(c, metrics)
                last = done == c.num_steps
                if done % c.log_every == 0 or done == first + 1 or last:
                    pending = done, metrics
                save, sample = (last or done % n == 0 for n in (c.checkpoint_every, c.sample_every))
                if pending is not None and (save or sample):
                    _report(reporter, *pending)
                    pending = None
                if save or sample:
                    _check_finite(done, metrics)
                if save:
                    saved.save(done, state, self._meta(done), metrics)
                    reporter.status("train", step=done, last_checkpoint=saved.latest_step())
                    watch.beat(f"the save of step {done:,}")
                if sample:
                    with watch.paused():  # It compiles, the first time.
                        self._sample(state, done, reporter)
                    watch.beat(f"the samples of step {done:,}")
        return state

    def _put(self, batch):
        return mesh_lib.put_batch(batch, self.mesh)

    def _meta(self, step):
        """What a checkpoint's manifest says of the run."""
        images = step * self.images_per_step
        return {
            "step": step,
            "images": images,
            "kimg": images / 1000,
            "config_sha256": config_lib.fingerprint(self.config),
            "config": json.loads(config_lib.to_json(self.config)),
        }

    def _sample(self, state, step, reporter):
        """A sheet from latents and labels that stay the same through the run."""
        reporter.status("sample", step=step)
        weights = sampler.ema_weights(state)
        statistics = self.sampler.standing_statistics(weights)
        labels = np.tile(np.arange(self.classes), self.rows)
        images = self.sampler.sample(weights, statistics, labels, self.config.seed)
        name = os.path.join("samples", f"fakes_{step:06d}.png")
        picture = self._save_sheet(
            images, name, f"{self.config.name}: step {step:,}, no truncation"
        )
        if step:
            reporter.image(step, "fakes", np.asarray(picture))

    def _finish(self, state, reporter, ended_before):
        latest = os.path.join(self.workdir, "samples", f"fakes_{self.config.num_steps:06d}.png")
        path = os.path.join(self.workdir, "samples.png")
        # Else there is a picture, or will be: process 0 may be about to write it.
        if ended_before and not os.path.exists(latest):
            self._sample(state, self.config.num_steps, reporter)
        if self.is_main:
            with open(latest, "rb") as f:
                files.write_whole(path, f.read())
        reporter.status("done", step=self.config.num_steps)
        _say(f"done: step {self.config.num_steps:,}; samples are in {path}")

    def _save_sheet(self, images, name, title):
        picture = sheets.sheet(
            images,
            columns=self.classes,
            column_labels=self.class_names[: self.classes],
            title=title,
        )
        if self.is_main:
            sheets.save_png(picture, os.path.join(self.workdir, name))
        return picture


def _report(reporter, step, metrics):
    values = {name: float(value) for name, value in metrics.items()}
    reporter.progress(step, {k: values[k] for k in ("d_loss", "g_loss", "d_real", "d_fake")})
    reporter.scalars(step, values)
    reporter.status("train", step=step)
    _check_finite(step, values)


def _check_finite(step, metrics):
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(
                f"step {step:,}: {name} is {float(value)}; the checkpoints of before are kept."
            )


def _has_checkpoint(workdir):
    folder = os.path.join(workdir, runs.CHECKPOINTS)
    if not os.path.isdir(folder):
        return False
    with checkpoint.Checkpoints(folder, keep=None) as saved:
        return saved.latest_step() is not None


def _check_same_run(config, workdir):
    """A run folder is one run: what moves weights must be what it was."""
    if not os.path.exists(os.path.join(workdir, runs.CONFIG)):
        return
    changed = runs.changes(runs.read_config(workdir), config)
    free = _check_free(changed, f"--workdir: {workdir!r} holds a run")
    # And the file itself, which anybody may have edited, with what the checkpoints say.
    with checkpoint.Checkpoints(os.path.join(workdir, runs.CHECKPOINTS), keep=None) as saved:
        for step, content in saved.manifests().items():
            what = f"--workdir: the checkpoint of step {step:,} in {workdir!r} was made"
            _check_free(runs.changes_since(content["meta"], config), what)
    if free:
        _say(f"changed since the last start, which moves no weight: {runs.changes_text(free)}")


def _check_free(changed, what):
    """Returns the changes, all of free keys; names all others, which move weights, in an error."""
    free = {
        k: v for k, v in changed.items() if k in FREE_KEYS or k.startswith(("sample.", "watch."))
    }
    moving = {k: v for k, v in changed.items() if k not in free}
    if moving:
        besides = f"; changed too, but free: {runs.changes_text(free)}" if free else ""
        raise config_lib.ConfigError(
            f"{what} with {runs.changes_text(moving)}; that moves weights, so use another folder"
            f" or the values of before{besides}."
        )
    return free


def _what_to_keep(c):
    return Keep(c.keep_checkpoints, c.keep_every, c.keep_best, c.best_metric, c.best_is == "lowest")


def _check_best_metric(c, metrics):
    if c.keep_best and c.best_metric not in metrics:
        raise config_lib.ConfigError(
            f"best_metric={c.best_metric!r}: must be one of {', '.join(sorted(metrics))}."
        )


def _say(line):
    """Prints a line meant for the user; of many processes only the first one speaks."""
    if jax.process_index() == 0:
        print(line, flush=True)


def _check_same_classes(source, workdir):
    """Labels mean what they meant: classes in another order would be another data set."""
    if not os.path.exists(os.path.join(workdir, runs.CONFIG)):
        return
    before = runs.class_names(workdir)
    if tuple(before) != tuple(source.class_names):
        changed = next(
            (
                i
                for i, pair in enumerate(zip(before, source.class_names, strict=False))
                if len(set(pair)) > 1
            ),
            min(len(before), len(source.class_names)),
        )
        raise config_lib.ConfigError(
            f"--workdir: {workdir!r} was trained on {len(before)} classes and the data now has"
            f" {len(source.class_names)}; they differ from class {changed} on."
        )
