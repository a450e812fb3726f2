"""Jobs of workers elsewhere that share the run's storage: what Ray and Slurm have in common.

A job's truth lies in its folder (`training.attempt`): `DONE.json` is looked at before the engine is
asked, so that a result is adopted whoever made it and whenever. The engine only starts attempts,
ends them, and says whether one may still come to something. An attempt whose worker died is
replaced by another, which goes on from the last checkpoint. All of it is the controller's: workers
know neither journal nor store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, cast

from mosaic.core.errors import DamageError, MosaicError, PausedError, StopRequested, TrainingError
from mosaic.core.types.runs import TrainResult, Workplace
from tools.executors.base import (
    RayExecutorConfig,
    SlurmExecutorConfig,
    absolute,
    check_limits,
)
from training import attempt as files
from training import worker
from training.answering import AnswerJob
from training.methods.base import Progress, Stopping
from training.methods.checkpoints import carry_over

GRACE = 60.0
# So often in a row a worker may die without a further checkpoint before the job is given up.
MAX_DEATHS = 3
# What a shared storage may take until one machine sees what another has written.
SETTLING = 5.0


class State(Enum):
    """What an engine knows of an attempt."""

    WAITING = "waiting"  # for a worker, or for the engine to tell more
    RUNNING = "running"
    ENDED = "ended"  # nothing more will be written to its folder


class Engine(Protocol):
    """Starts attempts on machines. Threads share it. An attempt is the path of its folder."""

    def start(self, attempt: Path) -> None:
        """Have an attempt run as soon as there is a worker for it."""
        ...

    def attach(self, attempt: Path) -> bool:
        """Whether an attempt of an earlier controller still waits or runs; it is followed then."""
        ...

    def state(self, attempt: Path) -> tuple[State, str]:
        """The state of an attempt that was started or attached to; with ENDED, why if it is known.

        WAITING with a reason is sure: an attempt that ran before is in the queue again.

        Raises PausedError if the engine cannot be reached any more.
        """
        ...

    def end(self, attempt: Path) -> None:
        """End an attempt, and return when it has ended or nothing can be done about it."""
        ...

    def wait(self, seconds: float) -> None:
        """Return when something may have changed, after so long at the latest."""
        ...


@dataclass
class RemoteHandle:
    """A job, and its newest attempt. Times are of the monotonic clock."""

    order: files.Order
    progress: Progress | None
    attempt: Path | None = None
    read: int = 0
    began: float | None = None
    beat: float = 0.0
    asked: float | None = None
    gone: float | None = None
    deaths: int = 0
    furthest: int = 0
    outcome: files.Result | MosaicError | OSError | None = None

    @property
    def job(self) -> str:
        return self.order.job.content_digest

    @property
    def work(self) -> Path:
        return Path(self.order.place.work)

    @property
    def activity(self) -> str:
        return files.activity(self.order.job)

    def carry_over(self, source: Path, target: Path) -> int:
        """Link the newest checkpoint from folder to folder; its step, 0 if there is none.

        A shard of answers has no checkpoints: it is short, and begun anew.
        """
        job = self.order.job
        return 0 if isinstance(job, AnswerJob) else carry_over(job, source, target)


class RemoteExecutor:
    """Runs jobs by an engine, whatever happens to its workers."""

    def __init__(
        self, engine: Engine, config: RayExecutorConfig | SlurmExecutorConfig, logs: Path
    ) -> None:
        self.engine = engine
        self.config = config
        self.logs = logs

    def submit(
        self, job: files.Job, place: Workplace, progress: Progress | None = None
    ) -> RemoteHandle:
        """Start an attempt, unless the job is done or one of an earlier controller is at work."""
        handle = RemoteHandle(files.Order(job=job, place=absolute(place)), progress)
        handle.work.mkdir(parents=True, exist_ok=True)
        if files.read_done(handle.work, handle.job) is not None:
            return handle
        earlier = _attempts(handle.work)
        if earlier and not (earlier[-1] / files.FAILURE).exists():
            if (earlier[-1] / files.ORDER).exists() and self.engine.attach(earlier[-1]):
                self._follow(handle, earlier[-1])
                return handle
        for attempt in earlier:
            handle.carry_over(attempt, handle.work)
        self._begin(handle)
        return handle

    def wait(self, handles: Sequence[RemoteHandle], stopping: Stopping) -> list[TrainResult]:
        """The results of trainings; see `follow`."""
        return cast(list[TrainResult], self.follow(handles, stopping))

    def follow(self, handles: Sequence[RemoteHandle], stopping: Stopping) -> list[files.Result]:
        """Follow all jobs at once; whatever ends this ends them all, but for a PausedError.

        When the engine cannot be reached, nothing can be ended: what still runs goes on, and the
        next start finds what became of it.
        """
        try:
            while True:
                for handle in handles:
                    self._look(handle, stopping)
                results = _settled(handles)
                if results is not None:
                    return results
                self.engine.wait(0.5)
        except PausedError:
            raise
        except BaseException:
            if stopping():
                self._let_stop(handles)
            for handle in handles:
                if handle.outcome is None and handle.attempt is not None:
                    self.engine.end(handle.attempt)
                    handle.carry_over(handle.attempt, handle.work)
            raise

    def _let_stop(self, handles: Sequence[RemoteHandle]) -> None:
        """Give jobs that were asked to stop their time to write a checkpoint."""
        until = time.monotonic() + GRACE
        while time.monotonic() < until and any(handle.outcome is None for handle in handles):
            for handle in handles:
                self._look(handle, lambda: True)
            self.engine.wait(0.5)

    def _begin(self, handle: RemoteHandle) -> None:
        """Start a new attempt in a folder of its own, with the job's newest checkpoint in it."""
        job, place = handle.order.job, handle.order.place
        numbers = [int(path.name) for path in _attempts(handle.work)]
        attempt = handle.work / files.ATTEMPTS / str(max(numbers, default=0) + 1)
        attempt.mkdir(parents=True)
        handle.carry_over(handle.work, attempt)
        out = attempt / files.product(job)
        own = Workplace(paths=place.paths, out=str(out), work=str(attempt))
        order = files.Order(job=job, place=own)
        (attempt / "order.tmp").write_text(order.model_dump_json())
        (attempt / "order.tmp").rename(attempt / files.ORDER)
        self._follow(handle, attempt)
        self.engine.start(attempt)

    def _follow(self, handle: RemoteHandle, attempt: Path) -> None:
        handle.attempt, handle.read = attempt, 0
        handle.began, handle.gone = None, None

    def _look(self, handle: RemoteHandle, stopping: Stopping) -> None:
        """Read what is new in a job's folder, then ask the engine, and act on it."""
        if handle.outcome is not None or self._read(handle):
            return
        attempt = handle.attempt
        assert attempt is not None
        now = time.monotonic()
        if handle.asked is None and stopping():
            (attempt / files.STOP).touch()
            handle.asked = now
        state, why = self.engine.state(attempt)
        if state is State.WAITING and why:
            handle.began = (
                None  # it was put back in the queue: limits count from its next beginning
            )
        try:
            self._check_time(handle, now)
        except MosaicError as error:
            self.engine.end(attempt)
            if files.read_done(handle.work, handle.job) is not None and self._read(handle):
                return  # its result came while its worker was ended
            if handle.asked is None and self._is_silent(handle, now):
                # Answers that hang with one worker are drawn by another; a training that hangs is
                # for the round to decide on.
                self._replace(handle, attempt, str(error))
                return
            handle.carry_over(attempt, handle.work)
            handle.outcome = error
            return
        if state is not State.ENDED:
            handle.gone = None
            return
        if self._read(handle):  # it may have ended since the last look
            return
        if handle.gone is None:
            handle.gone = now
        if now - handle.gone <= SETTLING and not why:
            return  # its last words may not be visible here yet
        if handle.asked is not None:
            handle.carry_over(attempt, handle.work)
            handle.outcome = StopRequested(
                f"{handle.activity} was asked to stop, and its worker ended"
            )
            return
        self._replace(handle, attempt, why)

    def _read(self, handle: RemoteHandle) -> bool:
        """Take what an attempt wrote; whether the job's outcome, or another attempt, came of it."""
        self._tell_progress(handle)
        done = files.read_done(handle.work, handle.job)
        if done is not None:
            if handle.attempt is not None and handle.attempt.name != done.attempt:
                self.engine.end(handle.attempt)  # an attempt that was given up ended well after all
            try:
                handle.outcome = files.adopt(done, handle.work, Path(handle.order.place.out))
            except DamageError as error:
                handle.outcome = error
            return True
        assert handle.attempt is not None
        if (handle.attempt / files.FAILURE).exists():
            self._take_failure(handle, handle.attempt)
            return True
        return False

    def _check_time(self, handle: RemoteHandle, now: float) -> None:
        """Raise StopRequested or TrainingError if a job had its time; waiting has no limit."""
        if handle.asked is not None and handle.began is None:
            raise StopRequested(f"{handle.activity} was asked to stop before it began")
        if handle.asked is not None and now - handle.asked > GRACE:
            raise StopRequested(
                f"{handle.activity} was asked to stop and did not; it continues from its last "
                "checkpoint, if it has one"
            )
        if handle.began is not None:
            check_limits(self.config, now - handle.began, now - handle.beat, handle.activity)

    def _is_silent(self, handle: RemoteHandle, now: float) -> bool:
        """Whether a shard of answers began, and its worker has not been heard of for too long."""
        limit = self.config.heartbeat_seconds
        if limit is None or handle.began is None or not isinstance(handle.order.job, AnswerJob):
            return False
        return now - handle.beat > limit

    def _tell_progress(self, handle: RemoteHandle) -> None:
        """Pass on the whole lines that an attempt wrote since the last look."""
        if handle.attempt is None:
            return
        try:
            with (handle.attempt / files.EVENTS).open("rb") as stream:
                stream.seek(handle.read)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new.rpartition(b"\n")[0]
        if not whole:
            return
        handle.read += len(whole) + 1
        handle.beat = time.monotonic()
        if handle.began is None:
            handle.began = handle.beat
        for line in whole.split(b"\n"):
            with suppress(ValueError):
                event = json.loads(line)
                if handle.progress and isinstance(event, dict):
                    handle.progress(event)

    def _take_failure(self, handle: RemoteHandle, attempt: Path) -> None:
        """Take an attempt's own word on how it failed; one that another controller stopped goes on."""
        failure = worker.Failure.model_validate_json((attempt / files.FAILURE).read_text())
        error = failure.exception()
        handle.carry_over(attempt, handle.work)
        if isinstance(error, StopRequested) and handle.asked is None:
            self._begin(handle)
            return
        with suppress(FileNotFoundError):
            self._log(f"{attempt}: {(attempt / files.TRACEBACK).read_text()}")
        handle.outcome = error

    def _replace(self, handle: RemoteHandle, attempt: Path, why: str) -> None:
        """Go on with another worker, or give the job up if it keeps losing them where it stands."""
        step = handle.carry_over(attempt, handle.work)
        if step > handle.furthest:
            handle.furthest, handle.deaths = step, 0
        handle.deaths += 1
        why = why or "its worker ended without a word"
        self._log(f"{attempt}: {why}; its newest checkpoint is of step {step}")
        if handle.deaths >= MAX_DEATHS:
            answers = isinstance(handle.order.job, AnswerJob)
            where = "" if answers else f" at step {handle.furthest}"
            handle.outcome = TrainingError(
                f"{handle.activity} lost {handle.deaths} workers in a row{where}, the last one so: "
                f"{why} (log: {self.logs / 'train.log'})",
                "killed",
            )
            return
        if handle.progress:
            handle.progress({"stage": "worker lost", "lost": why, "from_step": step})
        self._begin(handle)

    def _log(self, text: str) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / "train.log").open("a") as stream:
            stream.write(text.rstrip() + "\n")


def _attempts(work: Path) -> list[Path]:
    """A job's attempts, oldest first."""
    return sorted((work / files.ATTEMPTS).glob("[0-9]*"), key=lambda path: int(path.name))


def _settled(handles: Sequence[RemoteHandle]) -> list[files.Result] | None:
    """All results; None as long as one is missing. Raises the first failure in their order."""
    results: list[files.Result] = []
    for handle in handles:
        if handle.outcome is None:
            return None
        if isinstance(handle.outcome, Exception):
            raise handle.outcome
        results.append(handle.outcome)
    return results
