"""The failure profile: every slice with its mean, failure rate and change, worst first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from eval.objectives.base import Objective
from eval.statistics import NoiseEstimate, discoveries, paired_change, summarise
from mosaic.core.types.evaluation import (
    MIN_CLUSTERS,
    FailureProfile,
    Reliability,
    Scored,
    SliceProfile,
)

SEED = 20260102
HIGH = 30
COVERAGE = 0.8
# Above the scale: slices without a mean come last.
UNKNOWN_MEAN = 6.0


def reliability(scored: int, total: int, clusters: int | None = None) -> Reliability:
    """How far the mean of a slice can be relied on, from how many of its prompts were scored.

    `unknown` under 80 % scored; `low` under 15 clusters of scored prompts, `medium` under 30, else
    `high`. `clusters` is left out if every prompt is one of its own.

    >>> reliability(7, 10), reliability(14, 14), reliability(24, 30), reliability(30, 30)
    ('unknown', 'low', 'medium', 'high')
    >>> reliability(60, 60, clusters=12)
    'low'
    """
    if total == 0 or scored < COVERAGE * total:
        return "unknown"
    independent = scored if clusters is None else clusters
    if independent < MIN_CLUSTERS:
        return "low"
    return "medium" if independent < HIGH else "high"


def build_profile(
    round_: int,
    scored: Mapping[str, Sequence[Scored]],
    objectives: Mapping[str, Objective],
    previous: Mapping[str, Sequence[Scored]] | None,
    noise: Mapping[str, NoiseEstimate] | None = None,
) -> FailureProfile:
    """Slices of all objectives, from one model's steering items.

    `previous` are another model's items, for the change; `noise` is, by objective, what trainings
    add to the difference of a slice's means. Items carry the slice of their prompt even
    if they are unscored (`eval.scoring` sees to it).
    """
    slices: list[SliceProfile] = []
    for name, items in scored.items():
        earlier = (previous or {}).get(name)
        for slice_, inside in sorted(_by_slice(items).items()):
            luck = (noise or {}).get(name)
            slices.append(_slice(name, slice_, inside, objectives[name], earlier, luck))
    significant = discoveries([s.p_value for s in slices])
    believed = [
        one.model_copy(update={"significant": holds})
        for one, holds in zip(slices, significant, strict=True)
    ]
    return FailureProfile(round=round_, slices=sorted(believed, key=_worst_first))


def _worst_first(one: SliceProfile) -> tuple[float, str, str]:
    mean = UNKNOWN_MEAN if one.score.mean is None else one.score.mean
    return mean, one.objective, one.slice


def _by_slice(items: Sequence[Scored]) -> dict[str, list[Scored]]:
    slices: dict[str, list[Scored]] = {}
    for item in items:
        if item.slice is not None:
            slices.setdefault(item.slice, []).append(item)
    return slices


def _slice(
    objective: str,
    slice_: str,
    items: Sequence[Scored],
    rules: Objective,
    previous: Sequence[Scored] | None,
    noise: NoiseEstimate | None,
) -> SliceProfile:
    valid = [s for s in items if s.status == "ok" and s.valid]
    failures = sum(bool(s.failed) for s in valid)
    change = None
    if previous is not None:
        change = paired_change(previous, items, SEED, noise)
    score = summarise(items, SEED)
    weights = [s.weight for s in items if s.weight is not None]
    return SliceProfile(
        objective=objective,
        slice=slice_,
        score=score,
        failure_rate=failures / len(valid) if valid else None,
        reliability=reliability(len(valid), sum(s.valid for s in items), score.clusters),
        breakdown=rules.breakdown(valid),
        change=change[0] if change else None,
        p_value=change[1] if change else None,
        weight=fmean(weights) if weights else 1.0,
    )
