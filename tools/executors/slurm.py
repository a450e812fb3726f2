"""Attempts as jobs of Slurm, submitted by submitit: no cluster of our own to keep.

submitit pickles the function that it runs into the attempt's folder, and the function's return
value beside it; neither is read here. What became of a job stands in `DONE.json`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mosaic.core.errors import PausedError, UsageError
from tools.executors.base import SlurmExecutorConfig, sources
from tools.executors.remote import State

# submitit's files of an attempt: what was submitted, and what the job prints.
FOLDER = "slurm"
RUNS = "training.attempt:run"
ENDING = 30.0
STARTING = 2.0  # seconds until a process has a command line
ASKED_EVERY = 2.0  # seconds between two questions to accounting
# Words of accounting for a job that is in the queue, for the first time or again.
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED")
POLL = 1.0


class AttemptTask:
    """What a job runs. One that is preempted or out of time is queued again as it is."""

    def __init__(self, runs: str, attempt: str) -> None:
        self.runs, self.attempt = runs, attempt

    def __call__(self) -> bool:
        module, _, function = self.runs.partition(":")
        return bool(getattr(import_module(module), function)(Path(self.attempt)))

    def checkpoint(self) -> Any:
        """What submitit queues again: the attempt continues from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmEngine:
    """Submits each attempt as a job, and asks Slurm's accounting for its state."""

    def __init__(self, config: SlurmExecutorConfig, runs: str = RUNS) -> None:
        if find_spec("submitit") is None:
            raise UsageError(
                "executor.kind: submitit is not installed; pip install 'mosaic-curation[slurm]'"
            )
        self.config = config
        self.runs = runs
        self._turn = threading.Lock()
        self._jobs: dict[Path, Any] = {}

    def start(self, attempt: Path) -> None:
        """Submit a job. Raises PausedError if it is refused, UsageError for wrong parameters."""
        import submitit

        config = self.config
        with self._turn, _search_path():
            try:
                executor = submitit.AutoExecutor(
                    attempt / FOLDER, cluster=config.cluster, **self._limits()
                )
            except RuntimeError as error:
                raise UsageError(f"executor.cluster: {error}") from None
            try:
                parameters: dict[str, Any] = {
                    "name": f"mosaic-{attempt.parent.parent.name}",
                    "timeout_min": config.minutes,
                    **config.parameters,
                }
                executor.update_parameters(**parameters)
            except (ValueError, TypeError, NameError) as error:
                raise UsageError(f"executor.parameters: {error}") from None
            try:
                self._jobs[attempt] = executor.submit(AttemptTask(self.runs, str(attempt)))
            except (submitit.core.utils.FailedJobError, OSError) as error:
                raise PausedError(f"executor: Slurm refused the job: {error}") from None

    def attach(self, attempt: Path) -> bool:
        """Whether the job of an earlier controller still waits or runs."""
        import submitit

        kind = submitit.SlurmJob if self.config.cluster == "slurm" else submitit.LocalJob
        submitted = list((attempt / FOLDER).glob("*_submitted.pkl"))
        if not submitted:
            return False
        number = submitted[0].name.partition("_")[0]
        with self._turn:
            self._jobs[attempt] = kind(attempt / FOLDER, number)
        return self.state(attempt)[0] is not State.ENDED

    def state(self, attempt: Path) -> tuple[State, str]:
        """What accounting says; nothing yet counts as waiting."""
        with self._turn:
            job = self._jobs[attempt]
            if self.config.cluster == "local":
                return _state_here(job)
            if not job.done():
                told = job.watcher.get_state(job.job_id, mode="cache")
                queued = f"Slurm says {told}" if told in QUEUED else ""
                return (State.RUNNING if told == "RUNNING" else State.WAITING), queued
            why = job.watcher.get_state(job.job_id, mode="cache")
        # COMPLETED is a job that has said all: its last words need only become visible here.
        return State.ENDED, "" if why in ("COMPLETED", "UNKNOWN") else f"Slurm says {why}"

    def end(self, attempt: Path) -> None:
        """Cancel a job, and wait until it has ended."""
        if self.state(attempt)[0] is State.ENDED:
            return
        job = self._jobs[attempt]
        with self._turn, suppress(OSError):
            if self.config.cluster == "local":
                _end_here(job)
            else:
                job.cancel(check=False)
        until = time.monotonic() + ENDING
        while self.state(attempt)[0] is not State.ENDED and time.monotonic() < until:
            time.sleep(0.2)
            if self.config.cluster != "local":
                # What is known of an old job is up to ten minutes old: ask accounting itself.
                with self._turn:
                    job.watcher.get_state(job.job_id, mode="force")
                time.sleep(ASKED_EVERY)
        if self.config.cluster == "local":
            _kill_left(job)

    def wait(self, seconds: float) -> None:
        """Sleep: Slurm does not call."""
        time.sleep(max(seconds, POLL))

    def _limits(self) -> dict[str, int]:
        return {f"{self.config.cluster}_max_num_timeout": self.config.requeues}


@contextmanager
def _search_path() -> Iterator[None]:
    """Let a job that inherits this process's environment find the packages."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(sources()), before) if p)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _state_here(job: Any) -> tuple[State, str]:
    """The state of a job of `cluster: local`; its number is that of the process that watches it."""
    if job.state == "RUNNING" or _watched_here(job):
        return State.RUNNING, ""
    return State.ENDED, "" if job.paths.result_pickle.exists() else "its process has ended"


def _watched_here(job: Any) -> bool:
    """Whether the process that watches a job lives, though an earlier controller started it."""
    process = Path("/proc") / job.job_id
    until = time.monotonic() + STARTING
    with suppress(OSError):
        # Empty are the command lines of one that is just starting, and of one that has ended and
        # was not waited for.
        while True:
            words = (process / "cmdline").read_bytes()
            ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if words or ended or time.monotonic() > until:
                return str(job.paths.folder).encode() in words
            time.sleep(0.01)
    return False


def _kill_left(job: Any) -> None:
    """Kill the processes of a job whose watcher was interrupted before it could end them."""
    folder = str(job.paths.folder).encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if folder in (process / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _end_here(job: Any) -> None:
    """Interrupt the process that watches a job; it ends the job's own."""
    if _watched_here(job):
        os.kill(int(job.job_id), signal.SIGINT)
