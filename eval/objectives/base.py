"""The seam of an objective: what its stored atomic items mean.

One file each; pure, no judge is asked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from mosaic.core.types.evaluation import Scored

Line = Mapping[str, object]
"""A stored item as it was read: `id`, and what the objective's rules need.

Checked where it is read.
"""
Channels = Mapping[str, Mapping[str, int]]
"""channel -> item -> value"""
Constraints = Sequence[Mapping[str, object]]
"""Constraints to verify: `id` of the checker, and its `params`."""


class Objective(Protocol):
    """L3 -> L2 -> L1 of one objective, and its slices.

    `evidence` says what is measured: answers to prompts, or the likelihood of held-out texts.
    """

    name: str
    evidence: Literal["answers", "likelihood"]

    def score(self, line: Line) -> Scored:
        """Label and score of one stored item (`mosaic score`).

        A missing or malformed item is `unscored`, never 0.
        """
        ...

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints
    ) -> tuple[str, int, int]:
        """(slice, weight, valid) of a prompt or pool row, from its prompt-side items alone.

        May raise Malformed.
        """
        ...

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        """Counts of label values over scored items, by dimension."""
        ...


class Malformed(ValueError):
    """An L3 item that is missing, of the wrong type or out of range; the text says which."""


def channel(items: object, name: str, ranges: Mapping[str, int]) -> dict[str, int]:
    """The items of one channel, each an integer from 0 to its given maximum.

    Raises Malformed otherwise.

    >>> channel({"help": {"actionable_help": 1}}, "help", {"actionable_help": 1})
    {'actionable_help': 1}
    """
    group = items.get(name) if isinstance(items, Mapping) else None
    if not isinstance(group, Mapping):
        raise Malformed(f"items.{name} is missing")
    for unknown in group:
        if unknown not in ranges:
            raise Malformed(f"items.{name}.{unknown} is not an item of this channel")
    values = {}
    for item, most in ranges.items():
        value = group.get(item)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise Malformed(f"items.{name}.{item} is {value!r}, not an integer from 0 to {most}")
        values[item] = value
    return values


def unscored(line: Line, reason: str) -> Scored:
    """The result for an item that cannot be scored."""
    return Scored(id=str(line.get("id", "")), status="unscored", reason=reason)


def count_labels(scored: Sequence[Scored], dimensions: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts of label values by dimension; a label that is a list counts each element."""
    breakdown: dict[str, dict[str, int]] = {}
    for dimension in dimensions:
        counts: Counter[str] = Counter()
        for item in scored:
            value = item.label.get(dimension)
            if isinstance(value, list):
                counts.update(map(str, value))
            elif value is not None:
                counts[str(value)] += 1
        breakdown[dimension] = dict(sorted(counts.items()))
    return breakdown


def need(score: float, weight: int, valid: int) -> float:
    """How much training a prompt calls for: valid x (6 - score) x weight (MOSAIC, score/need.py).

    >>> need(score=2, weight=3, valid=1)
    12
    """
    return valid * (6 - score) * weight
