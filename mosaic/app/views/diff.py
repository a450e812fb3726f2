"""Two rounds side by side: plan cells, selection scores, slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mosaic.app.views.report_data import load, pick_round
from mosaic.core.types.runs import Round


def diff_data(folder: Path, first: int, second: int) -> dict[str, Any]:
    """Two rounds side by side: plan cells, selection scores, slices; each `{"what", "first", "second", "change"}`."""
    journal, state = load(folder)
    journal.close()
    a, b = pick_round(state, first), pick_round(state, second)
    scores = [_pair(o, _mean(a, o), _mean(b, o)) for o in state.objectives]
    keys = [(s.objective, s.slice) for s in a.profile.slices]
    keys += [(s.objective, s.slice) for s in b.profile.slices if (s.objective, s.slice) not in keys]
    slices = [_pair(f"{o} {s}", _slice(a, o, s), _slice(b, o, s)) for o, s in sorted(keys)]
    return {
        "rounds": [first, second],
        "plan": _plan_pairs(a, b),
        "scores": scores,
        "slices": slices,
    }


def _pair(what: str, first: float | None, second: float | None) -> dict[str, Any]:
    change = None if first is None or second is None else round(second - first, 6)
    return {"what": what, "first": first, "second": second, "change": change}


def _mean(round_: Round, objective: str) -> float | None:
    return round_.scores[objective]["selection"].mean


def _slice(round_: Round, objective: str, name: str) -> float | None:
    found = round_.profile.find(objective, name)
    return found.score.mean if found else None


def _plan_pairs(a: Round, b: Round) -> list[dict[str, Any]]:
    names: list[str] = []
    values: list[dict[str, float]] = []
    for round_ in (a, b):
        plan = round_.plan
        found: dict[str, float] = {}
        if plan:
            found |= {f"ratios.{d}": w for d, w in plan.ratios.items()}
            found |= {
                f"bucket_weights.{d}.{k}": w
                for d, per in plan.bucket_weights.items()
                for k, w in per.items()
            }
        values.append(found)
        names += [n for n in found if n not in names]
    return [_pair(name, values[0].get(name), values[1].get(name)) for name in sorted(names)]
