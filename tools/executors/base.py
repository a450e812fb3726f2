"""The seam of execution: jobs go in, their results come out. Light to import.

`submit` hands a job over and returns at once if the executor can run it elsewhere; `wait`
returns when all handles are done. A job is named by its digest, and submitting it again is
harmless. Workers return results: the controller stays the only writer of journal and store.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import Field, JsonValue, field_validator

from mosaic.core.errors import TrainingError
from mosaic.core.types.base import FrozenModel, StrictInt
from mosaic.core.types.runs import TrainJob, TrainResult, Workplace
from training.methods.base import Progress, Stopping


class InlineExecutorConfig(FrozenModel):
    """Train in the controller's process: no start-up cost, shared memory."""

    kind: Literal["inline"] = "inline"


class SubprocessExecutorConfig(FrozenModel):
    """Train in a child process.

    A child counts as hung and is ended when it runs longer than `max_seconds`, or shows no
    progress for `heartbeat_seconds`, loading included. `slots` children train at once; others wait
    their turn. Where `CUDA_VISIBLE_DEVICES` lists at least as many devices as there are slots, each
    slot has its own part of the list.
    """

    kind: Literal["subprocess"] = "subprocess"
    max_seconds: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float | None = Field(default=1800, gt=0)
    slots: StrictInt = Field(default=1, ge=1, le=1024, exclude_if=lambda slots: slots == 1)


class RayExecutorConfig(FrozenModel):
    """Train on a Ray cluster whose machines share the storage of the run, the base and the pool.

    `address` is where the cluster's head listens (host:port, or `auto`); None starts a Ray of its
    own on this machine, behind a token, which ends with the run's controller. `resources` is what
    one worker takes, by Ray's names (`CPU`, `GPU`, `memory` in bytes, or a cluster's own); `workers`
    is how many train at once. A worker stays for the next job; one without a job that no controller
    asks for `lease_seconds` ends. Limits of a job as for `subprocess`, counted from where it begins
    to run: one that waits for a worker is not silent.
    """

    kind: Literal["ray"] = "ray"
    address: str | None = None
    resources: dict[str, float] = {"CPU": 1}
    workers: StrictInt = Field(default=1, ge=1, le=1024)
    lease_seconds: float = Field(default=600, gt=0)
    max_seconds: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float | None = Field(default=1800, gt=0)

    @field_validator("address")
    @classmethod
    def _of_a_head(cls, address: str | None) -> str | None:
        if address is None or address == "auto" or re.fullmatch(r"[^:/\s]+:[0-9]{1,5}", address):
            return address
        raise ValueError(f"address: {address!r} is neither host:port nor auto")

    @field_validator("resources")
    @classmethod
    def _some(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if amount < 0 or (amount == 0 and name not in ("CPU", "GPU")):
                raise ValueError(f"resources.{name}: {amount:g} is not an amount of anything")
        return resources


class SlurmExecutorConfig(FrozenModel):
    """Train as jobs of Slurm, on nodes that share the storage of the run, the base and the pool.

    `minutes` is the time that a job asks for. One that is preempted or runs out of it is queued
    again, up to `requeues` times, and goes on from its last checkpoint. `parameters` are handed to
    submitit as they are (`slurm_partition`, `gpus_per_node`, `cpus_per_task`, `mem_gb`,
    `slurm_setup`, ...). `cluster: local` runs the same jobs as processes of this machine, to try a
    config. Limits as for `ray`.
    """

    kind: Literal["slurm"] = "slurm"
    cluster: Literal["slurm", "local"] = "slurm"
    minutes: StrictInt = Field(default=240, ge=1)
    requeues: StrictInt = Field(default=3, ge=0, le=1000)
    parameters: dict[str, JsonValue] = {}
    max_seconds: float | None = Field(default=None, gt=0)
    heartbeat_seconds: float | None = Field(default=1800, gt=0)


ExecutorConfig = Annotated[
    InlineExecutorConfig | SubprocessExecutorConfig | RayExecutorConfig | SlurmExecutorConfig,
    Field(discriminator="kind"),
]


Limited = SubprocessExecutorConfig | RayExecutorConfig | SlurmExecutorConfig


def check_limits(
    config: Limited, running: float, silent: float, activity: str = "training"
) -> None:
    """Raise TrainingError (`hang`) for a job at work; seconds since its start and its last word."""
    limit, heartbeat = config.max_seconds, config.heartbeat_seconds
    if limit is not None and running > limit:
        what = f"{activity} ran longer than executor.max_seconds = {limit:g}"
        raise TrainingError(what, "hang")
    if heartbeat is not None and silent > heartbeat:
        what = f"{activity} showed no progress for executor.heartbeat_seconds = {heartbeat:g}"
        raise TrainingError(what, "hang")


def absolute(place: Workplace) -> Workplace:
    """The same place for a process with another working folder."""
    paths = {name: str(Path(path).resolve()) for name, path in place.paths.items()}
    out, work = str(Path(place.out).resolve()), str(Path(place.work).resolve())
    return Workplace(paths=paths, out=out, work=work)


def sources() -> Path:
    """Where the packages lie, so that another process finds them whatever its working folder is."""
    return Path(__file__).resolve().parents[2]


class Handle(Protocol):
    """A job that was handed over. `job` is the digest that names it."""

    @property
    def job(self) -> str: ...


H = TypeVar("H", bound=Handle)


class Executor(Protocol[H]):
    """Runs training jobs. What comes back has passed `check_adapter`.

    Threads may share an executor, each with handles of its own.
    """

    def submit(self, job: TrainJob, place: Workplace, progress: Progress | None = None) -> H:
        """Hand a job over."""
        ...

    def wait(self, handles: Sequence[H], stopping: Stopping) -> list[TrainResult]:
        """The results, in the order of the handles, when all are done.

        Raises the first failure in that order (TrainingError, StopRequested, OSError for a full
        disk) once nothing of these handles runs any more.
        """
        ...
