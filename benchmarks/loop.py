"""The loop itself: how long the demonstration takes, and what a round costs beyond its work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Rows, figure
from mosaic.app.views.report_data import report_data


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
        figure("run of the laboratory, five rounds and audit", seconds / 60, "minutes", at_most=5)
    ]
    if quick:
        rows = [figure("run of the laboratory, one round", seconds / 60, "minutes")]
    assert report.audit is not None
    for objective, score in report.audit.chosen.items():
        rows.append(figure(f"audit {objective}", score.mean or 1.0, "1-5"))
    return rows


def controller_share(quick: bool) -> Rows:
    """The worst planned round's time that is not training, generation or judging."""
    with tempfile.TemporaryDirectory() as folder:
        rounds = f"rounds={2 if quick else 5}"
        _run(Path(folder) / "run", "--set", rounds, "--set", "calibration.repeats=1")
        report = report_data(Path(folder) / "run")
    rows = []
    for round_ in report.rounds:
        if not round_.plan:
            continue
        seconds = round_.seconds
        beside = seconds["total"] - seconds["train"] - seconds["generate"] - seconds["judge"]
        allowed = max(0.5, 0.05 * seconds["total"])
        what = f"round {round_.round}: beyond the work, of {seconds['total']:.1f} s"
        rows.append(figure(what, beside, "s", at_most=round(allowed, 3)))
    return rows
