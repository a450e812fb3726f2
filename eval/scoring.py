"""Responses to judgments to scores: the pure middle of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from eval.judges.base import Judge
from eval.objectives.base import Objective
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored


class _Suite(Protocol):
    @property
    def objective(self) -> str: ...
    @property
    def prompts(self) -> list[Prompt]: ...


def judge_and_score(
    objective: Objective, suite: _Suite, responses: Sequence[Response], judge: Judge
) -> tuple[list[Judgment], list[Scored]]:
    """Judge every response and score every judgment; slice, weight and validity are the prompt's, fixed in the suite.

    A judgment that is not `ok` becomes an `unscored` item with its reason. A slice that the rules derive differently
    is a defect and raises ValueError.
    """
    judgments = judge.judge(suite.objective, suite.prompts, responses)
    scored = []
    for prompt, judgment in zip(suite.prompts, judgments, strict=True):
        fixed: dict[str, Any] = {
            "slice": prompt.slice,
            "weight": prompt.weight,
            "valid": prompt.valid,
        }
        if judgment.status != "ok":
            reason = judgment.reason or judgment.status
            scored.append(Scored(id=prompt.id, status="unscored", reason=reason, **fixed))
            continue
        one = objective.score({"id": prompt.id, **judgment.items})
        if one.status == "ok" and one.slice != prompt.slice:
            raise ValueError(
                f"prompt {prompt.id}: the rules give {one.slice}, the suite says {prompt.slice}"
            )
        scored.append(one if one.status == "ok" else one.model_copy(update=fixed))
    return judgments, scored
