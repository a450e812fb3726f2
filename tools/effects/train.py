"""Training as a step: a filed training set becomes a filed adapter, and its tokens are charged to the budget."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.runs import BASE, TRAINING_SET, Adapter, Recipe, TrainJob, Workplace
from tools.effects.curate import TrainingSet
from tools.executors.base import Executor
from training.methods.base import Progress

WORK = "work"
# Weights and Adam's two moments for every trained number, in two checkpoints at a time, and the adapter itself.
CHECKPOINT_COPIES = 7


@dataclass(frozen=True)
class TrainTool:
    """Trains fresh LoRA adapters on one base model, given by its folder and digest.

    Checkpoints lie in the run's `work/` until the adapter is filed. `adapter_bytes` is what one adapter takes on disk.
    """

    steps: Steps
    executor: Executor
    base_model: Path
    base_digest: str
    recipe: Recipe
    progress: Progress | None = None
    adapter_bytes: int = 0

    def train(self, training_set: TrainingSet, seed: int) -> Adapter:
        """The adapter for a training set and a seed. TrainingError where training fails, BudgetError before it starts."""
        inputs = {BASE: self.base_digest, TRAINING_SET: training_set.digest}
        job = TrainJob(recipe=self.recipe, inputs=inputs, seed=seed)
        tokens = training_set.report.total.selected * self.recipe.epochs
        store = self.steps.store
        work = store.root.parent / WORK / job.content_digest[:16]

        def effect() -> Outcome:
            shutil.rmtree(work / "adapter", ignore_errors=True)
            paths = {BASE: str(self.base_model), TRAINING_SET: str(store.path(training_set.digest))}
            place = Workplace(paths=paths, out=str(work / "adapter"), work=str(work))
            handle = self.executor.submit(job, place, self.progress)
            (done,) = self.executor.wait([handle], self.steps.stopping)
            digest = store.put_folder(Path(done.adapter))
            result = {
                "digest": digest,
                "base": self.base_digest,
                "tokens": done.tokens,
                "supervised": done.supervised,
                "steps": done.steps,
                "loss": done.loss,
            }
            return Outcome(
                result, [("trained", result)], spent=min(tokens, done.tokens), seconds=done.seconds
            )

        room = self.adapter_bytes * (CHECKPOINT_COPIES + 1 if self.recipe.save_every else 2)
        step = self.steps.run(
            "train", job.json_data(), effect, reserve=tokens, room=room, version=3
        )
        shutil.rmtree(work, ignore_errors=True)
        return Adapter.model_validate({**(step.result or {}), "seconds": step.seconds or 0.0})
