"""Conditions over items and turns: data, and one evaluation that scoring and checking share.

An item is named by its path, `channel.item`; the number of user turns by the path `turns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mosaic.core.types.base import JsonObject

TURNS = "turns"

Truth = bool | np.ndarray
Values = Mapping[str, int] | Mapping[str, np.ndarray]
"""Path -> value: one number, or an array of numbers that broadcasts with the others."""


@dataclass(frozen=True)
class Within:
    """The sum of some values is at least `low`, and at most `high` if there is a `high`."""

    paths: tuple[str, ...]
    low: int
    high: int | None


@dataclass(frozen=True)
class AllOf:
    """Every part holds; without parts it always does."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class NoneOf:
    """No part holds."""

    parts: tuple[Condition, ...]


Condition = Within | AllOf | AnyOf | NoneOf

OTHERWISE = AllOf(())
"""What the last entry of a list may have for a condition: whatever is left."""


def holds(condition: Condition, values: Values) -> Truth:
    """Whether a condition holds: one truth, or an array of them if the values are arrays.

    >>> leak, refusal = Within(("leaks.step",), 1, None), Within(("help.refusal",), 1, None)
    >>> holds(AllOf((leak, NoneOf((refusal,)))), {"leaks.step": 1, "help.refusal": 0})
    True
    >>> votes = Within(("cues.votes",), 1, 1)
    >>> holds(votes, {"cues.votes": np.array([0, 1, 2])})
    array([False,  True, False])
    """
    if isinstance(condition, Within):
        return _within(condition, values)
    if isinstance(condition, AllOf):
        truth: Truth = True
        for part in condition.parts:
            truth = truth & holds(part, values)
        return truth
    truth = False
    for part in condition.parts:
        truth = truth | holds(part, values)
    return truth if isinstance(condition, AnyOf) else truth ^ True


def _within(condition: Within, values: Values) -> Truth:
    total = values[condition.paths[0]]
    for path in condition.paths[1:]:
        total = total + values[path]
    enough: Truth = total >= condition.low
    if condition.high is None:
        return enough
    return enough & (total <= condition.high)


def sums(condition: Condition) -> Iterator[Within]:
    """The conditions on sums that a condition is made of."""
    if isinstance(condition, Within):
        yield condition
        return
    for part in condition.parts:
        yield from sums(part)


def plain(condition: Condition) -> JsonObject:
    """A condition as plain data, for digests."""
    if isinstance(condition, Within):
        return {"sum": list(condition.paths), "min": condition.low, "max": condition.high}
    word = {AllOf: "all", AnyOf: "any", NoneOf: "none"}[type(condition)]
    return {word: [plain(part) for part in condition.parts]}
