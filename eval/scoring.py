"""Responses to judgments to scores: the pure middle of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.slices import own_slice
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored


class _Suite(Protocol):
    @property
    def objective(self) -> str: ...
    @property
    def prompts(self) -> list[Prompt]: ...


def judge_and_score(
    objective: Objective, suite: _Suite, responses: Sequence[Response], judge: Judge
) -> tuple[list[Judgment], list[Scored]]:
    """Judge every response and score every judgment, in the order of the suite's prompts.

    See `score_judgments`.
    """
    judgments = judge.judge(objective, suite.prompts, responses)
    return judgments, score_judgments(objective, suite, judgments)


def score_judgments(
    objective: Objective, suite: _Suite, judgments: Sequence[Judgment]
) -> list[Scored]:
    """Score one judgment of each prompt of a suite, in the suite's order.

    Slice, weight, validity and group are the prompt's, fixed in the suite. A judgment that is not `ok`
    becomes an `unscored` item with its reason. A slice that the rules derive differently is a
    defect and raises ValueError.
    """
    scored = []
    for prompt, judgment in zip(suite.prompts, judgments, strict=True):
        if judgment.status != "ok":
            scored.append(_unscored(prompt, judgment.reason or judgment.status))
            continue
        item = objective.score({"id": prompt.id, **judgment.items})
        if prompt.group is not None:
            item = item.model_copy(update={"group": prompt.group})
        if own_slice(prompt):
            item = item.model_copy(update={"slice": prompt.slice})
        if item.status != "ok":
            item = item.model_copy(
                update={"slice": prompt.slice, "weight": prompt.weight, "valid": prompt.valid}
            )
        elif item.slice != prompt.slice:
            raise ValueError(
                f"prompt {prompt.id}: the rules give {item.slice}, the suite says {prompt.slice}"
            )
        scored.append(item)
    return scored


def _unscored(prompt: Prompt, reason: str) -> Scored:
    return Scored(
        id=prompt.id,
        status="unscored",
        reason=reason,
        slice=prompt.slice,
        weight=prompt.weight,
        valid=prompt.valid,
        group=prompt.group,
    )
