"""The scores and tokens of a run's rounds for trackio (extra `trackio`), beside TRL's curves.

Imported only by those who know that the library is installed. Numbers leave, and no text.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout, suppress

import trackio

from mosaic.app.shapes import Report


def log_rounds(report: Report, run: str, project: str) -> None:
    """Write every round as a step of one run of `project`, in place of what stood there before.

    `run` is the run's own id, unlike any other's.
    """
    # Trackio says on stdout what it does, where MOSAIC has its results.
    with redirect_stdout(sys.stderr):
        with suppress(ValueError):  # the project is new
            for before in trackio.Api().runs(project):
                if before.name == run:
                    before.delete()
        config = {"planner": report.planner, "config_digest": report.config_digest}
        trackio.init(
            project=project,
            name=run,
            config=config,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        for step, metrics in enumerate(round_metrics(report)):
            trackio.log(metrics, step=step)
        trackio.finish()


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
        found.append(metrics)
    return found
