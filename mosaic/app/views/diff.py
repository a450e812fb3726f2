"""Two rounds side by side: plan cells, selection scores, slices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mosaic.app.runs import config_of
from mosaic.app.views.report_data import load, pick_round
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Round


class Pair(FrozenModel):
    """One figure in two rounds. `change` is None unless both are known."""

    what: str
    first: float | None
    second: float | None
    change: float | None


class Difference(FrozenModel):
    """`diff --json`: plan weights, selection means and slice means of two rounds."""

    rounds: tuple[int, int]
    plan: list[Pair]
    scores: list[Pair]
    slices: list[Pair]


def diff_data(folder: Path, first: int, second: int) -> Difference:
    """Two rounds side by side. Raises UsageError for a round that is not recorded."""
    journal, state = load(folder)
    objectives = list(config_of(journal).objectives)
    journal.close()
    a, b = pick_round(state, first), pick_round(state, second)
    return Difference(
        rounds=(first, second),
        plan=_pairs(_weights(a.plan), _weights(b.plan)),
        scores=[_pair(o, _mean(a, o), _mean(b, o)) for o in objectives],
        slices=_pairs(_slice_means(a), _slice_means(b)),
    )


def _pairs(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> list[Pair]:
    """A pair for every name of either side, in order of names."""
    return [_pair(name, first.get(name), second.get(name)) for name in sorted({*first, *second})]


def _pair(what: str, first: float | None, second: float | None) -> Pair:
    change = None
    if first is not None and second is not None:
        change = round(second - first, 6)
    return Pair(what=what, first=first, second=second, change=change)


def _mean(round_: Round, objective: str) -> float | None:
    return round_.scores[objective]["selection"].mean


def _slice_means(round_: Round) -> dict[str, float | None]:
    """`objective slice` -> steering mean."""
    return {f"{s.objective} {s.slice}": s.score.mean for s in round_.profile.slices}


def _weights(plan: ActionPlan | None) -> dict[str, float | None]:
    """Every weight of a plan by its path."""
    found: dict[str, float | None] = {}
    if plan is None:
        return found
    for dataset, share in plan.ratios.items():
        found[f"ratios.{dataset}"] = share
    for dataset, weights in plan.bucket_weights.items():
        for bucket, weight in weights.items():
            found[f"bucket_weights.{dataset}.{bucket}"] = weight
    for method, share in plan.method_shares.items():
        found[f"method_shares.{method}"] = share
    for slice_, weight in plan.practice_weights.items():
        found[f"practice_weights.{slice_}"] = weight
    return found
