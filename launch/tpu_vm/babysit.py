"""Brings a run to its end on slices that may be taken away.

Each pass looks at what is there and does the one thing that comes next, so this program can itself
be ended and started again, here or on another machine, while the training goes on.
"""

import time

from launch import local_pod
from launch.tpu_vm import gcloud, slices, workers
from launch.tpu_vm.gcloud import CommandFailed, Shell, say
from launch.tpu_vm.job import Job

_BLIND = 10  # Failures in a row before something is concluded from them.


class GaveUp(RuntimeError):
    """No try is left; `code` is that of the last one."""

    def __init__(self, message: str, code: int):
        """Takes one sentence and an exit code."""
        super().__init__(message)
        self.code = code


def babysit(shell: Shell, job: Job, tries: int, poll: float, grace: float, keep: bool) -> int:
    """Makes the slice, sets it up, trains, and starts again what ends early, until it is done.

    Args:
      shell: runs the commands.
      job: what is run, and where.
      tries: how often training may end, or its slice be lost, before this gives up.
      poll: seconds between two looks.
      grace: seconds that the other workers get to end by themselves when one has ended.
      keep: whether the slice is left at the end; else it is deleted, whatever the end.

    Returns:
      The exit code that all workers ended with: 0, 2 or 3.

    Raises:
      GaveUp: if no try is left.
      CommandFailed: if a request to Google Cloud is refused, or nothing can be seen any more.
      Refused: if the slice is not ours, or somebody deleted it meanwhile.
    """
    if shell.dry_run:
        _plan(shell, job, tries, poll, keep)
        return 0
    sitter = _Babysitter(shell, job, tries, grace)
    try:
        code = None
        while True:
            code = sitter.look_after()
            if code is not None:
                break
            time.sleep(poll)
    except GaveUp:
        sitter.end(keep)
        raise
    sitter.end(keep)
    return code


