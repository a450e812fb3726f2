"""A training that sleeps, for figures and tests of what runs trainings elsewhere.

It takes the steps of its recipe (`epochs` of them), writes a checkpoint every `save_every`, and its
adapter is a chain of digests over all steps: a step left out or taken twice gives other bytes. How
long a step takes stands in the file of its training set.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.types.runs import TRAINING_SET, SftRecipe, TrainJob, TrainResult, Workplace
from training import attempt
from training.methods.base import Progress, Stopping
from training.methods.checkpoints import last_checkpoint, write_manifest
from training.models.adapter import CONFIG, WEIGHTS
from training.worker import Order

STATE = "state.json"
# What a file of a training set may say beside the seconds of a step.
WRONG = "wrong"


def run(folder: Path) -> bool:
    """Run an attempt of a stand-in: what `training.attempt.run` is to a real one."""
    return attempt.run(folder, train)


def train(job: TrainJob, place: Workplace, progress: Progress, stopping: Stopping) -> TrainResult:
    """Take all steps, from the last checkpoint on."""
    settings = json.loads(Path(place.paths[TRAINING_SET]).read_text())
    if WRONG in settings:
        raise UsageError(settings[WRONG])
    steps, work, began = job.recipe.epochs, Path(place.work), time.monotonic()
    step, chain = 0, job.content_digest
    found = last_checkpoint(job, work)
    if found is not None:
        step, chain = json.loads((Path(found) / STATE).read_text())
    while step < steps:
        time.sleep(settings["seconds"])
        step += 1
        chain = _next(chain, step)
        progress({"step": step, "steps": steps})
        stopped = stopping() and step < steps
        if stopped or (job.recipe.save_every and step % job.recipe.save_every == 0):
            _save(job, work, step, chain)
        if stopped:
            raise StopRequested(f"training stopped at step {step}; a checkpoint is kept")
    out = Path(place.out)
    out.mkdir()
    (out / WEIGHTS).write_text(chain)
    (out / CONFIG).write_text("{}")
    seconds = time.monotonic() - began
    return TrainResult(
        adapter=place.out, tokens=steps, supervised=steps, steps=steps, loss=1.0, seconds=seconds,
        train_seconds=seconds, real_token_share=1.0,
    )  # fmt: skip


def order(
    folder: Path, name: str, steps: int = 1, seconds: float = 0.0, save_every: int | None = None
) -> Order:
    """The order for a stand-in that works in a folder under this name."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.json"
    data.write_text(json.dumps({"seconds": seconds}))
    digest = hashlib.sha256(name.encode()).hexdigest()
    job = TrainJob(
        recipe=SftRecipe(epochs=steps, save_every=save_every),
        inputs={TRAINING_SET: digest},
        seed=1,
    )
    work, out = folder / f"{name}.work", folder / f"{name}.adapter"
    place = Workplace(paths={TRAINING_SET: str(data)}, out=str(out), work=str(work))
    return Order(job=job, place=place)


def expected(job: TrainJob) -> str:
    """The weights of a stand-in that took each of its steps once, in order."""
    chain = job.content_digest
    for step in range(job.recipe.epochs):
        chain = _next(chain, step + 1)
    return chain


def _next(chain: str, step: int) -> str:
    return hashlib.sha256(f"{chain} {step}".encode()).hexdigest()


def _save(job: TrainJob, work: Path, step: int, chain: str) -> None:
    """A sealed checkpoint; the one before the last is removed, as a trainer does."""
    checkpoint = work / f"checkpoint-{step}"
    if checkpoint.exists():
        return
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE).write_text(json.dumps([step, chain]))
    write_manifest(checkpoint, job)
    complete = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for old in complete[:-2]:
        shutil.rmtree(old)
