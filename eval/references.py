"""Answers with known verdicts, for checking a judge: the `good` and `bad` references of a suite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.scoring import judge_and_score
from eval.suite import Suite, reference_response
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response, Scored


@dataclass(frozen=True)
class Reference:
    """One known answer.

    A good one must score 5. A bad one must count as failed, which is more than a score below 5: a
    judge that sees no leak at all still gives an unhelpful answer less than 5.
    """

    prompt: Prompt
    kind: Literal["good", "bad"]

    @property
    def response(self) -> Response:
        answers = self.prompt.good if self.kind == "good" else self.prompt.bad
        return reference_response(self.prompt, answers or [])

    def right(self, scored: Scored) -> bool:
        """Whether a judged score is the known one. An unscored answer is not."""
        if scored.score is None:
            return False
        return scored.score == 5 if self.kind == "good" else bool(scored.failed)


def references(suites: Iterable[Suite]) -> list[Reference]:
    """All references of some suites: the good ones in order, then the bad ones."""
    goods, bads = [], []
    for suite in suites:
        for prompt in suite.prompts:
            if prompt.good:
                goods.append(Reference(prompt, "good"))
            if prompt.bad:
                bads.append(Reference(prompt, "bad"))
    return goods + bads


def require_both(objective: str, known: Sequence[Reference]) -> None:
    """UsageError unless there are good and bad ones: else a model's judgement cannot be checked."""
    if {r.kind for r in known} != {"good", "bad"}:
        raise UsageError(
            f"objectives.{objective}.suite: a judge that is a model needs known answers; "
            "give some prompts `good` and some `bad` reference answers"
        )


def pick(known: Sequence[Reference], count: int, salt: str) -> list[Reference]:
    """At most `count` of them, good and bad by turns, chosen by a hash of `salt` and the id."""

    def order(reference: Reference) -> str:
        return hashlib.sha256(f"{salt}:{reference.prompt.id}".encode()).hexdigest()

    goods = sorted((r for r in known if r.kind == "good"), key=order)
    bads = sorted((r for r in known if r.kind == "bad"), key=order)
    mixed: list[Reference] = []
    for pair in zip(goods, bads, strict=False):
        mixed += pair
    paired = min(len(goods), len(bads))
    return (mixed + goods[paired:] + bads[paired:])[:count]


def wrong(
    judge: Judge, objective: Objective, known: Sequence[Reference]
) -> list[tuple[Reference, Scored]]:
    """The references that a judge gets wrong, with what it made of them."""
    part = Suite(objective.name, "references", [r.prompt for r in known], "")
    _, scored = judge_and_score(objective, part, [r.response for r in known], judge)
    return [(r, s) for r, s in zip(known, scored, strict=True) if not r.right(s)]
