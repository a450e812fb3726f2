"""Journal -> what the templates show. Reads, never runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mosaic.app.decisions import open_request
from mosaic.app.runs import run_config
from mosaic.app.views.report_data import load, report_data, status_data
from mosaic.app.views.trace_tree import tree
from mosaic.core.errors import MosaicError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.tables import FILE
from mosaic.core.types.evaluation import ROLES, Response, Scored
from mosaic.core.types.plans import ProposedPlan

STEERING = ROLES[0]
EXAMPLES = 12


def run_names(folder: Path) -> list[str]:
    """Run directories below a folder, the newest first."""
    found = [p.parent for p in folder.glob(f"*/{FILE}")]
    return [
        p.name for p in sorted(found, key=lambda p: (p / FILE).stat().st_mtime_ns, reverse=True)
    ]


def run_folder(root: Path, name: str) -> Path:
    """The folder of a listed run; UsageError for any other name."""
    if name not in run_names(root):
        raise UsageError(f"no run {name!r} here")
    return root / name


def listing(root: Path) -> list[dict[str, Any]]:
    """A line per run; one that cannot be read says why."""
    lines = []
    for name in run_names(root):
        try:
            status = status_data(root / name)
            report = report_data(root / name)
            volume = report.hypervolume[-1] if report.hypervolume else None
            lines.append(
                {
                    "name": name,
                    **status.json_data(),
                    "planner": report.planner,
                    "hypervolume": volume,
                }
            )
        except MosaicError as error:
            lines.append({"name": name, "state": "damaged", "error": str(error)})
    return lines


def mark(folder: Path) -> str:
    """Changes whenever something was recorded."""
    journal = Journal.open(folder)
    try:
        return journal.mark()
    finally:
        journal.close()


def run_page(folder: Path) -> dict[str, Any]:
    """Everything the page of a run shows. Its mark is taken first: what is recorded meanwhile makes a newer one."""
    seen = mark(folder)
    data, status = report_data(folder), status_data(folder)
    journal, state = load(folder)
    try:
        request = open_request(journal)
        doing = journal.rows(state="intent")
    finally:
        journal.close()
    forecasts = [{"round": r.round, **line.json_data()} for r in data.rounds for line in r.forecast]
    return {
        "data": data,
        "status": status,
        "request": request,
        "rows": _change_rows(request.plans[0]) if request else [],
        "folder": str(folder),
        "doing": doing[-1] if doing and not state.audit else None,
        "heat": heat(list(state.rounds)),
        "tree": tree(folder)[::-1],
        "forecasts": forecasts,
        "mark": seen,
        "rounds_planned": run_config(folder).rounds,
    }


def heat(rounds: list[Any]) -> dict[str, Any]:
    """Slices by rounds: `{"rounds": [...], "rows": [{"objective", "slice", "cells": [{"mean", "level", "round"}]}]}`."""
    shown = [r for r in rounds if r.failure is None]
    keys = sorted({(s.objective, s.slice) for r in shown for s in r.profile.slices})
    rows = []
    for objective, name in keys:
        cells = []
        for round_ in shown:
            found = round_.profile.find(objective, name)
            mean = found.score.mean if found else None
            level = "none" if mean is None else str(min(8, int((mean - 1) * 2)))
            change = found.change if found and found.significant else None
            cells.append({"round": round_.round, "mean": mean, "level": level, "change": change})
        rows.append({"objective": objective, "slice": name, "cells": cells})
    return {"rounds": [r.round for r in shown], "rows": rows}


def _change_rows(shown: ProposedPlan) -> list[dict[str, Any]]:
    """The change of a plan by data set: its ratio, and its buckets with stock."""
    before = {c.path: c.before for c in shown.changes}
    after = {c.path: c.after for c in shown.changes}
    rows: dict[str, dict[str, Any]] = {}
    # Every data set of the pool: one that a plan leaves out falls to 0, which a person must see.
    for demand in shown.stock:
        ratio, weight = (
            f"ratios.{demand.dataset}",
            f"bucket_weights.{demand.dataset}.{demand.bucket}",
        )
        row: dict[str, Any] = {
            "dataset": demand.dataset,
            "before": before[ratio],
            "after": after[ratio],
            "buckets": [],
        }
        bucket = {
            "name": demand.bucket,
            "before": before[weight],
            "after": after[weight],
            "asked": demand.asked,
            "stock": demand.stock,
        }
        rows.setdefault(demand.dataset, row)["buckets"].append(bucket)
    return list(rows.values())


def examples(folder: Path, number: int, objective: str, slice_: str) -> list[dict[str, Any]]:
    """The steering conversations behind a cell, worst first: label, score, turns with answers."""
    from eval.suite import load_suite
    from mosaic.app.wiring import open_objective

    config = run_config(folder)
    journal, state = load(folder)
    journal.close()
    files = state.rounds[number].trial.files if 0 <= number < len(state.rounds) else {}
    if objective not in files or objective not in config.objectives:
        raise UsageError(f"nothing is recorded for {objective!r} in round {number}")
    store = Store(folder)
    digests = files[objective][STEERING]
    scored = [Scored.model_validate(s) for s in store.get_json(digests.scored)]
    answers = {r["id"]: Response.model_validate(r) for r in store.get_json(digests.responses)}
    suite = load_suite(
        Path(config.objectives[objective].suite), open_objective(objective), STEERING
    )
    prompts = {p.id: p for p in suite.prompts}
    kept = sorted((s for s in scored if s.slice == slice_), key=lambda s: (s.score or 0.0, s.id))
    return [
        {
            "id": s.id,
            "score": s.score,
            "status": s.status,
            "failed": s.failed,
            "label": s.label,
            "turns": list(zip(prompts[s.id].turns, answers[s.id].answers, strict=False))
            if s.id in prompts
            else [],
        }
        for s in kept[:EXAMPLES]
    ]
