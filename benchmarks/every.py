"""All benchmarks, one after the other, in one table.

Each runs in a process of its own: one that raises, is killed or leaves something behind does not
touch the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Row, Rows, figure, not_measured

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("benchmark", "what", "figure", "unit", "goal", "met")
WIDTHS = (16, 74, 14, 14, 18, 6)


def run_all(names: list[str], quick: bool, as_json: bool) -> int:
    """Run these benchmarks and print their rows; 1 if a goal is missed or a benchmark raised."""
    every: list[dict[str, object]] = []
    missed = 0
    if not as_json:
        print(aligned(HEADER), flush=True)
    for name in names:
        started = time.monotonic()
        rows = in_process(name, quick)
        seconds = time.monotonic() - started
        for row in [*rows, figure("seconds it took", seconds, "s")]:
            missed += row["met"] is False
            every.append({"benchmark": name, **row})
            if not as_json:
                print(aligned(cells(name, row)), flush=True)
    if as_json:
        print(json.dumps(every, indent=1))
    else:
        print(f"{missed} goals missed" if missed else "no goal missed")
    return int(missed > 0)


def in_process(name: str, quick: bool) -> Rows:
    """The rows of one benchmark, run in a process of its own.

    If it did not get to print any, there is one missed row that says how it ended.
    """
    command = [sys.executable, "-m", "benchmarks", name, "--json", *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        rows: Rows = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        rows = [not_measured(f"did not finish (exit code {done.returncode}): {last}", met=False)]
    return rows


def cells(name: str, row: Row) -> tuple[str, ...]:
    """The cells of a row, in the order of the header."""
    value = "" if row["figure"] is None else str(row["figure"])
    met = {True: "met", False: "MISSED", None: ""}[row["met"]]
    return (name, row["what"], value, row["unit"], row["goal"] or "", met)


def aligned(values: tuple[str, ...]) -> str:
    """One line of the table; a cell that is too long pushes the rest to the right."""
    padded = []
    for value, width in zip(values, WIDTHS, strict=True):
        padded.append(value.ljust(width))
    return " ".join(padded).rstrip()
