"""What a judge makes of answers with known verdicts: how many, by item, and every miss.

A good answer must score 5. A bad one must score less where code judges; where a model does, it must
count as failed (`eval.references`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.judges.base import Judge
from eval.objectives.base import Objective
from eval.references import Reference, references
from eval.scoring import judge_and_score
from eval.suite import Suite
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Judgment, Scored

MAX_LISTED = 20
EXCERPT = 90


@dataclass(frozen=True)
class Known:
    """One known answer, judged."""

    reference: Reference
    judgment: Judgment
    scored: Scored
    right: bool

    @property
    def items(self) -> dict[str, int]:
        """The items of the answer: `channel.item` or the id of a constraint -> its value."""
        stored = self.judgment.items
        values: dict[str, int] = {}
        for channel, items in stored.get("items", {}).items():
            if channel not in self.reference.prompt.prompt_items:
                values |= {f"{channel}.{item}": int(value) for item, value in items.items()}
        for name, passed in zip(
            stored.get("instruction_ids", []), stored.get("strict", []), strict=True
        ):
            values[name] = int(passed)
        return values

    def line(self, by_code: bool) -> str:
        """What came out, and what should have."""
        scored = self.scored
        result = f"score {scored.score:g}" if scored.score is not None else str(scored.reason)
        wanted = "not score 5"
        if self.reference.kind == "bad":
            wanted = "not a score below 5" if by_code else "which does not count as failed"
        name = f"prompt {self.reference.prompt.id}: its {self.reference.kind} reference answer"
        return f"{name} gives {result}, {wanted}"

    def example(self) -> str:
        """The beginning of the last answer, and the items that hold of it."""
        text = " ".join(self.reference.response.answers[-1].split())
        shown = text if len(text) <= EXCERPT else text[:EXCERPT] + "…"
        held = [name for name, value in self.items.items() if value]
        return f"{shown!r}; holds: {', '.join(held) or 'nothing'}"


@dataclass(frozen=True)
class ItemRow:
    """How often an item holds: (times, answers) of good answers, of bad ones, of those missed."""

    item: str
    good: tuple[int, int]
    bad: tuple[int, int]
    missed: tuple[int, int]


def judge_known(
    judge: Judge, objective: Objective, known: Sequence[Reference], by_code: bool
) -> list[Known]:
    """Every known answer with what the judge makes of it."""
    part = Suite(objective.name, "references", [r.prompt for r in known], "")
    responses = [r.response for r in known]
    judgments, scores = judge_and_score(objective, part, responses, judge)
    found = []
    for reference, judgment, scored in zip(known, judgments, scores, strict=True):
        right = reference.right(scored)
        if by_code and reference.kind == "bad":
            right = scored.score is not None and scored.score < 5
        found.append(Known(reference, judgment, scored, right))
    return found


def by_item(known: Sequence[Known]) -> list[ItemRow]:
    """The items of known answers in the order in which they first come."""
    names: dict[str, None] = {}
    for one in known:
        names |= dict.fromkeys(one.items)
    rows = []
    for name in names:
        good = [k for k in known if k.reference.kind == "good"]
        bad = [k for k in known if k.reference.kind == "bad"]
        missed = [k for k in known if not k.right]
        rows.append(ItemRow(name, _held(name, good), _held(name, bad), _held(name, missed)))
    return rows


def _held(item: str, known: Sequence[Known]) -> tuple[int, int]:
    """(times that an item holds, answers that have the item)."""
    values = [one.items[item] for one in known if item in one.items]
    return sum(value > 0 for value in values), len(values)


def missed_lines(known: Sequence[Known], by_code: bool, most: int | None = None) -> str:
    """The misses, a line each, with the answer; at most so many, the rest counted."""
    misses = [one for one in known if not one.right]
    lines = []
    for one in misses[:most]:
        lines.append(f"  {one.line(by_code)}\n    {one.example()}")
    if most is not None and len(misses) > most:
        lines.append(f"  ... and {len(misses) - most:,} more; `judge check` lists them all")
    return "\n".join(lines)


def check_references(suite: Suite, objective: Objective, judge: Judge) -> None:
    """Check the known answers of one suite by a judge that is code.

    UsageError naming all that come out wrong.
    """
    known = judge_known(judge, objective, references([suite]), by_code=True)
    missed = missed_lines(known, by_code=True)
    if missed:
        raise UsageError(
            f"suite {suite.objective} {suite.role}: known answers come out wrong:\n{missed}\n"
            "mend the rules or the references"
        )
