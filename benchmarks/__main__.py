"""`python -m benchmarks NAME [--quick] [--json]`: every figure of the project, with its goal, measured by a command."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks import (
    curation,
    durability,
    faults,
    gpu,
    hostile,
    importing,
    judging,
    loop,
    mutants,
    page,
    planners,
    serving,
    training,
    waiting,
)

Rows = list[dict[str, Any]]

BENCHMARKS: dict[str, Callable[[bool], Rows]] = {
    "demo": loop.demo,
    "audit": planners.audit,
    "planners": planners.planners,
    "landscape": planners.landscape,
    "controller_share": loop.controller_share,
    "curation": curation.curation,
    "packing": training.packing,
    "sft_step": training.sft_step,
    "budget": curation.budget,
    "import_rows": importing.import_rows,
    "judge_cache": judging.judge_cache,
    "crash": durability.crash,
    "power_loss": durability.power_loss,
    "races": durability.races,
    "corruption": durability.corruption,
    "disk_full": durability.disk_full,
    "overspend": durability.overspend,
    "approvals": waiting.approvals,
    "waiting": waiting.waiting,
    "resume_speed": waiting.resume_speed,
    "page": page.page,
    "mutants": mutants.mutants,
    "faults": faults.faults,
    "hostile_replies": hostile.hostile_replies,
    "vllm_rounds": serving.vllm_rounds,
    "vllm_in_flight": serving.vllm_in_flight,
    "gpu_sft": gpu.gpu_sft,
}


def main() -> int:
    """Run one benchmark; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=list(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="smaller and noisier")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    options = parser.parse_args()
    rows = BENCHMARKS[options.name](options.quick)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            met = {True: "met", False: "MISSED", None: ""}[row["met"]]
            print(
                f"{row['what']}: {row['figure']} {row['unit']}"
                + (f" (goal {row['goal']}) {met}" if row["goal"] else "")
            )
    return int(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
