"""The known answers of every suite, judged: what `validate`, `judge check` and a run's start ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from eval.chat.client import REFUSES
from eval.judges.asking import UNANSWERED
from eval.judges.base import Judge, LlmJudgeConfig
from eval.known_answers import Known, by_item, judge_known, missed_lines
from eval.objectives.base import Objective, by_code
from eval.references import Reference, pick, references, require_both
from eval.starter import known_answers
from eval.suite import Suite
from mosaic.app.config import RunConfig
from mosaic.core.types.base import JsonObject

STARTER = "the starter set, since the suites have none of their own"


@dataclass(frozen=True)
class CheckedAnswers:
    """The known answers of one objective, judged. `model` is empty if code judged them."""

    objective: str
    model: str
    is_starter: bool
    known: list[Known]

    @property
    def by_code(self) -> bool:
        return not self.model

    @property
    def misses(self) -> list[Known]:
        return [one for one in self.known if not one.right]

    @property
    def result(self) -> str:
        """What a finding says if nothing was missed."""
        origin = f", from {STARTER}" if self.is_starter else ""
        if self.model:
            return f"{len(self.known)} known answers judged right by {self.model}{origin}"
        if not self.known:
            return "no reference answers to check"
        return f"{len(self.known):,} reference answers checked by code"

    @property
    def title(self) -> str:
        """How many came out right, of good ones and of bad ones."""
        counts = []
        for kind in ("good", "bad"):
            some = [one for one in self.known if one.reference.kind == kind]
            counts.append(f"{kind} {sum(one.right for one in some)} of {len(some)}")
        who = self.model or "code"
        origin = f" ({STARTER})" if self.is_starter else ""
        return f"{self.objective}: known answers judged right by {who}: {', '.join(counts)}{origin}"

    def item_rows(self) -> list[list[str]]:
        """A row per item: how often it holds of good answers, of bad ones, of those missed."""
        rows = []
        for row in by_item(self.known):
            counts = [row.good, row.bad, row.missed]
            rows.append([row.item, *(f"{held} of {of}" if of else "-" for held, of in counts)])
        return rows

    def problem(self, most: int | None) -> str | None:
        """What is wrong, with at most so many of the misses; None if nothing is."""
        misses = self.misses
        if not misses:
            return None
        asked, named = len(self.known), f"objective {self.objective}"
        if self.model:
            named = f"judge {self.model}, {named}"
        refused = [one.scored.reason for one in misses if _not_judged(one.scored.reason)]
        if refused:  # what was never judged says nothing about the references
            return (
                f"{named}: {len(refused)} of {asked} known answers were not judged; {refused[0]}; "
                "mend judge.chat or the server's settings"
            )
        advice = "mend the references, or choose another judge"
        if self.by_code:
            advice = "mend the rules or the references"
        lines = missed_lines(self.known, self.by_code, most)
        return f"{named}: {len(misses)} of {asked} known answers come out wrong:\n{lines}\n{advice}"

    def data(self) -> JsonObject:
        """Plain JSON data, for a report."""
        header = ("item", "good", "bad", "missed")
        rows: list[JsonValue] = []
        for row in self.item_rows():
            rows.append(dict(zip(header, row, strict=True)))
        missed: list[JsonValue] = []
        for one in self.misses:
            missed.append(f"{one.line(self.by_code)}; {one.example()}")
        return {
            "objective": self.objective,
            "judge": self.model or "code",
            "starter": self.is_starter,
            "known": len(self.known),
            "right": len(self.known) - len(self.misses),
            "items": rows,
            "missed": missed,
        }


def judge_all(
    config: RunConfig,
    judge: Judge,
    objectives: Mapping[str, Objective],
    suites: Mapping[str, Mapping[str, Suite]],
    afresh: Callable[[], Judge] | None,
) -> list[CheckedAnswers]:
    """The known answers of every objective, judged; code is given all of them, a model some.

    `afresh` makes a judge without a cache: a mended judge must not be held to what the cache
    remembers of it. UsageError for an objective that has no known answers for a model to judge.
    """
    checked = []
    for name, objective in objectives.items():
        roles = list(suites[name].values())
        if isinstance(config.judge, LlmJudgeConfig) and not by_code(objective):
            some, is_starter = _picked(config.judge, name, roles)
            known = judge_known(judge, objective, some, by_code=False)
            missed = [one.reference for one in known if not one.right]
            if missed and afresh:
                again = judge_known(afresh(), objective, missed, by_code=False)
                known = [one for one in known if one.right] + again
            model = config.judge.chat.model
            checked.append(CheckedAnswers(name, model, is_starter, known))
        else:
            known = judge_known(judge, objective, references(roles), by_code=True)
            checked.append(CheckedAnswers(name, "", False, known))
    return checked


def _picked(
    judge: LlmJudgeConfig, objective: str, roles: Sequence[Suite]
) -> tuple[list[Reference], bool]:
    """Up to `gold_checks` known answers of each suite, or of the starter set."""
    known, is_starter = known_answers(objective, roles)
    require_both(objective, known)
    if is_starter:
        return pick(known, judge.gold_checks, objective), True
    some: list[Reference] = []
    for suite in roles:
        some += pick(references([suite]), judge.gold_checks, suite.digest)
    return some, False


def _not_judged(reason: str | None) -> bool:
    """Whether the endpoint refused to judge an answer, which is not a verdict on it."""
    return reason is not None and (REFUSES in reason or UNANSWERED in reason)
