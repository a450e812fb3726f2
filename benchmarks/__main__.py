"""Every figure of the project, measured by a command: `python -m benchmarks NAME [--quick]
[--json]`.

`python -m benchmarks all` runs every benchmark, each in a process of its own, and prints one
table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.every import run_all
from benchmarks.figures import CannotRun, Row, Rows, not_measured

# The module of each benchmark, which has a function of the benchmark's name. Modules are imported
# when they are needed, so that a package that only one of them uses is not needed by the others.
BENCHMARKS = {
    "house": "house",
    "ideal": "ideal",
    "rubrics": "rubrics",
    "extension": "extension",
    "cases": "cases",
    "budget": "curation",
    "curation": "curation",
    "large_index": "curation",
    "pool_texts": "pools",
    "pool_build": "pools",
    "packing": "training",
    "import_rows": "importing",
    "judge_cache": "judging",
    "concurrency": "concurrency",
    "corruption": "durability",
    "disk_full": "durability",
    "overspend": "durability",
    "races": "durability",
    "waiting": "waiting",
    "approvals": "waiting",
    "resume_speed": "waiting",
    "page": "page",
    "long_runs": "long_runs",
    "candidates": "long_runs",
    "reads": "reads",
    "resumes": "resumes",
    "faults": "faults",
    "endpoints": "endpoints",
    "hostile_replies": "hostile",
    "influence": "influence",
    "influence_prediction": "influence_prediction",
    "reward_model": "reward_model",
    "crash": "durability",
    "power_loss": "durability",
    "mutants": "mutants",
    "ray": "ray",
    "sft_step": "training",
    "templates": "templates",
    "vllm_rounds": "serving",
    "vllm_in_flight": "serving",
    "gpu_sft": "gpu",
    "demo": "loop",
    "controller_share": "loop",
    "coverage": "coverage",
    "discoveries": "discoveries",
    "audit": "planners",
    "landscape": "landscape",
    "levels": "levels",
    "looks": "looks",
    "methods": "methods",
    "noise": "noise",
    "planners": "planners",
    "planning": "planning",
}

# With `planners --table FOLDER`: not a benchmark of its own, since no checkout has a table.
TABLE = "benchmarks.table"


def measure(name: str, quick: bool, table: Path | None = None) -> Rows:
    """The rows of one benchmark; a single row that says why, if it cannot run on this machine.

    With `table`, a folder, planners are compared on a public table of mixtures.
    """
    module = import_module(f"benchmarks.{BENCHMARKS[name]}" if table is None else TABLE)
    try:
        function = getattr(module, name if table is None else "table")
        rows: Rows = function(quick) if table is None else function(table, quick)
    except CannotRun as error:
        rows = [not_measured(f"cannot run here: {error}")]
    return rows


def line(row: Row) -> str:
    """A row as one line of text."""
    met = {True: "met", False: "MISSED", None: ""}[row["met"]]
    value = "" if row["figure"] is None else f": {row['figure']} {row['unit']}".rstrip()
    goal = f" (goal {row['goal']}) {met}" if row["goal"] else ""
    return f"{row['what']}{value}{goal}"


def main() -> int:
    """Run one benchmark, or all; the exit code is 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--quick", action="store_true", help="smaller and noisier")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--table", type=Path, help="planners: a folder with a table of mixtures")
    options = parser.parse_args()
    if options.table and options.name != "planners":
        parser.error("--table belongs to planners")
    if options.name == "all":
        return run_all(list(BENCHMARKS), options.quick, options.json)
    # What a benchmark prints on its way must not end up between the rows.
    with contextlib.redirect_stdout(sys.stderr):
        rows = measure(options.name, options.quick, options.table)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(line(row))
    return int(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
