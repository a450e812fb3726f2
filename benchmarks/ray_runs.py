"""Whole runs whose trainings are on a real Ray, and whose controller is killed.

Journal, store, planner and graph are the real ones, as in `benchmarks.standins`; a training sleeps
and writes what the stand-in of this process would write.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from agent.context import RunContext
from benchmarks.figures import Rows, figure
from benchmarks.standins import StandIn, StandInExecutor, Witness, outcome
from mosaic.core.journal import Journal
from mosaic.core.types.runs import TRAINING_SET, TrainJob, TrainResult, Workplace
from tools.executors.base import RayExecutorConfig
from tools.executors.inline import InlineHandle
from tools.executors.ray import RayEngine
from tools.executors.remote import RemoteExecutor
from training import attempt
from training.methods.base import Progress, Stopping, never

RUNS = "benchmarks.ray_runs:run"
STEPS, SECONDS = 5, 0.2


def run(folder: Path) -> bool:
    """Run an attempt in a worker."""
    return attempt.run(folder, train)


def train(job: TrainJob, place: Workplace, progress: Progress, stopping: Stopping) -> TrainResult:
    """Sleep, then do what the stand-in does; its ledger lies beside the run's folder."""
    for step in range(1, STEPS + 1):
        time.sleep(SECONDS)
        progress({"step": step, "steps": STEPS})
    run_folder = Path(place.paths[TRAINING_SET]).parents[1]
    executor = StandInExecutor(witness_of(run_folder))
    (result,) = executor.wait([InlineHandle(job, place, None)], never)
    return result


def witness_of(run_folder: Path) -> Witness:
    return Witness(run_folder.with_name(f"{run_folder.name}.witness"))


@dataclass
class OnRay(StandIn):
    """The same runs, but for where they train."""

    address: str = field(default="", kw_only=True)

    def context(self, folder: Path, journal: Journal, witness: Witness) -> RunContext:
        context = super().context(folder, journal, witness)
        config = RayExecutorConfig(address=self.address, workers=2, lease_seconds=30)
        executor = RemoteExecutor(RayEngine(config, folder, RUNS), config, folder / "logs")
        context.trainer = replace(context.trainer, executor=executor)
        return context


def killed_runs(folder: Path, address: str, count: int) -> Rows:
    """Kill the controllers of runs at moments drawn by a seed, each run twice; then let it end."""
    dice = random.Random(4)
    here = StandIn.make("rounds=2", per_slice=4)
    there = OnRay(here.config, here.inputs, address=address)
    folder.mkdir()
    start = folder / "start"
    here.create(start)
    inline = folder / "inline"
    shutil.copytree(start, inline)
    here.run(inline, witness_of(inline))
    expected, unequal, failed, twice, kills = outcome(inline), 0, 0, 0, 0
    began, whole = time.monotonic(), 0.0
    for number in range(1 + count // 2):
        killed = folder / f"run-{number}"
        shutil.copytree(start, killed)
        for last in (False, False, True):
            if whole and not last:
                kills += _killed_after(there, killed, dice.random() * whole)
            elif last:
                failed += _to_its_end(there, killed)
        whole = whole or time.monotonic() - began
        unequal += outcome(killed) != expected
        trained = Counter(line for line in witness_of(killed).lines() if line[:5] == "train")
        twice += sum(times - 1 for times in trained.values())
    return [
        figure("whole runs: controllers killed", kills, "controllers"),
        figure("whole runs: that did not end", failed, "runs", at_most=0),
        figure("whole runs: journals unlike the one of `inline`", unequal, "runs", at_most=0),
        figure("whole runs: trainings that were made twice", twice, "trainings", at_most=0),
    ]


def _start(standin: StandIn, folder: Path) -> int:
    """A controller in a process of its own."""
    process = os.fork()
    if process:
        return process
    try:
        standin.run(folder, witness_of(folder))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _killed_after(standin: StandIn, folder: Path, seconds: float) -> bool:
    """Whether a controller was still at work when it was killed."""
    process = _start(standin, folder)
    time.sleep(seconds)
    at_work = os.waitpid(process, os.WNOHANG)[0] == 0
    if at_work:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return at_work


def _to_its_end(standin: StandIn, folder: Path) -> bool:
    """Whether a controller failed."""
    _, status = os.waitpid(_start(standin, folder), 0)
    return status != 0
