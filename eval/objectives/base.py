"""The seam of an objective: what its stored atomic items mean. One file each, pure, no judge is asked here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from mosaic.core.types.evaluation import Scored


class Objective(Protocol):
    """L3 -> L2 -> L1 of one objective, and its slices.

    `evidence` says what is measured: answers to prompts, or the likelihood of held-out texts.
    """

    name: str
    evidence: Literal["answers", "likelihood"]

    def score(self, line: Mapping[str, Any]) -> Scored:
        """Label and score of one stored item (`mosaic score`). A missing or malformed item is `unscored`, never 0."""
        ...

    def prompt_side(
        self,
        prompt_items: Mapping[str, Mapping[str, int]],
        turns: int,
        constraints: Sequence[Mapping[str, Any]],
    ) -> tuple[str, int, int]:
        """(slice, weight, valid) of a prompt or pool row, from its prompt-side items alone."""
        ...

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        """Counts of label values over scored items, by dimension."""
        ...


class Malformed(ValueError):
    """An L3 item that is missing, of the wrong type or out of range; the text says which."""


def channel(items: Any, name: str, ranges: Mapping[str, int]) -> dict[str, int]:
    """The items of one channel, each an integer from 0 to its given maximum. Raises Malformed otherwise."""
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


def unscored(line: Mapping[str, Any], reason: str) -> Scored:
    return Scored(id=str(line.get("id", "")), status="unscored", reason=reason)


def count_labels(scored: Sequence[Scored], dimensions: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts of label values by dimension; list labels count each element."""
    out: dict[str, dict[str, int]] = {}
    for dimension in dimensions:
        counts: Counter[str] = Counter()
        for one in scored:
            value = one.label.get(dimension)
            counts.update(
                [str(v) for v in value]
                if isinstance(value, list)
                else []
                if value is None
                else [str(value)]
            )
        out[dimension] = dict(sorted(counts.items()))
    return out


def need(score: float, weight: int, valid: int) -> float:
    """How much training a prompt calls for: valid x (6 - score) x weight (MOSAIC, score/need.py)."""
    return valid * (6 - score) * weight
