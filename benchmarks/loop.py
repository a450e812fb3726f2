"""The loop itself: how long the demonstration takes, and what a round costs beyond its work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agent.planners.surrogate import SurrogatePlanner
from benchmarks.figures import Rows, figure
from mosaic.app.views.report_data import report_data
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.records import Observe
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

# What a planned round of the laboratory may take beyond its work, in seconds.
MAX_SHARE = 0.15


def _run(folder: Path, *more: str) -> float:
    """Run the laboratory; how many seconds it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(folder), *more]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def demo(quick: bool) -> Rows:
    """Seconds of `python -m mosaic run lab`, everything included but the installation."""
    with tempfile.TemporaryDirectory() as folder:
        more = ["--set", "rounds=1", "--set", "calibration.repeats=1"] if quick else []
        seconds = _run(Path(folder) / "run", *more)
        report = report_data(Path(folder) / "run")
    rows = [
        figure("run of the laboratory, five rounds and audit", seconds / 60, "minutes", at_most=6)
    ]
    if quick:
        rows = [figure("run of the laboratory, one round", seconds / 60, "minutes")]
    assert report.audit is not None
    for objective, score in report.audit.chosen.items():
        rows.append(figure(f"audit {objective}", score.mean or 1.0, "1-5"))
    return rows


def controller_share(quick: bool) -> Rows:
    """What a planned round takes beyond training, generation and judging.

    Seconds by the clock, which a busy machine stretches, and CPU seconds of planning alone, from
    the observations of the run.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        rounds = f"rounds={2 if quick else 5}"
        _run(run, "--set", rounds, "--set", "calibration.repeats=1")
        report = report_data(run)
        planning = planning_seconds(run)
    rows = []
    for round_ in report.rounds:
        if not round_.plan:
            continue
        seconds = round_.seconds
        beside = seconds["total"] - seconds["train"] - seconds["generate"] - seconds["judge"]
        what = f"round {round_.round}: beyond the work, of {seconds['total']:.1f} s"
        rows.append(figure(what, beside, "s", at_most=MAX_SHARE))
        what = f"round {round_.round}: planning alone"
        rows.append(figure(what, planning[round_.round], "CPU s", at_most=MAX_SHARE))
    return rows


def planning_seconds(run: Path) -> dict[int, float]:
    """Round -> CPU seconds in which `profile` plans it again from what was observed then."""
    store = Store(run)
    journal = Journal.open(run)
    steps = journal.steps(Observe)
    journal.close()
    seconds = {}
    for step in steps:
        seen = Observation.model_validate(store.get_json(step.result.observation))
        toolbox = Toolbox(seen, lambda *wanted: [], lambda plan: [])
        started = time.process_time()
        SurrogatePlanner().propose(seen, toolbox)
        seconds[seen.round] = time.process_time() - started
    return seconds
