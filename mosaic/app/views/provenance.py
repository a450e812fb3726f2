"""Why a row was trained on: its bucket, the plan, and the evidence that asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.weights import plan_shares
from mosaic.app.terminal import safe
from mosaic.app.views.report_data import load
from mosaic.core.errors import DamageError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.records import Curate, Observe
from mosaic.core.types.runs import Observation, Round


def why_data(folder: Path, row: str, number: int | None = None) -> dict[str, Any]:
    """Why a pool row was trained on: row -> bucket -> plan -> the evidence that asked for it.

    Each round that holds the row is one entry; UsageError where none does.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    journal, state = load(folder)
    store = Store(folder)
    entries = []
    try:
        for round_ in state.executed:
            if round_.plan is None or (number is not None and round_.round != number):
                continue
            training_set = _training_set(journal, round_)
            with pq.ParquetFile(pa.BufferReader(store.path(training_set).read_bytes())) as file:
                # Threads that still read ahead when the process ends abort it.
                table = file.read(use_threads=False)
            rows = table.filter(pc.equal(table["id"], row)).to_pylist()
            if rows:
                observed = journal.steps(Observe, round_.round)[-1].result.observation
                seen = Observation.model_validate(store.get_json(observed))
                entries.append(_why(round_, rows, seen))
    finally:
        journal.close()
    if not entries:
        where = f"in round {number}" if number is not None else "in any round"
        raise UsageError(f"{row}: no such row was trained on {where} of {folder}")
    return {"row": row, "rounds": entries}


def _training_set(journal: Journal, round_: Round) -> str:
    """Digest of the training set of a round.

    By content: a round whose mixture an earlier one had reads that one's training set.
    """
    for step in journal.steps(Curate):
        if step.result.report == round_.curation:
            return step.result.training_set
    raise DamageError(f"round {round_.round}: its training set is not in the journal")


def _why(round_: Round, rows: list[dict[str, Any]], seen: Observation) -> dict[str, Any]:
    plan = round_.plan
    assert plan is not None
    dataset, bucket = rows[0]["dataset"], rows[0]["bucket"]
    before, after = (
        plan_shares(p, seen.bucket_proportions).get((dataset, bucket), 0.0)
        for p in (seen.last_plan, plan)
    )
    report = round_.curation.datasets[dataset].buckets[bucket] if round_.curation else None
    evidence = [
        s.json_data()
        for o in seen.objectives
        if dataset in o.datasets and (s := seen.profile.find(o.name, bucket)) is not None
    ]
    return {
        "round": round_.round,
        "dataset": dataset,
        "bucket": bucket,
        "windows": len(rows),
        "topup": any(r["topup"] for r in rows),
        "focus": bool(rows[0].get("focus")),
        "weight": rows[0]["weight"],
        "share": {"before": before, "after": after},
        "delivered": report.json_data() if report else None,
        "plan_digest": plan.content_digest,
        "planner": round_.planner,
        "rationale": plan.rationale,
        "evidence": evidence,
    }


def why_text(data: dict[str, Any]) -> str:
    lines = [f"row {data['row']}"]
    for entry in data["rounds"]:
        how = (
            "a last pass spent what was left (topup)"
            if entry["topup"]
            else "the bucket's quota reached it"
        )
        share = entry["share"]
        lines += [
            f"round {entry['round']}",
            f"  bucket {entry['bucket']} of {entry['dataset']}: {how}"
            + (", preferred by the focus" if entry["focus"] else ""),
            f"  plan {entry['plan_digest'][:12]} of {entry['planner']}: {100 * share['before']:.1f} % of the tokens before, "
            f"{100 * share['after']:.1f} % now",
        ]
        for s in entry["evidence"]:
            mean = "not scored" if s["score"]["mean"] is None else f"mean {s['score']['mean']:.2f}"
            rate = "" if s["failure_rate"] is None else f", {100 * s['failure_rate']:.0f} % failed"
            lines.append(
                f"  evidence: {s['objective']} {s['slice']} {mean}{rate}, reliability {s['reliability']}"
            )
        lines.append(f"  rationale: {entry['rationale']}")
    return "\n".join(safe(line) for line in lines)
