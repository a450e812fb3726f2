"""Training as a step: a filed training set becomes a filed adapter, and its tokens are charged to the budget."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from mosaic.types import Adapter
from tools.curate import TrainingSet
from tools.executor import Executor
from tools.step import Outcome, Steps
from training.trainer import Progress, SftConfig, TrainJob


@dataclass(frozen=True)
class TrainTool:
    """Trains fresh LoRA adapters on one base model, given by its folder and digest."""

    steps: Steps
    executor: Executor
    base_model: Path
    base_digest: str
    config: SftConfig
    progress: Progress | None = None

    def train(self, training_set: TrainingSet, seed: int) -> Adapter:
        """The adapter for a training set and a seed. BoundaryError where training fails, BudgetError before it starts."""
        identity = {
            "base": self.base_digest,
            "training_set": training_set.digest,
            "config": self.config.json_data(),
            "seed": seed,
        }
        tokens = training_set.report.total.selected * self.config.epochs
        store = self.steps.store

        def effect() -> Outcome:
            with tempfile.TemporaryDirectory() as folder:
                job = TrainJob(
                    base_model=str(self.base_model),
                    base_digest=self.base_digest,
                    training_set=str(store.path(training_set.digest)),
                    config=self.config,
                    seed=seed,
                    out=str(Path(folder) / "adapter"),
                )
                done = self.executor.run(job, self.progress)
                digest = store.put_folder(Path(done.adapter))
            result = {
                "digest": digest,
                "base": self.base_digest,
                "tokens": done.tokens,
                "supervised": done.supervised,
                "steps": done.steps,
                "loss": done.loss,
            }
            return Outcome(result, [("trained", result)], spent=tokens, seconds=done.seconds)

        step = self.steps.run("train", identity, effect, reserve=tokens)
        return Adapter.model_validate({**(step.result or {}), "seconds": step.seconds or 0.0})
