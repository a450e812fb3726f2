"""What a model is told: an observation as numbers and names, violations as lines.

Text that other people wrote stands in envelopes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue

from agent.methods import shares_of
from agent.weights import bucket_weights
from mosaic.core.types.base import LABEL
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import Violation
from mosaic.core.types.runs import Observation, Round, each_trial
from prompts.envelope import capped, wrap
from prompts.load import Prompt, load
from tools.planning.schemas import label_values
from tools.planning.toolbox import delivered_told, stages_told

MAX_TEXT = 300
MAX_REVIEW = 4000
MAX_PROBLEMS = 20
MAX_VALUE, MAX_PATH = 200, 160
NAMES = (
    "planner",
    "planner_tools",
    "planner_direct",
    "planner_task",
    "planner_earlier",
    "planner_notes",
    "planner_feedback",
    "planner_repair",
)


# Read where a round wants several plans, and only there: prompts are part of what a call is known by.
SEVERAL = ("planner_several", "planner_another")


def load_prompts(several: bool = False) -> dict[str, Prompt]:
    """The prompt files of this planner; `several` for rounds that want more than one plan."""
    return {name: load(name) for name in (*NAMES, *(SEVERAL if several else ()))}


# -- the observation ------------------------------------------------------------------------------


def numbers(observation: Observation) -> object:
    """The observation without any text but the names of objectives, data sets, buckets and slices.

    Plain JSON, rounded to four decimals. The order of its keys is part of the prompt.
    """
    noise = observation.calibration.noise if observation.calibration else {}
    objectives = []
    for objective in observation.objectives:
        objectives.append({**objective.json_data(), "noise": noise.get(objective.name)})
    told: dict[str, Any] = {
        "round": observation.round,
        "rounds": observation.rounds,
        "tokens_per_round": observation.budget_per_round,
        "cost_per_round": observation.cost_per_round,
        "tokens_left": observation.budget_left,
        "objectives": objectives,
        "below_floor": observation.below_floor,
        "slices": [_slice(profile) for profile in observation.profile.slices],
        "last_plan": _last_plan(observation),
        "pool_tokens": _pool_tokens(observation),
        "limits": observation.limits.json_data(),
        "past_rounds": [],
    }
    for past in each_trial(observation.history):
        told["past_rounds"].append(_past_round(past, observation.names))
    if observation.candidates > 1:
        told["plans_wanted"] = observation.candidates
    if observation.methods:
        told["practice_prompts"] = observation.practice
        told["max_method_step"] = observation.limits.max_method_step
    labels = label_values(observation)
    if labels:
        told["labels"] = labels
    return _rounded(told)


def _slice(profile: SliceProfile) -> dict[str, object]:
    return {
        "objective": profile.objective,
        "slice": profile.slice,
        "mean": profile.score.mean,
        "low": profile.score.low,
        "high": profile.score.high,
        "scored": profile.score.n_scored,
        "failure_rate": profile.failure_rate,
        "reliability": profile.reliability,
        "change": profile.change,
        "significant": profile.significant,
    }


def _last_plan(observation: Observation) -> dict[str, object]:
    last, proportions = observation.last_plan, observation.bucket_proportions
    buckets = {dataset: bucket_weights(last, dataset, proportions) for dataset in proportions}
    told: dict[str, object] = {"ratios": last.ratios, "bucket_weights": buckets}
    if observation.methods:
        told["method_shares"] = shares_of(last, observation.methods)
        told["practice_weights"] = last.practice_weights
    return told


def _pool_tokens(observation: Observation) -> dict[str, object]:
    tokens: dict[str, object] = {}
    for dataset, per_bucket in observation.stock.items():
        tokens[dataset] = {bucket: stock.tokens for bucket, stock in per_bucket.items()}
    return tokens


def _past_round(past: Round, names: list[str]) -> dict[str, object]:
    point = past.point(names)
    told: dict[str, object] = {
        "round": past.round,
        "selection": dict(zip(names, point, strict=True)) if point else None,
        "delivered": delivered_told(past),
        "accepted": past.accepted,
        "dominated": past.dominated,
    }
    if past.trial.stages:
        told["stages"] = stages_told(past.trial.stages)
    return told


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


# -- what was wrong with a plan -------------------------------------------------------------------


def problem_lines(violations: Sequence[Violation]) -> list[str]:
    """Violations as lines with field paths. Values are shown as JSON, so a name stays a name."""
    lines = []
    for violation in violations[:MAX_PROBLEMS]:
        value, limit = _quoted(violation.value), _quoted(violation.limit)
        line = f"{violation.path[:MAX_PATH]}: {violation.rule}: {value} where {limit} is allowed"
        if violation.hint:
            line += f"; {violation.hint}"
        lines.append(line)
    return lines


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)[:MAX_VALUE]


def refusal_lines(violations: Sequence[Violation], mark: str) -> list[str]:
    """What was said about plans of this round that were turned down.

    A person's words stand whole, up to 4000 characters, under the numbers they are about; what the
    loop itself found wrong is one line each.
    """
    lines = []
    for violation in violations:
        if violation.rule == "rejected":
            refused = violation.value if isinstance(violation.value, dict) else {}
            plan = {name: refused.get(name) or {} for name in ("ratios", "bucket_weights")}
            lines.append("Refused: " + json.dumps(_rounded(labels_only(plan))))
            lines.append(enveloped(violation.hint or "", mark, "review", MAX_REVIEW))
        elif violation.rule == "comment":
            lines.append(enveloped(violation.hint, mark, "review", MAX_REVIEW))
        else:
            for line in problem_lines([violation]):
                lines.append(enveloped(line, mark, "review"))
    return lines


# -- other people's text --------------------------------------------------------------------------


def labels_only(value: JsonValue) -> JsonValue:
    """Numbers, and words that read as labels. Every other text is left out.

    Such a text may come from a judge or from an answer.
    """
    if isinstance(value, list):
        return [labels_only(item) for item in value if _is_plain(item)]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if isinstance(key, str) and LABEL.fullmatch(key) and _is_plain(item):
            kept[key] = labels_only(item)
    return kept


def _is_plain(value: JsonValue) -> bool:
    return not isinstance(value, str) or LABEL.fullmatch(value) is not None


def enveloped(text: str, mark: str, source: str, max_chars: int = MAX_TEXT) -> str:
    """Text that somebody else wrote, capped, in an envelope.

    A text that holds the mark gets another mark.
    """
    short = capped(text, max_chars)
    while mark in short:
        mark = hashlib.sha256(mark.encode()).hexdigest()[:16]
    return wrap(short, mark, source)
