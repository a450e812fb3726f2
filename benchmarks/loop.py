"""The loop itself: how long the demonstration takes, and what a round costs beside the work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import figure
from mosaic.app.views.report_data import report_data


def _run(folder: Path, *more: str) -> float:
    started = time.monotonic()
    command = [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(folder), *more]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def demo(quick: bool) -> list[dict[str, Any]]:
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
    rows += [figure(f"audit {o}", s["mean"], "1-5") for o, s in report["audit"]["chosen"].items()]
    return rows


def controller_share(quick: bool) -> list[dict[str, Any]]:
    """The worst planned round's time that is not training, generation or judging."""
    with tempfile.TemporaryDirectory() as folder:
        _run(
            Path(folder) / "run",
            "--set",
            f"rounds={2 if quick else 5}",
            "--set",
            "calibration.repeats=1",
        )
        rounds = [r for r in report_data(Path(folder) / "run")["rounds"] if r["plan"]]
    rows = []
    for round_ in rounds:
        seconds = round_["seconds"]
        beside = seconds["total"] - seconds["train"] - seconds["generate"] - seconds["judge"]
        allowed = max(0.5, 0.05 * seconds["total"])
        what = f"round {round_['round']}: beside the work, of {seconds['total']:.1f} s"
        rows.append(figure(what, beside, "s", at_most=round(allowed, 3)))
    return rows
