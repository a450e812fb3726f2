"""A rubric as it was read: channels, words for the judge, slices and levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from eval.objectives.base import Channel, Side
from eval.objectives.rubrics.conditions import Condition, plain
from eval.objectives.rubrics.nodes import Place
from mosaic.core.types.base import JsonObject


@dataclass(frozen=True)
class Slice:
    """Prompts that are counted together. Invalid ones are scored and left out of means."""

    name: str
    weight: int
    valid: bool
    when: Condition
    place: Place = field(compare=False)

    @property
    def outcome(self) -> tuple[str, int, bool]:
        return self.name, self.weight, self.valid

    @property
    def gives(self) -> str:
        return f"slice {self.name}, weight {self.weight}" + ("" if self.valid else ", invalid")


@dataclass(frozen=True)
class Level:
    """What the score of an answer is if the condition holds, and whether it counts as failed."""

    label: str
    score: int
    failed: bool
    when: Condition
    place: Place = field(compare=False)

    @property
    def outcome(self) -> tuple[int, bool]:
        return self.score, self.failed

    @property
    def gives(self) -> str:
        return f"score {self.score}, {'failed' if self.failed else 'not failed'}"


@dataclass(frozen=True)
class Rubric:
    """Channels and items are in the order of their names; slices and levels in that of the file.

    `asks` are the words for each item, by its path. `hints` close what a judge is told of a side.
    `invalid` is a condition on requests that are left out of means, whatever their slice. `notes`
    are warnings.
    """

    about: str
    request: tuple[Channel, ...]
    answers: tuple[Channel, ...]
    asks: Mapping[str, str]
    hints: Mapping[Side, str]
    slices: tuple[Slice, ...]
    invalid: Condition | None
    levels: tuple[Level, ...]
    exclusive: bool
    notes: tuple[str, ...] = ()

    @property
    def meaning(self) -> JsonObject:
        """What scores depend on beside items and words, as plain data."""
        slices: list[JsonValue] = []
        for one in self.slices:
            slices.append([one.name, one.weight, one.valid, plain(one.when)])
        levels: list[JsonValue] = []
        for level in self.levels:
            levels.append([level.label, level.score, level.failed, plain(level.when)])
        invalid = None if self.invalid is None else plain(self.invalid)
        return {"slices": slices, "invalid": invalid, "levels": levels}


def ranges_of(*channels: Channel) -> dict[str, int]:
    """Path of each item -> its greatest value.

    >>> from eval.objectives.base import channel_of
    >>> ranges_of(channel_of("help", {"clear": 1, "kind": 2}))
    {'help.clear': 1, 'help.kind': 2}
    """
    ranges: dict[str, int] = {}
    for channel in channels:
        for item in channel.items:
            ranges[f"{channel.name}.{item.name}"] = item.most
    return ranges
