"""The loop around the step: data in, reports, pictures and checkpoints out.

It can die at any instruction: batches and draws are functions of (seed, step, rollbacks to before
it), so starting it again from any checkpoint gives the run that would have been.
"""

import contextlib
import functools
import json
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
from biggan_jax.gan import spectra
from biggan_jax.gan import step as step_lib
from biggan_jax.gan.state import GanState
from biggan_jax.parallel import distributed
from biggan_jax.parallel import mesh as mesh_lib
from biggan_jax.train import (
    checkpoint,
    compilation,
    curves,
    evidence,
    hang,
    phases,
    pictures,
    preemption,
    probe,
    profile,
    report,
    rollback,
    runs,
    same_run,
    speed,
    step_time,
    warm_start,
    watch_scores,
    watchdog,
)
from biggan_jax.train.keep import Keep


class Diverged(RuntimeError):
    """The watchdog has stopped the run; the message says which rule, where, and what there is."""


class _Alarmed(Exception):
    def __init__(self, alarm: watchdog.Alarm, numbers: Mapping[str, Any]):
        super().__init__(alarm.text)
        self.alarm, self.numbers = alarm, numbers


def train(
    config: ml_collections.ConfigDict, workdir: str, started: float | None = None
) -> GanState:
    """Trains to `config.num_steps`, going on from the latest checkpoint in `workdir`.

    Args:
      config: as a config file gives it; resolved here.
      workdir: the run folder; made at need.
      started: when the program began, of `time.perf_counter`, for the times of its phases.

    Returns:
      The state after the last step.

    Raises:
      ConfigError: if config, data or run folder cannot be used; nothing has been written then.
      Diverged: if the watchdog stops the run; the checkpoints of before are kept.
      CannotWrite: if the disk is full, say; the checkpoints of before are kept.
      Preempted: if a signal asked to leave and the state is saved; ends the process with code 75.
    """
    start = phases.Phases(started)
    host_tensorflow.silence()
    files.check_folder(workdir, "--workdir")
    with (
        preemption.Preemption(config.grace_seconds) as asked,
        # `resolve` refuses numbers below 1, but needs to know the devices.
        distributed.joined(max(1, config.heartbeat_seconds)),
    ):
        # Without waking JAX's backend: how many devices it shows is not said yet.
        me, count = distributed.process_index(), distributed.process_count()
        asked.join(distributed.store(), me, count)
        return _train(config, workdir, asked, start)


def _train(config, workdir, asked, start):
    if (config.device_count or 0) > 0:
        mesh_lib.request_cpu_devices(config.device_count)
    resolved = config_lib.resolve(config, jax.device_count())
    mesh = mesh_lib.make_mesh(resolved.device_count)
    compilation.use_cache(resolved.compilation_cache, workdir)
    same_run.check_config(resolved, workdir, _say)
    start.end("imports")
    source = datasets.open_source(resolved)
    same_run.check_classes(source.class_names, workdir)
    columns = mesh_lib.local_columns(mesh, config_lib.micro_batch_size(resolved))
    batches = datasets.make_loader(source, resolved, columns)
    facts = data_report.data_report(source, resolved, batches)
    data_report.check(facts, resolved)
    run = _Run(resolved, workdir, mesh, source.class_names, asked, start)
    _say(data_report.text(facts))
    first_state = None
    if resolved.init_from and not _has_checkpoint(workdir):
        first_state, lines = warm_start.start_state(resolved, mesh, source.class_names)
        _say("\n".join(lines))
    probe.check_shared(workdir)
    with files.disk_errors_named(workdir):
        s = resolved.sample
        reals = data_report.reals(batches, resolved, s.rows, s.classes)
        run.write_start(facts, reals)
        start.end("data")
        return run.train(batches, first_state)


