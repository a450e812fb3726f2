"""The scores and tokens of a run's rounds for trackio (extra `trackio`), beside TRL's curves.

Numbers leave, and no text. Trackio runs in a process of its own, which is ended if it takes too long:
a database on a slow disk, or a server that does not answer, must not hold a controller.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

from mosaic.app.shapes import Report
from mosaic.core.errors import BoundaryError

SECONDS = 60.0  # that trackio may take, its imports among them
WORKER = "mosaic.app.telemetry.trackio_worker"


def log_rounds(report: Report, run: str, project: str) -> None:
    """Write every round as a step of one run of `project`, in place of what stood there before.

    `run` is the run's own id, unlike any other's. Raises BoundaryError if trackio fails, or takes
    longer than `SECONDS`.
    """
    order = {
        "project": project,
        "run": run,
        "config": {"planner": report.planner, "config_digest": report.config_digest},
        "rounds": round_metrics(report),
    }
    with subprocess.Popen(
        [sys.executable, "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as worker:
        try:
            _, said = worker.communicate(json.dumps(order).encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            raise BoundaryError(f"trackio did not end within {SECONDS:g} s") from None
    if worker.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise BoundaryError(f"trackio: {lines[-1] if lines else worker.returncode}")


def round_metrics(report: Report) -> list[dict[str, float]]:
    """What is logged of each round: mean scores by role and objective, hypervolume, tokens."""
    found = []
    for round_, volume in zip(report.rounds, report.hypervolume, strict=True):
        metrics = {"hypervolume": volume, "tokens/trained": float(round_.tokens.trained)}
        for objective, roles in round_.scores.items():
            for role, score in roles.items():
                if score.mean is not None:
                    metrics[f"{role}/{objective}"] = score.mean
        if report.audit is not None and round_.round in (0, report.chosen):
            audited = report.audit.base if round_.round == 0 else report.audit.chosen
            for objective, score in audited.items():
                if score.mean is not None:
                    metrics[f"audit/{objective}"] = score.mean
            for name, test in report.audit.independent.items():
                tested = test.base if round_.round == 0 else test.chosen
                if tested is not None and tested.mean is not None:
                    metrics[f"independent/{name}"] = tested.mean
        found.append(metrics)
    return found
