"""Levels that a reward model gave as scores, and how far they agree with a judge's. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

from eval.agreement import kappa
from eval.objectives.base import need
from mosaic.core.types.evaluation import Judgment, LevelAgreement, Prompt, Scored

# As the objectives have it: a score below is a failure.
FAILED_BELOW = 3


def level_scores(prompts: Sequence[Prompt], judgments: Sequence[Judgment]) -> list[Scored]:
    """The level of each judgment as its score. Slice, weight and validity are the prompt's.

    A judgment that is not `ok` becomes an unscored item with its reason.
    """
    scored = []
    for prompt, judgment in zip(prompts, judgments, strict=True):
        item = Scored(
            id=prompt.id,
            status="unscored",
            reason=judgment.reason or judgment.status,
            slice=prompt.slice,
            weight=prompt.weight,
            valid=prompt.valid,
            group=prompt.group,
        )
        if judgment.status == "ok":
            level = int(judgment.items["level"])
            found = {
                "status": "ok",
                "reason": None,
                "label": {"level": level},
                "score": float(level),
                "need": need(level, prompt.weight, prompt.valid),
                "failed": level < FAILED_BELOW,
            }
            item = item.model_copy(update=found)
        scored.append(item)
    return scored


def drawn_sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """So many prompts, or all, in their order; the same for the same seed."""
    chosen = random.Random(seed).sample(range(len(prompts)), min(count, len(prompts)))
    return [prompts[number] for number in sorted(chosen)]


def agreement(objective: str, model: Sequence[Scored], judge: Sequence[Scored]) -> LevelAgreement:
    """Compare scores of the same answers.

    >>> levels = [Scored(id=str(n), status="ok", score=n) for n in (1, 2, 5)]
    >>> scores = [Scored(id=str(n), status="ok", score=s) for n, s in ((1, 1), (2, 3), (5, 1))]
    >>> found = agreement("safety", levels, scores)
    >>> round(found.equal, 2), round(found.near, 2), found.difference
    (0.33, 0.67, 1.0)
    """
    pairs = []
    for one, other in zip(model, judge, strict=True):
        if one.id != other.id:
            raise ValueError(f"the scores of {one.id} and {other.id} are not of one answer")
        if one.score is not None and other.score is not None:
            pairs.append((one.score, other.score))
    count = max(1, len(pairs))
    return LevelAgreement(
        objective=objective,
        n=len(pairs),
        equal=sum(a == b for a, b in pairs) / count,
        near=sum(abs(a - b) <= 1 for a, b in pairs) / count,
        difference=sum(a - b for a, b in pairs) / count,
        kappa=kappa([a for a, _ in pairs], [b for _, b in pairs]),
        unread=len(model) - len(pairs),
    )
