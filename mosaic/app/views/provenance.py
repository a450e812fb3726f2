"""Why a row was trained on: its bucket, the plan, and the evidence that asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.weights import plan_shares
from mosaic.app.terminal import safe
from mosaic.app.views.report_data import load
from mosaic.core.errors import DamageError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.data import BucketReport
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.records import Curate, Observe
from mosaic.core.types.runs import Observation, Round, each_trial


class Share(FrozenModel):
    """Share of a round's tokens that a bucket was given: by the plan before, and by this one."""

    before: float
    after: float


class RoundReason(FrozenModel):
    """Why one round holds a row.

    `windows` counts the windows of turns that the row was cut into. `topup` is true if a last pass
    took the row to spend what was left of the budget; `focus` if the plan's focus preferred it.
    """

    round: int
    dataset: str
    bucket: str
    windows: int
    topup: bool
    focus: bool
    weight: float
    share: Share
    delivered: BucketReport | None
    plan_digest: str
    planner: str
    rationale: str
    evidence: list[SliceProfile]


class RowReasons(FrozenModel):
    """`why --json`: every round that holds a row."""

    row: str
    rounds: list[RoundReason]


@dataclass(frozen=True)
class _Windows:
    """The windows of one pool row in a training set, in order of the set."""

    dataset: str
    bucket: str
    count: int
    topup: bool
    focus: bool
    weight: float


def why_data(folder: Path, row: str, number: int | None = None) -> RowReasons:
    """Why a pool row was trained on: row -> bucket -> plan -> the evidence that asked for it.

    Raises UsageError if no round, or not the one named, holds the row.
    """
    journal, state = load(folder)
    store = Store(folder)
    found = []
    try:
        for round_ in each_trial(state.executed):
            if (
                round_.plan is None
                or round_.curation is None
                or (number is not None and round_.round != number)
            ):
                continue
            windows = _windows(store.path(_training_set(journal, round_)), row)
            if windows:
                observed = journal.steps(Observe, round_.round)[-1].result.observation
                seen = Observation.model_validate(store.get_json(observed))
                found.append(_reason(round_, round_.plan, windows, seen))
    finally:
        journal.close()
    if not found:
        where = f"in round {number}" if number is not None else "in any round"
        raise UsageError(f"{row}: no such row was trained on {where} of {folder}")
    return RowReasons(row=row, rounds=found)


def _windows(training_set: Path, row: str) -> _Windows | None:
    """The windows of a row in a training set, or None if it holds none."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(training_set.read_bytes())) as file:
        # Threads that still read ahead when the process ends abort it.
        table = file.read(use_threads=False)
    rows = table.filter(pc.equal(table["id"], row)).to_pylist()
    if not rows:
        return None
    first = rows[0]
    return _Windows(
        dataset=first["dataset"],
        bucket=first["bucket"],
        count=len(rows),
        topup=any(window["topup"] for window in rows),
        focus=bool(first.get("focus")),
        weight=first["weight"],
    )


def _training_set(journal: Journal, round_: Round) -> str:
    """Digest of the training set of a round.

    By content: a round whose mixture an earlier one had reads that one's training set.
    """
    for step in journal.steps(Curate):
        if step.result.report == round_.curation:
            return step.result.training_set
    raise DamageError(f"round {round_.round}: its training set is not in the journal")


def _reason(round_: Round, plan: ActionPlan, windows: _Windows, seen: Observation) -> RoundReason:
    bucket = (windows.dataset, windows.bucket)
    share = Share(
        before=plan_shares(seen.last_plan, seen.bucket_proportions).get(bucket, 0.0),
        after=plan_shares(plan, seen.bucket_proportions).get(bucket, 0.0),
    )
    delivered = None
    if round_.curation:
        delivered = round_.curation.datasets[windows.dataset].buckets[windows.bucket]
    return RoundReason(
        round=round_.round,
        dataset=windows.dataset,
        bucket=windows.bucket,
        windows=windows.count,
        topup=windows.topup,
        focus=windows.focus,
        weight=windows.weight,
        share=share,
        delivered=delivered,
        plan_digest=plan.content_digest,
        planner=round_.planner,
        rationale=plan.rationale,
        evidence=_evidence(seen, windows.dataset, windows.bucket),
    )


def _evidence(seen: Observation, dataset: str, bucket: str) -> list[SliceProfile]:
    """The slice of the bucket's name, of every objective that the data set serves."""
    found = []
    for objective in seen.objectives:
        slice_ = seen.profile.find(objective.name, bucket)
        if dataset in objective.datasets and slice_ is not None:
            found.append(slice_)
    return found


def why_text(reasons: RowReasons) -> str:
    """The same for a terminal."""
    lines = [f"row {reasons.row}"]
    for reason in reasons.rounds:
        lines += _lines(reason)
    return "\n".join(safe(line) for line in lines)


def _lines(reason: RoundReason) -> Sequence[str]:
    how = "the bucket's quota reached it"
    if reason.topup:
        how = "a last pass spent what was left (topup)"
    if reason.focus:
        how += ", preferred by the focus"
    before, after = 100 * reason.share.before, 100 * reason.share.after
    lines = [
        f"round {reason.round}",
        f"  bucket {reason.bucket} of {reason.dataset}: {how}",
        f"  plan {reason.plan_digest[:12]} of {reason.planner}: {before:.1f} % of the tokens "
        f"before, {after:.1f} % now",
    ]
    for s in reason.evidence:
        mean = "not scored" if s.score.mean is None else f"mean {s.score.mean:.2f}"
        rate = "" if s.failure_rate is None else f", {100 * s.failure_rate:.0f} % failed"
        evidence = f"{s.objective} {s.slice} {mean}{rate}, reliability {s.reliability}"
        lines.append(f"  evidence: {evidence}")
    lines.append(f"  rationale: {reason.rationale}")
    return lines
