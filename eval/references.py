"""Answers whose verdict is known: the `good` and `bad` references of a suite, for checking a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.scoring import judge_and_score
from eval.suite import Suite
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response, Scored


@dataclass(frozen=True)
class Reference:
    """One known answer. A good one must score 5. A bad one must count as failed, which is more than a score below 5: a
    judge that sees no leak at all still gives an unhelpful answer less than 5."""

    prompt: Prompt
    kind: Literal["good", "bad"]

    @property
    def response(self) -> Response:
        answers = (self.prompt.good if self.kind == "good" else self.prompt.bad) or []
        return Response(
            id=self.prompt.id, answers=answers, finish_reasons=["stop"] * len(answers), n_tokens=0
        )

    def right(self, scored: Scored) -> bool:
        """Whether a judged score is the known one. What is unscored is not."""
        if scored.score is None:
            return False
        return scored.score == 5 if self.kind == "good" else bool(scored.failed)


def references(suites: Iterable[Suite]) -> list[Reference]:
    """All references of some suites, in order."""
    prompts = [p for suite in suites for p in suite.prompts]
    goods = [Reference(p, "good") for p in prompts if p.good]
    return goods + [Reference(p, "bad") for p in prompts if p.bad]


def require_both(objective: str, known: Sequence[Reference]) -> None:
    """UsageError where good ones, or bad ones, are lacking: a model's judgement cannot be checked then."""
    if {r.kind for r in known} != {"good", "bad"}:
        raise UsageError(
            f"objectives.{objective}.suite: a judge that is a model needs known answers; give some prompts `good` "
            "and some `bad` reference answers"
        )


def pick(known: Sequence[Reference], count: int, salt: str) -> list[Reference]:
    """At most `count` of them, good and bad by turns, chosen by a hash of `salt` and the id."""

    def order(reference: Reference) -> str:
        return hashlib.sha256(f"{salt}:{reference.prompt.id}".encode()).hexdigest()

    goods = sorted((r for r in known if r.kind == "good"), key=order)
    bads = sorted((r for r in known if r.kind == "bad"), key=order)
    mixed = [r for pair in zip(goods, bads, strict=False) for r in pair]
    paired = min(len(goods), len(bads))
    return (mixed + goods[paired:] + bads[paired:])[:count]


def wrong(
    judge: Judge, objective: Objective, known: Sequence[Reference]
) -> list[tuple[Reference, Scored]]:
    """The references that a judge gets wrong, with what it made of them."""
    part = Suite(objective.name, "references", [r.prompt for r in known], "")
    _, scored = judge_and_score(objective, part, [r.response for r in known], judge)
    return [(r, s) for r, s in zip(known, scored, strict=True) if not r.right(s)]