class _Run:
    """One start of a run: what the loop needs at each step."""

    def __init__(self, config, workdir: str, mesh: Mesh, class_names, asked, start):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.class_names = class_names
        self.asked, self.start = asked, start
        self.is_main = jax.process_index() == 0
        self.images_per_step = config.batch_size * config.d_steps
        self.pictures = pictures.Pictures(
            config, workdir, mesh, class_names, lambda: self._passed("a batch of samples")
        )
        self.ledger = rollback.Ledger(workdir, self.is_main)
        self.watchdog: watchdog.Watchdog
        self.pending: list[tuple] = []  # Numbers on their way from the devices.
        self.state: GanState
        self.finished_a_step = False  # In this process.

    def write_start(self, facts: Mapping[str, Any], reals: np.ndarray) -> None:
        """Writes what is known before the first step, and shows the watchdog the reals."""
        usual = spectra.real_diversity(reals, self.config.sample.classes)
        self.watchdog = watchdog.Watchdog(self.config.watch, usual)
        if not self.is_main:
            return
        os.makedirs(os.path.join(self.workdir, "samples"), exist_ok=True)
        facts = {**facts, "class_names": self.class_names}
        files.write_whole(os.path.join(self.workdir, runs.DATA), json.dumps(facts, indent=2) + "\n")
        # The config last: a folder that holds one is a run.
        files.write_whole(os.path.join(self.workdir, runs.CONFIG), config_lib.to_json(self.config))
        self.pictures.reals(reals, facts["name"])

    def train(self, batches: Batches, first_state: GanState | None) -> GanState:
        """Restores or starts, from `first_state` or random weights, then steps to the end."""
        c = self.config
        folder = os.path.join(self.workdir, runs.CHECKPOINTS)
        used = speed.Speed(c)
        if used.why_not:
            _say(f"no MFU is told: {used.why_not}")
        with (
            checkpoint.Checkpoints(
                folder,
                _what_to_keep(c),
                _say,
                functools.partial(watch_scores.of_checkpoints, self.workdir),
            ) as self.saved,
            report.Reporter(
                self.workdir,
                c.num_steps,
                self.images_per_step,
                is_main=self.is_main,
                speed=used,
                step_time=step_time.StepTime(self.workdir, c, mesh_lib.describe(self.mesh)),
            ) as self.reporter,
            profile.Profile(c.profile_steps, self.workdir, _say) as self.profile,
            self._hang_watch() as self.hang,
        ):
            self.first_state = first_state
            if self.ledger.rollbacks:  # One may have been cut short.
                last = self.ledger.rollbacks[-1]
                self.saved.set_aside_after(last.to, last.number)
            self._begin()
            self.start.end("restore" if int(self.state.step) else "first weights")
            self.step_fn = step_lib.make_train_step(c, self.mesh)
            self.look, self.weight_names = spectra.make_look(c, self.mesh), spectra.names(c)
            try:
                while not self._stretch(batches):
                    pass
                self._finish()
            except preemption.Requested:
                raise self._leave() from None
        return self.state

    def _hang_watch(self):
        c = self.config
        path = os.path.join(self.workdir, f"hang-{jax.process_index()}.txt")
        say = lambda line: print(f"\n{line}", file=sys.stderr, flush=True)  # noqa: E731
        return hang.HangWatch(c.hang_dump_seconds, c.hang_exit_seconds, say, path)

    def _begin(self, among=lambda step: True):
        """Puts in place the state of the newest good checkpoint, or else the first one."""
        c = self.config
        # Process 0 says what there is, so that all do the same.
        found = self.saved.newest(among)
        if found is None:
            self.state = self.first_state or step_lib.init_state(c, self.mesh)
            self.first_state = None  # The step takes its buffers.
            first = 0
            self._sample(0)
        else:
            template = step_lib.abstract_state(c, self.mesh)
            self.state, meta = self.saved.restore(template, among=among)
            self.watchdog.load(meta.get("watch", {}))
            first = int(self.state.step)
            if first > c.num_steps:
                raise config_lib.ConfigError(
                    f"num_steps={c.num_steps}: {self.workdir!r} is at step {first} already."
                )
            _say(f"going on from the checkpoint of step {first:,}")
        self.last_saved = first
        self._enter(first)
        count = len(self.ledger.rollbacks)
        self.reporter.status("train", last_checkpoint=first or None, rollbacks=count)

    def _enter(self, step):
        """What the rollbacks change from a step on."""
        held = self.ledger.until(step)
        self.held, factor = len(held), self.config.watch.g_lr_factor
        self.control = step_lib.Control(np.int32(self.held), np.float32(factor**self.held))
        self.vectors: Any = None  # Of looks at what was left behind, perhaps NaN.
        self.reporter.start(step, held)
        if held and held[-1].to == step:
            self.watchdog.after_rollback(step)

    def _stretch(self, batches):
        """Steps to the end or to where a rollback begins or began; returns whether to the end."""
        end = self.config.num_steps
        border = self.ledger.next_after(int(self.state.step))
        try:
            if border is None or border >= end:
                self._steps(batches, end)
                return True
            self._steps(batches, border)
            self._judge()
            self._enter(border)
            return False
        except _Alarmed as e:
            self._answer(e.alarm, e.numbers)
            return False

    def _steps(self, batches, end):
        c, first = self.config, int(self.state.step)
        if not self.finished_a_step and first < c.num_steps:
            _say("compiling the step; the first one takes a while ...")
        # Left as a context, so that no thread is at the devices when the process ends.
        with batches.prefetch(first, end, put=self._put) as on_devices:
            for i, batch in on_devices:
                self.state, metrics = self.step_fn(self.state, batch, self.control)
                done = i + 1
                if not self.finished_a_step:
                    self._first_step(metrics)
                self.profile.after_step(metrics)
                self.saved.check()
                # Numbers of a step are read once the next is on its way: the device never waits.
                self._judge()
                last = done == c.num_steps
                log = done % c.log_every == 0 or done == first + 1 or last
                self.pending.append((done, metrics, log))
                if done % c.watch_every == 0:
                    numbers, self.vectors = self._look()
                    self.pending.append((done, numbers, None))
                save = last or _save_due(c, done)
                sample = last or done % c.sample_every == 0
                if save or sample:
                    self._judge()
                if save:
                    self._save(done, metrics)
                if sample:
                    self._sample(done)
                if _save_due(c, done + 1):
                    self.saved.wait()
                self._passed(f"step {done:,}")

    def _put(self, batch):
        return mesh_lib.put_batch(batch, self.mesh)

    def _passed(self, what):
        """A place where the run may stop, and a sign that it does not hang."""
        if self.finished_a_step:  # Before, there is compiling to wait for.
            self.hang.beat(what)
        self.asked.tick()

    def _first_step(self, metrics):
        _check_best_metric(self.config, metrics)
        jax.block_until_ready(metrics)
        self.finished_a_step = True
        self.start.end("compilation and a step")
        _say(self.start.text())
        self.reporter.status("train", start_seconds=self.start.seconds())
        self.asked.something_to_save()

    def _look(self):
        if self.vectors is None:
            self.vectors = spectra.start(self.config, self.mesh)
            for _ in range(spectra.FIRST_LOOKS):
                _, self.vectors = self.look(self.state, self.vectors)
        return self.look(self.state, self.vectors)

    def _judge(self):
        """Reads the numbers that are on their way, reports them, and has the watchdog judge."""
        pending, self.pending = self.pending, []
        for step, values, log in pending:
            numbers = jax.device_get(values)
            if log is None:
                alarm = self._judge_look(step, numbers)
            else:
                numbers = {name: float(value) for name, value in numbers.items()}
                if log:
                    _report(self.reporter, step, numbers)
                alarm = self.watchdog.see(step, numbers)
            if alarm is None:
                continue
            if self.config.watch.policy != "ignore" or alarm.rule == "nan":
                raise _Alarmed(alarm, numbers)
            _say(f"alarm, ignored as watch.policy says: rule {alarm.rule!r}: {alarm.text}")

    def _judge_look(self, step, numbers):
        sigmas, diversity = numbers["sigma"], float(numbers["g_diversity"])
        by_name = dict(zip(self.weight_names, sigmas.tolist(), strict=True))
        self.reporter.look(step, diversity, by_name)
        return self.watchdog.look(step, sigmas, self.weight_names, diversity)

    def _save(self, step, metrics):
        self.saved.save(step, self.state, self._meta(step), metrics)
        self.last_saved = step
        self.reporter.status("train", step=step, last_checkpoint=self.saved.latest_step())

    def _meta(self, step):
        """What a checkpoint's manifest says of the run."""
        images = step * self.images_per_step
        return {
            "step": step,
            "images": images,
            "kimg": images / 1000,
            "rollbacks": self.held,
            "watch": self.watchdog.state(),
            "config_sha256": config_lib.fingerprint(self.config),
            "config": json.loads(config_lib.to_json(self.config)),
        }

    def _leave(self):
        """Saves what a signal's grace leaves time for."""
        step = int(self.state.step)
        try:
            self._judge()
        except _Alarmed as e:
            # The next start comes to the same numbers and has the time to answer them.
            _say(f"not saved: {e.alarm.text}")
        else:
            if step != self.last_saved:
                self._save(step, {})
        saved = self._last_checkpoint()
        self.reporter.status("preempted", last_checkpoint=saved)
        if saved is not None:
            _say(f"saved; step {saved:,} is where the same command goes on")
        return preemption.Preempted(step)

    def _last_checkpoint(self):
        """Waits for the save under way; in all processes, as none may leave before it is whole."""
        self.saved.wait()
        return self.saved.newest()

    def _answer(self, alarm, numbers):
        """Goes back to before the trouble, or stops the run."""
        c = self.config
        number = len(self.ledger.rollbacks) + 1
        _say(f"alarm: rule {alarm.rule!r}: {alarm.text}")
        folder = self._evidence(number, alarm, numbers)
        stop = None
        if c.watch.policy != "rollback":
            stop = f"watch.policy is {c.watch.policy!r}"
        elif number > c.watch.max_rollbacks:
            stop = f"{c.watch.max_rollbacks} rollbacks have not helped (watch.max_rollbacks)"
        if stop:
            self.reporter.status("stopped", last_checkpoint=self._last_checkpoint())
            raise Diverged(
                f"rule {alarm.rule!r}: {alarm.text[:-1]}; {stop}. The checkpoints of before are"
                f" kept; what is known of it is in {folder}."
            )
        limit = alarm.since - (1 if alarm.rule == "nan" else c.watch.margin)
        healthy = lambda step: step % c.checkpoint_every == 0 and step <= limit  # noqa: E731
        self.saved.wait()  # Where it goes to must not depend on how fast the disk is.
        to = self.saved.newest(healthy) or 0
        self.ledger.add(rollback.Rollback(number, alarm.step, to, alarm.rule, alarm.text))
        self.saved.set_aside_after(to, number)
        self.pending = []
        _say(
            f"rollback {number} of at most {c.watch.max_rollbacks}: from step {alarm.step:,} to"
            f" {to:,}, with other random numbers"
        )
        self._begin(healthy)

    def _evidence(self, number, alarm, numbers):
        """Keeps what a rollback would lose: the numbers so far, and a sheet; returns where."""
        folder = evidence.name(number, alarm)
        if self.is_main:
            evidence.write(self.workdir, folder, alarm, numbers)
        with contextlib.suppress(ValueError):  # Images of NaN are none.
            self.pictures.fakes(self.state, os.path.join(folder, "fakes.png"))
        return os.path.join(self.workdir, folder)

    def _sample(self, step):
        """The sheet of a step, and the curves."""
        self.reporter.status("sample", step=step)
        picture = self.pictures.fakes(self.state, pictures.fakes_name(step))
        if step and self.is_main:
            self.reporter.image(step, "fakes", np.asarray(picture))
            curves.draw(self.workdir)

    def _finish(self):
        c = self.config
        self.reporter.status("train", last_checkpoint=self._last_checkpoint())
        latest = os.path.join(self.workdir, pictures.fakes_name(c.num_steps))
        path = os.path.join(self.workdir, "samples.png")
        if not self.finished_a_step and not os.path.exists(latest):  # It ended before this start.
            self._sample(c.num_steps)
        if self.is_main:
            with open(latest, "rb") as f:
                files.write_whole(path, f.read())
        self.reporter.status("done", step=c.num_steps)
        _say(f"done: step {c.num_steps:,}; samples are in {path}")


