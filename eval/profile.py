"""The failure profile: every slice with its mean, failure rate, reliability and change, worst first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.objectives.base import Objective
from eval.statistics import discoveries, paired_change, summarise
from mosaic.core.types.evaluation import FailureProfile, Reliability, Scored, SliceProfile

SEED = 20260102
MEDIUM, HIGH = 10, 30
COVERAGE = 0.8


def reliability(scored: int, total: int) -> Reliability:
    """`unknown` under 80 % scored, `low` under 10 scored prompts, `medium` under 30, else `high`."""
    if total == 0 or scored < COVERAGE * total:
        return "unknown"
    return "low" if scored < MEDIUM else "medium" if scored < HIGH else "high"


def build_profile(
    round_: int,
    scored: Mapping[str, Sequence[Scored]],
    objectives: Mapping[str, Objective],
    previous: Mapping[str, Sequence[Scored]] | None,
) -> FailureProfile:
    """Slices of all objectives from one model's steering items; `previous` are another model's, for the change.

    Items carry the slice of their prompt even where they are unscored (`eval.scoring` sees to it).
    """
    slices = []
    for name, items in scored.items():
        for slice_ in sorted({s.slice for s in items if s.slice is not None}):
            inside = [s for s in items if s.slice == slice_]
            slices.append(
                _slice(name, slice_, inside, objectives[name], (previous or {}).get(name))
            )
    believed = discoveries([s.p_value for s in slices])
    slices = [
        s.model_copy(update={"significant": b}) for s, b in zip(slices, believed, strict=True)
    ]
    slices.sort(key=lambda s: (6.0 if s.score.mean is None else s.score.mean, s.objective, s.slice))
    return FailureProfile(round=round_, slices=slices)


def _slice(
    objective: str,
    slice_: str,
    items: Sequence[Scored],
    rules: Objective,
    previous: Sequence[Scored] | None,
) -> SliceProfile:
    score = summarise(items, SEED)
    ok = [s for s in items if s.status == "ok" and s.valid]
    change = paired_change(previous, items, SEED) if previous is not None else None
    return SliceProfile(
        objective=objective,
        slice=slice_,
        score=score,
        failure_rate=sum(bool(s.failed) for s in ok) / len(ok) if ok else None,
        reliability=reliability(len(ok), sum(s.valid for s in items)),
        breakdown=rules.breakdown(ok),
        change=change[0] if change else None,
        p_value=change[1] if change else None,
    )
