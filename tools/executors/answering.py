"""Generation by the workers that train: each call is a job, under the contract of trainings.

A call of the evaluator is a shard of one suite, so that a worker is asked what this process would
ask of its own model: same prompts, same batches, same answers.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.generators.base import TextLikelihood
from mosaic.core.errors import BoundaryError, TrainingError
from mosaic.core.store import path_digest
from mosaic.core.types.base import JsonObject
from mosaic.core.types.evaluation import Prompt, Response
from mosaic.core.types.runs import BASE, GREEDY, START, TEMPLATE, Sampling, Workplace
from tools.executors.remote import RemoteExecutor
from training.answering import ANSWERS, AnswerJob, AnswerResult
from training.methods.base import Stopping

# In the run's `work/`, beside the folders of trainings.
FOLDER = "answers"


class WorkersGenerator:
    """Answers of workers. Threads share it: what they ask at once is drawn side by side.

    `folder` is the run's, on the storage that the workers share. `base` is the digest of base and
    template, `settings` are what answers depend on beside it.
    """

    def __init__(
        self,
        executor: RemoteExecutor,
        folder: Path,
        base_model: Path,
        base: str,
        settings: JsonObject,
        stopping: Stopping,
        template: Path | None = None,
    ) -> None:
        self.executor = executor
        self.folder = folder
        self.base_model = base_model
        self.base = base
        self.settings = settings
        self.stopping = stopping
        self.template = template
        self._turn = threading.Lock()
        self._took = threading.local()
        self._turns: dict[str, threading.Lock] = {}

    def generate(
        self, prompts: Sequence[Prompt], adapter: Path | None, sampling: Sampling = GREEDY
    ) -> list[Response]:
        """See `Generator`. Raises BoundaryError if no worker could answer."""
        job = self._job(adapter, sampling).model_copy(update={"prompts": list(prompts)})
        return [Response.model_validate(line) for line in self._lines(job, adapter)]

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[TextLikelihood]:
        """See `Generator`."""
        job = self._job(adapter, GREEDY).model_copy(update={"texts": list(texts)})
        return [TextLikelihood(mean, tokens) for mean, tokens in self._lines(job, adapter)]

    def _job(self, adapter: Path | None, sampling: Sampling) -> AnswerJob:
        """A job that asks for nothing yet."""
        digest = None if adapter is None else path_digest(adapter)
        return AnswerJob(base=self.base, settings=self.settings, adapter=digest, sampling=sampling)

    def filed(self) -> None:
        """Remove all folders of answers, those that an earlier controller left among them.

        They are set aside first: a folder that is half removed must not be taken for a whole one.
        """
        with self._turn:
            self._turns.clear()
            folder = self.folder / "work" / FOLDER
            over = folder.with_name(f"{FOLDER}.filed")
            shutil.rmtree(over, ignore_errors=True)
            with suppress(FileNotFoundError):
                folder.rename(over)
            shutil.rmtree(over, ignore_errors=True)

    @property
    def seconds(self) -> float | None:
        """How long a worker took for what this thread asked for last; None if it asked for nothing."""
        return getattr(self._took, "seconds", None)

    def release(self) -> None:
        """Nothing to give back: a worker frees its memory itself before it trains."""

    def close(self) -> None:
        """Nothing to close: workers end with the executor's engine."""

    def _lines(self, job: AnswerJob, adapter: Path | None) -> Any:
        """What a job's file holds, drawn by a worker of this controller or of an earlier one.

        Suites of two objectives may ask the same: whoever comes second gets what is there.
        """
        work = self.folder / "work" / FOLDER / job.content_digest[:16]
        paths = {BASE: str(self.base_model)}
        if self.template is not None:
            paths[TEMPLATE] = str(self.template)
        if adapter is not None:
            paths[START] = str(adapter)
        out = work / "answers"
        place = Workplace(paths=paths, out=str(out), work=str(work))
        with self._turn:
            turn = self._turns.setdefault(job.content_digest, threading.Lock())
        with turn:
            try:
                [result] = self.executor.follow([self.executor.submit(job, place)], self.stopping)
            except TrainingError as error:
                # No training failed, and none is to be tried again.
                raise BoundaryError(str(error)) from error
            assert isinstance(result, AnswerResult)
            self._took.seconds = result.seconds
            return json.loads((out / ANSWERS).read_text())
