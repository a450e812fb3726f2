"""Runs from Python: what `import mosaic` offers, over the same functions as the command line.

    import mosaic

    run = mosaic.run("mosaic.yaml", overrides={"rounds": 2})
    run.report().chosen              # the number of the chosen round
    run.rounds[1].scores             # objective -> role -> score
    run.to_pandas()                  # a row per round, objective and role
    run                              # in a notebook: a table of scores

Every call reads the run's journal anew, so a `Run` of a run that goes on elsewhere is up to date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.state import RunState
from mosaic.app import environment, runs
from mosaic.app.shapes import Report, Status
from mosaic.app.terminal import say
from mosaic.core.errors import UsageError
from mosaic.core.types.base import JsonObject
from mosaic.core.types.plans import ApprovalRequest
from mosaic.core.types.runs import Round, Trial

if TYPE_CHECKING:
    import pandas

    from mosaic.app.config import RunConfig


class Run:
    """A run directory. `path` is its folder.

    What a method returns is what the command of the same name prints with `--json`, as typed
    objects: `report()` is `python -m mosaic report --json`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> RunConfig:
        """The resolved config that the run was started with."""
        return runs.run_config(self.path)

    @property
    def rounds(self) -> list[Round]:
        """The finished rounds in order; the first is the base, round 0."""
        return list(self._state().rounds)

    @property
    def trials(self) -> list[Trial]:
        """Everything that was trained and measured: the base, rounds, repeats of the calibration."""
        return list(self._state().trials.values())

    def status(self) -> Status:
        """Where the run stands, and what is left of its budget."""
        from mosaic.app.views.report_data import status_data

        return status_data(self.path)

    def report(self) -> Report:
        """Scores with their intervals, plans, forecasts, archive, audit and budget."""
        from mosaic.app.views.report_data import report_data

        return report_data(self.path)

    def trace(self, number: int | None = None) -> list[JsonObject]:
        """What happened, in order: the events of the run, or of one round.

        The shape is `python -m mosaic schema trace`. Raises UsageError for an unknown round.
        """
        from mosaic.app.views.trace import trace_data

        return trace_data(self.path, number)

    def pending(self) -> ApprovalRequest | None:
        """The question that waits for a person's approval; None if nothing waits."""
        from mosaic.app.decisions import open_request
        from mosaic.core.journal import Journal

        journal = Journal.open(self.path)
        try:
            return open_request(journal)
        finally:
            journal.close()

    def resume(self, *, wait: bool = False) -> Run:
        """Continue where the journal ends; this run. Raises what `mosaic.run` raises.

        With `wait` it stays until a person has decided, instead of raising WaitingError.
        """
        from mosaic.app.bases import pinned
        from mosaic.app.loop import execute

        environment.prepare()
        execute(self.path, pinned(self.config, say), False, say, wait=wait)
        return self

    def to_pandas(self) -> pandas.DataFrame:
        """Scores as a data frame: a row per trial, objective and suite role.

        Columns: `run`, `round` (0 is the base), `trial`, `planner`, `objective`, `role` (steering,
        selection, audit, or the name of an independent suite), `mean` (1 to 5), `low`, `high` (95 %
        interval), `n_scored`, `accepted`, `chosen`, `tokens` (trained in this trial). Rows of audit and
        of independent suites exist for the base and the chosen trial. Raises UsageError if pandas is
        not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UsageError("to_pandas needs pandas; pip install pandas") from None
        return pandas.DataFrame(score_rows(self.report()), columns=COLUMNS)

    def _repr_html_(self) -> str:
        from mosaic.app.views.notebook import run_html

        return run_html(self.report())

    def _state(self) -> RunState:
        from mosaic.app.views.report_data import load

        journal, state = load(self.path)
        journal.close()
        return state


COLUMNS = [
    "run",
    "round",
    "trial",
    "planner",
    "objective",
    "role",
    "mean",
    "low",
    "high",
    "n_scored",
    "accepted",
    "chosen",
    "tokens",
]


def score_rows(report: Report) -> list[dict[str, object]]:
    """The rows of `Run.to_pandas`, as plain data."""
    rows = []
    for round_ in report.trials:
        scores = {objective: dict(roles) for objective, roles in round_.scores.items()}
        if report.audit is not None and round_.counts:
            audited = {0: report.audit.base, report.chosen: report.audit.chosen}
            for objective, score in audited.get(round_.round, {}).items():
                scores.setdefault(objective, {})["audit"] = score
            for name, test in report.audit.independent.items():
                models = {0: test.base, report.chosen: test.chosen}
                tested = models.get(round_.round)
                if tested is not None:
                    scores.setdefault(test.objective, {})[name] = tested
        for objective, roles in scores.items():
            for role, score in roles.items():
                row = {
                    "run": report.run,
                    "round": round_.round,
                    "trial": round_.trial,
                    "planner": round_.planner,
                    "objective": objective,
                    "role": role,
                    "mean": score.mean,
                    "low": score.low,
                    "high": score.high,
                    "n_scored": score.n_scored,
                    "accepted": round_.accepted,
                    "chosen": round_.round == report.chosen and round_.counts,
                    "tokens": round_.tokens.trained,
                }
                rows.append(row)
    return rows


def run(
    config: str | Path,
    *,
    overrides: Mapping[str, object] | None = None,
    run_dir: str | Path | None = None,
    wait: bool = False,
) -> Run:
    """Start a run and stay until it ends: measure, plan, curate, train, measure again, audit.

    `config` is a config file, or the name of a bundled one (`lab`). `overrides` change values of it
    by their path: `{"budget.tokens_per_round": 4000}`. The run lives in `run_dir`, by default in
    `runs/<name>-<n>` of the current folder; a `run_dir` that holds a run of the same config
    continues it. Progress goes to stderr.

    Raises UsageError for a config that cannot be used, WaitingError when a person must approve a
    plan (with `wait` it stays until one has), BudgetError, HeldError, PausedError or
    BoundaryError as the command line exits 4, 5, 6 and 1. Nothing that was finished is lost:
    `open_run(path).resume()` continues.
    """
    environment.prepare()
    from mosaic.app.loop import execute

    pairs = [f"{path}={json.dumps(value)}" for path, value in (overrides or {}).items()]
    chosen = None if run_dir is None else Path(run_dir)
    folder, resolved, new = runs.start(str(config), pairs, chosen, say)
    execute(folder, resolved, new, say, wait=wait)
    return Run(folder)


def open_run(path: str | Path = "last") -> Run:
    """A run that was made before: by its path, by its name under `runs/`, or `last`.

    Raises UsageError if there is none, or if another release made it.
    """
    from mosaic.core.journal import Journal

    folder = runs.find_run(str(path))
    Journal.open(folder).close()
    return Run(folder)
