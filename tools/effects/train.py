"""Training as a step: a filed training set becomes a filed adapter, and its tokens are charged to the budget."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import digest_of
from mosaic.core.types.runs import Adapter
from tools.effects.curate import TrainingSet
from tools.executors.subprocess import Executor
from training.methods.base import Progress, SftConfig, TrainJob

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
    config: SftConfig
    progress: Progress | None = None
    adapter_bytes: int = 0

    def train(self, training_set: TrainingSet, seed: int) -> Adapter:
        """The adapter for a training set and a seed. TrainingError where training fails, BudgetError before it starts."""
        identity = {
            "base": self.base_digest,
            "training_set": training_set.digest,
            "config": self.config.json_data(),
            "seed": seed,
        }
        tokens = training_set.report.total.selected * self.config.epochs
        store = self.steps.store
        work = store.root.parent / WORK / digest_of(identity)[:16]

        def effect() -> Outcome:
            shutil.rmtree(work / "adapter", ignore_errors=True)
            job = TrainJob(
                base_model=str(self.base_model),
                base_digest=self.base_digest,
                training_set=str(store.path(training_set.digest)),
                config=self.config,
                seed=seed,
                out=str(work / "adapter"),
                work=str(work),
            )
            done = self.executor.run(job, self.progress, self.steps.stopping)
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

        room = self.adapter_bytes * (CHECKPOINT_COPIES + 1 if self.config.save_every else 2)
        step = self.steps.run("train", identity, effect, reserve=tokens, room=room, version=2)
        shutil.rmtree(work, ignore_errors=True)
        return Adapter.model_validate({**(step.result or {}), "seconds": step.seconds or 0.0})
