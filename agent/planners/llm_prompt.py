"""What a model is told: an observation as numbers and names, violations as lines, other people's text in envelopes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mosaic.core.types.base import LABEL
from mosaic.core.types.plans import Violation
from mosaic.core.types.runs import Observation
from prompts.envelope import capped, wrap
from prompts.load import Prompt, load
from tools.planning.schemas import label_values

MAX_TEXT = 300
MAX_REVIEW = 4000
MAX_PROBLEMS = 20
NAMES = (
    "planner",
    "planner_tools",
    "planner_direct",
    "planner_task",
    "planner_feedback",
    "planner_repair",
)


def prompts() -> dict[str, Prompt]:
    """The prompt files of this planner."""
    return {name: load(name) for name in NAMES}


def numbers(observation: Observation) -> dict[str, Any]:
    """The observation without any text but the names of objectives, data sets, buckets and slices."""
    names = [o.name for o in observation.objectives]
    noise = observation.calibration.noise if observation.calibration else {}

    def past(number: int) -> dict[str, Any]:
        round_ = observation.history[number]
        point = round_.point(names)
        return {
            "round": round_.round,
            "selection": dict(zip(names, point, strict=True)) if point else None,
            "accepted": round_.accepted,
            "dominated": round_.dominated,
        }

    said = {
        "round": observation.round,
        "rounds": observation.rounds,
        "tokens_per_round": observation.budget_per_round,
        "cost_per_round": observation.cost_per_round,
        "tokens_left": observation.budget_left,
        "objectives": [
            {**o.json_data(), "noise": noise.get(o.name)} for o in observation.objectives
        ],
        "below_floor": observation.below_floor,
        "slices": [
            {
                "objective": s.objective,
                "slice": s.slice,
                "mean": s.score.mean,
                "low": s.score.low,
                "high": s.score.high,
                "scored": s.score.n_scored,
                "failure_rate": s.failure_rate,
                "reliability": s.reliability,
                "change": s.change,
                "significant": s.significant,
            }
            for s in observation.profile.slices
        ],
        "last_plan": {
            "ratios": observation.last_plan.ratios,
            "bucket_weights": {
                d: observation.last_plan.bucket_weights.get(d) or per
                for d, per in observation.bucket_proportions.items()
            },
        },
        "pool_tokens": {
            d: {b: s.tokens for b, s in per.items()} for d, per in observation.stock.items()
        },
        "limits": observation.limits.json_data(),
        "past_rounds": [past(i) for i in range(len(observation.history))],
    }
    labels = label_values(observation)
    if labels:
        said["labels"] = labels
    return _rounded(said)


def problems_of(violations: list[Violation]) -> list[str]:
    """Violations as lines with field paths. Values are shown as JSON, so that a name stays a name."""
    lines = []
    for v in violations[:MAX_PROBLEMS]:
        value, limit = (
            json.dumps(x, ensure_ascii=True, default=str)[:200] for x in (v.value, v.limit)
        )
        lines.append(
            f"{v.path[:160]}: {v.rule}: {value} where {limit} is allowed"
            + (f"; {v.hint}" if v.hint else "")
        )
    return lines


def refusals(violations: list[Violation], mark: str) -> list[str]:
    """What was said about plans of this round that were turned down: a person's words whole, up to MAX_REVIEW
    characters, under the numbers they were said about; what the loop itself found wrong as lines."""
    lines = []
    for v in violations:
        if v.rule == "rejected":
            refused = v.value if isinstance(v.value, dict) else {}
            shown = _rounded(
                plain({name: refused.get(name) or {} for name in ("ratios", "bucket_weights")})
            )
            lines += [
                "Refused: " + json.dumps(shown),
                enveloped(v.hint or "", mark, "review", MAX_REVIEW),
            ]
        else:
            lines += [enveloped(line, mark, "review") for line in problems_of([v])]
    return lines


def plain(value: Any) -> Any:
    """Numbers, and words that read as labels; every other text is left out: it may come from a judge or an answer."""
    if isinstance(value, dict):
        return {
            k: plain(v)
            for k, v in value.items()
            if isinstance(k, str) and LABEL.fullmatch(k) and _kept(v)
        }
    if isinstance(value, list):
        return [plain(v) for v in value if _kept(v)]
    return value


def _kept(value: Any) -> bool:
    return not isinstance(value, str) or LABEL.fullmatch(value) is not None


def enveloped(text: str, mark: str, source: str, most: int = MAX_TEXT) -> str:
    """Text that somebody else wrote, capped, in an envelope; a text that holds the mark gets another."""
    short = capped(text, most)
    while mark in short:
        mark = hashlib.sha256(mark.encode()).hexdigest()[:16]
    return wrap(short, mark, source)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return value
