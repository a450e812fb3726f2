"""Training in the controller's own process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from training import worker
from training.methods.base import Progress, Stopping


@dataclass(frozen=True)
class InlineHandle:
    """A job that runs when it is waited for."""

    work: TrainJob
    place: Workplace
    progress: Progress | None

    @property
    def job(self) -> str:
        return self.work.content_digest


class InlineExecutor:
    """Runs each job here, when it is waited for.

    Threads that wait at once take turns: a training seeds the generators of the whole process.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def submit(
        self, job: TrainJob, place: Workplace, progress: Progress | None = None
    ) -> InlineHandle:
        """Remember the job; nothing runs yet."""
        return InlineHandle(job, place, progress)

    def wait(self, handles: Sequence[InlineHandle], stopping: Stopping) -> list[TrainResult]:
        """Train one job after the other; the first failure leaves the rest untrained."""
        with self._turn:
            return [worker.train(h.work, h.place, h.progress, stopping) for h in handles]
