"""Training as a step: a filed training set becomes a filed adapter, paid from the budget."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic.core.errors import TrainingError
from mosaic.core.steps import Outcome, Steps, Task
from mosaic.core.store import file_digest
from mosaic.core.types.events import TrainedEvent
from mosaic.core.types.records import Train
from mosaic.core.types.runs import (
    BASE,
    JUDGED_ANSWERS,
    PAIRS,
    REWARD_MODEL,
    START,
    TEMPLATE,
    TRAINING_SET,
    WISHED_CHATS,
    Adapter,
    Recipe,
    TrainJob,
    TrainResult,
    Workplace,
)
from mosaic.core.types.spending import Usage
from tools.executors.base import Executor
from training import attempt
from training.methods.base import Event, Progress

WORK = "work"
# Inputs of a job that lie in the store.
FILED = (TRAINING_SET, PAIRS, JUDGED_ANSWERS, WISHED_CHATS, REWARD_MODEL)
# Weights and Adam's two moments for every trained number, in two checkpoints at a time, and the
# adapter itself.
CHECKPOINT_COPIES = 7


def template_input(template: Path | None) -> dict[str, str]:
    """What a chat template of the config's own adds to the inputs of a job."""
    return {} if template is None else {TEMPLATE: file_digest(template)}


@dataclass(frozen=True)
class TrainWork:
    """A job of a trial, and what its training may cost."""

    trial: str
    job: TrainJob
    reserve: Usage


class Together:
    """The progress of several trainings as that of one: their steps are added up."""

    def __init__(self, tell: Progress, count: int) -> None:
        self._tell = tell
        self._count = count
        self._turn = threading.Lock()
        self._steps: dict[str, tuple[int, int]] = {}

    def of(self, job: str) -> Progress:
        """What one training tells its progress to; it may stand in a thread."""
        if self._count == 1:
            return self._tell

        def tell(event: Event) -> None:
            done, total = event.get("step"), event.get("steps")
            if not isinstance(done, int) or not isinstance(total, int):
                return
            with self._turn:
                self._steps[job] = (done, total)
                known = self._steps.values()
                # Those that have not begun are taken to be as long as the others.
                whole = sum(total for _, total in known) * self._count // len(known)
                self._tell({**event, "step": sum(done for done, _ in known), "steps": whole})

        return tell


@dataclass(frozen=True)
class TrainTool:
    """Trains LoRA adapters on one base model, given by its folder and digest.

    `template` is a file that replaces the base's chat template; `base_digest` covers both.

    Checkpoints lie in the run's `work/` until the adapter is filed. `adapter_bytes` is what one
    adapter takes on disk.
    """

    executor: Executor[Any]
    base_model: Path
    base_digest: str
    recipe: Recipe
    progress: Progress | None = None
    adapter_bytes: int = 0
    template: Path | None = None

    def job(self, training_set: str, seed: int, start_from: str | None = None) -> TrainJob:
        """The job that trains on a filed training set, given by its digest."""
        return self._job(self.recipe, {TRAINING_SET: training_set}, seed, start_from)

    def stage_job(
        self, recipe: Recipe, data: dict[str, str], seed: int, start_from: str | None = None
    ) -> TrainJob:
        """The job of another recipe: `data` is input name -> digest of what it trains on."""
        return self._job(recipe, data, seed, start_from)

    def _job(
        self, recipe: Recipe, data: dict[str, str], seed: int, start_from: str | None
    ) -> TrainJob:
        inputs = {BASE: self.base_digest, **data, **template_input(self.template)}
        return TrainJob(recipe=recipe, inputs=inputs, start_from=start_from, seed=seed)

    def train(self, steps: Steps, job: TrainJob, reserve: Usage) -> Adapter:
        """The adapter of a job.

        Raises TrainingError if training fails, BudgetError before it starts.
        """
        (found,) = self.train_many(steps, [TrainWork(steps.place.trial, job, reserve)])
        if isinstance(found, TrainingError):
            raise found
        return found

    def train_many(self, steps: Steps, works: Sequence[TrainWork]) -> list[Adapter | TrainingError]:
        """The adapters of several jobs of a round, trained side by side, in their order.

        A training that failed is its own result. Raises BudgetError before any starts.
        """
        progress = Together(self.progress, len(works)) if self.progress else None
        tasks = [self._task(steps, work, progress) for work in works]
        found: list[Adapter | TrainingError] = []
        for work, outcome in zip(works, steps.run_many(tasks), strict=True):
            if isinstance(outcome, Adapter):
                shutil.rmtree(self._work(steps, work.job), ignore_errors=True)
            elif not isinstance(outcome, TrainingError):
                raise outcome
            found.append(outcome)
        return found

    def _work(self, steps: Steps, job: TrainJob) -> Path:
        return steps.journal.folder / WORK / job.content_digest[:16]

    def _task(self, steps: Steps, work: TrainWork, progress: Together | None) -> Task[Adapter]:
        """One job as a step."""
        job, reserve = work.job, work.reserve
        told = progress.of(job.content_digest) if progress else None

        def effect() -> Outcome[Adapter]:
            done = self._run(steps, job, told)
            digest = steps.store.put_folder(Path(done.adapter))
            adapter = Adapter(
                digest=digest,
                base=self.base_digest,
                tokens=done.tokens,
                supervised=done.supervised,
                steps=done.steps,
                loss=done.loss,
                seconds=done.seconds,
                sampled=done.sampled,
            )
            spent = Usage(
                trained=min(reserve.trained, done.tokens),
                sampled=min(reserve.sampled, done.sampled),
            )
            events = [TrainedEvent(adapter=adapter)]
            return Outcome(adapter, events, usage=spent, seconds=done.seconds)

        copies = CHECKPOINT_COPIES + 1 if job.recipe.save_every else 2
        room = self.adapter_bytes * copies
        return Task(Train(job=job), effect, reserve, room, work.trial)

    def _run(self, steps: Steps, job: TrainJob, progress: Progress | None) -> TrainResult:
        """Train in the run's work folder, continuing from what an earlier try left there.

        What a worker elsewhere has brought to its end is taken, whatever the executor is by now.
        """
        work = self._work(steps, job)
        out = work / "adapter"
        ended = attempt.read_done(work, job.content_digest)
        if ended is not None:
            found = attempt.adopt(ended, work, out)
            assert isinstance(found, TrainResult)
            return found
        shutil.rmtree(out, ignore_errors=True)
        paths = {BASE: str(self.base_model)}
        if self.template is not None:
            paths[TEMPLATE] = str(self.template)
        for name in FILED:
            if name in job.inputs:
                paths[name] = str(steps.store.path(job.inputs[name]))
        if job.start_from is not None:
            paths[START] = str(steps.store.path(job.start_from))
        place = Workplace(paths=paths, out=str(out), work=str(work))
        handle = self.executor.submit(job, place, progress)
        (done,) = self.executor.wait([handle], steps.stopping)
        return done
