"""Conditions as they stand in a file: read, with every name and number checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.objectives.base import Channel
from eval.objectives.rubrics.conditions import (
    TURNS,
    AllOf,
    AnyOf,
    Condition,
    NoneOf,
    Within,
)
from eval.objectives.rubrics.model import ranges_of
from eval.objectives.rubrics.nodes import Place, Value, there_are

WHAT = "a condition: an item such as help.clear, or a mapping with some of any, all, none, item, count, turns"
KEYS = ("any", "all", "none", "item", "count", "turns", "min", "max")
GROUPS: Mapping[str, type[AllOf] | type[AnyOf] | type[NoneOf]] = {
    "all": AllOf,
    "any": AnyOf,
    "none": NoneOf,
}
COMPARISON = re.compile(r"(?P<path>\S+)\s*(?P<sign>>=|<=|==)\s*(?P<number>[0-9]{1,3})")
MAX_PARTS = 256
MAX_CONDITIONS = 1024
MAX_TURNS = 1000


@dataclass
class Known:
    """What the conditions of one list may name.

    `hidden` are items that exist but may not stand here. `used` collects what conditions name.
    """

    channels: tuple[Channel, ...]
    hidden: Mapping[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    count: int = 0

    @property
    def ranges(self) -> dict[str, int]:
        return ranges_of(*self.channels)

    def paths(self, value: Value, name: str) -> list[str]:
        """The paths of an item, or of all items of a channel."""
        for channel in self.channels:
            if channel.name == name:
                return list(ranges_of(channel))
        return [self.path(value, name)]

    def path(self, value: Value, name: str) -> str:
        """The path itself, if there is such an item."""
        if name in self.ranges:
            return name
        if name in self.hidden or name in {path.partition(".")[0] for path in self.hidden}:
            raise value.error(
                f"{name!r} is about the answers; here the request and the number of turns decide"
            )
        if name in {channel.name for channel in self.channels}:
            raise value.error(
                f"{name!r} is a channel; name one of its items, or write {{count: {name}, min: 1}}"
            )
        raise value.error(f"{name!r} is not an item; {there_are(name, self.ranges)}")


def condition_of(value: Value, known: Known) -> Condition:
    """The condition that a value describes. Everything that a mapping gives must hold."""
    known.count += 1
    if known.count > MAX_CONDITIONS:
        raise value.error(f"more than {MAX_CONDITIONS:,} conditions in one file")
    if value.is_text:
        return _of_text(value, known)
    if value.is_list:
        raise value.error("a list is not a condition; write {all: [...]} or {any: [...]}")
    fields = value.fields(WHAT, (), KEYS)
    parts: list[Condition] = []
    for word, group in GROUPS.items():
        if word in fields:
            elements = fields[word].elements("conditions", MAX_PARTS)
            inner = tuple(condition_of(element, known) for element in elements)
            single = len(inner) == 1 and group is not NoneOf
            parts.append(inner[0] if single else group(inner))
    if "turns" in fields:
        parts.append(_turns(fields["turns"]))
    if "item" in fields or "count" in fields:
        parts.append(_sum(value, fields, known))
    elif "min" in fields or "max" in fields:
        raise value.error("min and max belong to an item, a count or turns: {count: help, min: 2}")
    return parts[0] if len(parts) == 1 else AllOf(tuple(parts))


def _of_text(value: Value, known: Known) -> Condition:
    """`channel.item`, or `channel.item >= 2`."""
    written = value.text(WHAT).strip()
    compared = COMPARISON.fullmatch(written)
    if compared is None:
        path = known.path(value, written)
        return _within(value.place, [path], 1, None, known)
    path = known.path(value, compared["path"])
    number, sign, most = int(compared["number"]), compared["sign"], known.ranges[compared["path"]]
    if number > most:
        raise value.error(f"{path} has values from 0 to {most}, not {number}")
    low = 0 if sign == "<=" else number
    return _within(value.place, [path], low, None if sign == ">=" else number, known)


def _sum(value: Value, fields: Mapping[str, Value], known: Known) -> Condition:
    """`item` or `count`, with `min` and `max`; without either, at least 1."""
    if "item" in fields and "count" in fields:
        raise value.error("item and count stand together; put each into a condition of its own")
    paths: list[str] = []
    if "item" in fields:
        item = fields["item"]
        paths.append(known.path(item, item.text("an item such as help.clear")))
    else:
        count = fields["count"]
        named = count.elements("items and channels", MAX_PARTS) if count.is_list else [count]
        for name in named:
            for path in known.paths(name, name.text("a channel or an item")):
                if path in paths:
                    raise name.error(f"{path} is counted twice")
                paths.append(path)
    most = sum(known.ranges[path] for path in paths)
    low = 0 if "max" in fields else 1
    high = None
    if "min" in fields:
        low = fields["min"].integer(0, most)
    if "max" in fields:
        high = fields["max"].integer(0, most)
    return _within(value.place, paths, low, high, known)


def _within(place: Place, paths: list[str], low: int, high: int | None, known: Known) -> Condition:
    """The condition in its one form. Raises UsageError if it always or never holds."""
    most = sum(known.ranges[path] for path in paths)
    if high is not None and high < low:
        raise place.error(f"min {low} is above max {high}, so that this never holds")
    if low == 0 and high in (None, most):
        raise place.error(f"values go from 0 to {most}, so that this always holds")
    known.used.update(paths)
    return Within(tuple(sorted(paths)), low, None if high == most else high)


def _turns(value: Value) -> Condition:
    fields = value.fields("a mapping with min, max or both", (), ("min", "max"))
    low, high = 1, None
    if "min" in fields:
        low = fields["min"].integer(1, MAX_TURNS)
    if "max" in fields:
        high = fields["max"].integer(1, MAX_TURNS)
    if high is not None and high < low:
        raise value.error(f"min {low} is above max {high}, so that this never holds")
    if low == 1 and high is None:
        raise value.error("every conversation has at least 1 turn, so that this always holds")
    return Within((TURNS,), low, high)
