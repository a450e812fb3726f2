"""The seam of execution: jobs go in, their results come out. Light to import.

`submit` hands a job over and returns at once if the executor can run it elsewhere; `wait`
returns when all handles are done. A job is named by its digest, and submitting it again is
harmless. Workers return results: the controller stays the only writer of journal and store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from training.methods.base import Progress, Stopping


class InlineExecutorConfig(FrozenModel):
    """Train in the controller's process: no start-up cost, shared memory."""

    kind: Literal["inline"] = "inline"


class SubprocessExecutorConfig(FrozenModel):
    """Train in a child process.

    A child counts as hung and is ended when it runs longer than `max_seconds`, or shows no
    progress for `heartbeat_seconds`, loading included.
    """

    kind: Literal["subprocess"] = "subprocess"
    max_seconds: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float | None = Field(default=1800, gt=0)


ExecutorConfig = Annotated[
    InlineExecutorConfig | SubprocessExecutorConfig, Field(discriminator="kind")
]


class Handle(Protocol):
    """A job that was handed over. `job` is the digest that names it."""

    @property
    def job(self) -> str: ...


H = TypeVar("H", bound=Handle)


class Executor(Protocol[H]):
    """Runs training jobs. What comes back has passed `check_adapter`."""

    def submit(self, job: TrainJob, place: Workplace, progress: Progress | None = None) -> H:
        """Hand a job over."""
        ...

    def wait(self, handles: Sequence[H], stopping: Stopping) -> list[TrainResult]:
        """The results, in the order of the handles, when all are done.

        Raises the first failure in that order (TrainingError, StopRequested, OSError for a full
        disk) once nothing of these handles runs any more.
        """
        ...