def _report(reporter, step, values):
    reporter.progress(step, {k: values[k] for k in ("d_loss", "g_loss", "d_real", "d_fake")})
    reporter.scalars(step, values)
    reporter.status("train", step=step)


def _has_checkpoint(workdir):
    folder = os.path.join(workdir, runs.CHECKPOINTS)
    if not os.path.isdir(folder):
        return False
    with checkpoint.Checkpoints(folder, keep=None) as saved:
        return saved.latest_step() is not None


def _save_due(c, step):
    """A kill costs fewer than `checkpoint_every` steps, though a save counts once it is whole.

    So there is one half-way too, and before the step of the next the last has to be whole. Half-way
    ones go once a later one is there (`Keep.cadence`). Where it is 1, a kill costs one step.
    """
    return step % c.checkpoint_every in (0, c.checkpoint_every // 2)


def _what_to_keep(c):
    return Keep(
        c.keep_checkpoints,
        c.keep_every,
        c.keep_best,
        c.best_metric,
        c.best_is == "lowest",
        cadence=c.checkpoint_every,
    )


def _check_best_metric(c, metrics):
    if c.keep_best and c.best_metric not in metrics and watch_scores.MARK not in c.best_metric:
        raise config_lib.ConfigError(
            f"best_metric={c.best_metric!r}: must be one of {', '.join(sorted(metrics))}."
        )


def _say(line):
    """One process speaks for all."""
    if jax.process_index() == 0:
        print(line, flush=True)