class _Babysitter:
    """What has to be remembered from one look to the next."""

    def __init__(self, shell, job, tries, grace):
        self._shell = shell
        self._job = job
        self._left = tries
        self._grace = grace
        self._seen = None  # The state of the slice.
        self._ready = False  # Set up, by this program.
        self._started = False  # Seen running: only then do exit codes belong to this try.
        self._had = False  # Whether there has been a slice,
        self._asked = False  # and whether this program asked for it.
        self._misses = 0  # Passes in a row in which a command failed.
        self._silent = 0  # And in which a worker did not answer.
        self._ended_at = None  # When the first worker was seen to have ended.
        self._sent = 0  # Signals to the others since then.

    def look_after(self):
        """Does what comes next; returns the exit code once all is over, else None."""
        try:
            code = self._look_after()
        except CommandFailed as e:
            if not self._had:  # Nothing runs yet, and somebody sits in front of it.
                raise
            self._misses += 1
            if self._misses < _BLIND:
                return None
            name = self._job.name
            raise CommandFailed(f"{name}: left as it is, {_BLIND} failures in a row: {e}") from None
        self._misses = 0
        return code

    def _look_after(self):
        found = slices.look(self._shell, self._job)
        if found is None:
            self._ask()
            return None
        slices.check_ours(self._job, found)
        self._had = True
        if found.state != self._seen:
            self._seen = found.state
            say(f"{self._job.name} is {found.state}")
        if found.state == slices.ACTIVE:
            return self._tend()
        if found.state in slices.GONE:
            self._lost(f"the slice was lost ({found.state})")
        return None

    def end(self, keep):
        """Deletes the slice, unless it is to be kept or is not there."""
        name = self._job.name
        if self._seen is None:
            return
        if keep:
            say(f"{name} is kept, and costs money until it is deleted")
            return
        slices.delete(self._shell, self._job)
        say(f"{name} is deleted; the run folder and the logs are on the shared disk")

    def _ask(self):
        if self._seen is not None:
            raise slices.Refused(
                f"{self._job.name}: was deleted by somebody else, so it is not made again."
            )
        slices.create(self._shell, self._job)
        self._had = self._asked = True
        self._seen = "asked for"
        say(f"{self._job.name} is asked for")

    def _tend(self):
        """The slice is there: sets it up, starts, and looks at the workers."""
        if not self._ready and not self._set_up():
            return None
        status = workers.status(self._shell, self._job)
        if not status.reached:
            self._unreached(status)
            return None
        self._silent = 0
        if status.running and not (status.codes or status.idle):
            self._started = True
            self._ended_at = None
        elif status.running:
            self._end_others()
        elif not self._started:
            self._start()
        else:
            self._ended_at = None
            self._started = False
            codes = status.codes + (workers.LOST,) * status.idle
            code = workers.code_of(codes)
            if code in local_pod.NOT_AGAIN:
                say(f"training ended with code {code}")
                return code
            self._failed(f"training ended with code {code}", code)
            self._start()
        return None

    def _set_up(self):
        """Returns whether the workers are ready; a run that is found there is not touched."""
        if not self._asked and workers.status(self._shell, self._job).running:
            say("the command runs there already, and goes on as it was started")
            self._ready = True
            return True
        say("setting up all workers; this takes some minutes")
        try:
            workers.install(self._shell, self._job)
        except CommandFailed as e:
            self._failed(f"the set-up failed ({e})", 1)
        else:
            self._ready = True
        return self._ready

    def _start(self):
        try:
            workers.start(self._shell, self._job)
        except CommandFailed as e:
            # Where some have started, the next looks see them, and end them.
            self._failed(f"the start failed ({e})", 1)
            return
        self._started = True
        say(f"started; the logs are in {self._job.logs}")

    def _end_others(self):
        """Some workers have ended: lets the others end too, then makes them."""
        now = time.monotonic()
        self._started = True
        if self._ended_at is None:
            self._ended_at = now
            self._sent = 0
        elif now > self._ended_at + (self._sent + 1) * self._grace:
            # SIGTERM once: at a second one biggan leaves without saving.
            workers.end(self._shell, self._job, "KILL" if self._sent else "TERM")
            self._sent += 1

    def _unreached(self, status):
        """A worker does not answer: it is gone, or the way to it is."""
        self._silent += 1
        if status.running:  # As long as the others train, nothing is lost.
            return
        node = slices.node_state(self._shell, self._job)
        if node in slices.NODE_GONE:
            self._lost(f"the TPU VM was lost ({node})")
        elif self._silent < _BLIND:
            return
        elif node == slices.READY and not (status.idle or status.codes):
            raise slices.Refused(
                f"{self._job.name}: is {node}, but none of its workers answers, {_BLIND} times in a"
                " row; look at network, firewall and keys; nothing was deleted."
            )
        else:
            self._lost(f"a worker does not answer, and the TPU VM is {node}")

    def _lost(self, what):
        """Deletes what is left of the slice; the next pass asks for another."""
        slices.delete(self._shell, self._job)
        self._seen = None
        self._ready = self._started = False
        self._silent = 0
        self._ended_at = None
        self._failed(what, workers.LOST)

    def _failed(self, what, code):
        self._left -= 1
        if self._left == 0:
            raise GaveUp(
                f"{self._job.name}: gave up, no try is left; at the last one {what}. Given again,"
                " the command goes on from the last checkpoint.",
                code,
            )
        say(f"{what}; tries left: {self._left}")


def _plan(shell, job, tries, poll, keep):
    """Prints what would be run if all went as it should, and where it does not."""
    slices.create(shell, job)
    slices.wait(shell, job, poll)
    workers.install(shell, job)
    workers.start(shell, job)
    shell.note(f"every {poll:g} seconds, while it runs")
    shell.read(gcloud.list_slices(job))
    workers.status(shell, job)
    shell.note("if all workers have ended, with a code but 0, 2 and 3: started again")
    workers.start(shell, job)
    shell.note(f"if the slice is {' or '.join(slices.GONE)}: deleted, and all from the top")
    slices.delete(shell, job)
    end = "left as it is" if keep else "deleted"
    shell.note(f"after code 0, 2 or 3, or when {tries} tries are used up: the slice is {end}")
    if not keep:
        slices.delete(shell, job)
