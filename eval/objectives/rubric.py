"""An objective that is a YAML file: items, slices and levels as data.

    objective = open_rubric("tone", Path("rubrics/tone.yaml"))
    objective.score({"id": "a", "turns": 1, "items": {...}}).score

How to write one is in `docs/rubrics.md`. The file is checked when it is opened: every combination
of its items then has exactly one slice and one level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from eval.objectives.base import (
    Channel,
    Channels,
    Constraints,
    Line,
    Malformed,
    Side,
    Unchecked,
    channel,
    count_labels,
    need,
    unscored,
)
from eval.objectives.rubrics.conditions import TURNS, holds
from eval.objectives.rubrics.model import Level, Rubric, Slice
from eval.objectives.rubrics.parse import read_rubric
from eval.objectives.rubrics.words import words_of
from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

VERSION = 1
# The end of a name by which questions about the request are told from those about answers.
REQUEST = "_request"


class RubricObjective:
    """Scores judged items by the levels of a rubric. `notes` are warnings about its file."""

    evidence: Literal["answers", "likelihood"] = "answers"
    fields: Mapping[str, object] = {TURNS: Annotated[int, Field(ge=1)]}

    def __init__(self, name: str, rubric: Rubric) -> None:
        self.name = name
        self.rubric = rubric

    @property
    def notes(self) -> list[str]:
        return list(self.rubric.notes)

    @property
    def answers(self) -> tuple[Channel, ...]:
        return self.rubric.answers

    @property
    def request(self) -> tuple[Channel, ...]:
        return self.rubric.request

    @property
    def rules(self) -> str:
        """The digest of what the rubric means: not of comments, spaces or the order of keys."""
        channels = []
        for one in (*self.answers, *self.request):
            channels.append([one.name, one.ranges, one.turns])
        words = [self.words("answers").digest, self.words("request").digest]
        return digest_of([self.name, "rubric", VERSION, channels, words, self.rubric.meaning])

    def words(self, side: Side) -> PromptFile:
        return words_of(self.rubric, self.name, side)

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        return {"items": {**prompt.prompt_items, **items}, TURNS: len(prompt.turns)}

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        raise Unchecked(f"{self.name} is judged, not checked by code")

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints = ()
    ) -> tuple[str, int, int]:
        """The first slice that holds. Items of answers are not looked at."""
        values = {**_values(prompt_items, self.request), TURNS: _turns(turns)}
        self._check_channels(prompt_items)
        slice_, valid = self._slice(values)
        return slice_.name, slice_.weight, int(valid)

    def score(self, line: Line) -> Scored:
        try:
            stored = line.get("items")
            items = stored if isinstance(stored, Mapping) else {}
            turns = _turns(line.get(TURNS))
            values = {**_values(items, (*self.answers, *self.request)), TURNS: turns}
            self._check_channels(items)
        except Malformed as error:
            return unscored(line, str(error))
        slice_, valid = self._slice(values)
        level = self._level(values)
        return Scored(
            id=str(line["id"]),
            status="ok",
            valid=1 if valid else 0,
            slice=slice_.name,
            weight=slice_.weight,
            label={"level": level.label, **self._sums(values)},
            score=level.score,
            need=need(level.score, slice_.weight, int(valid)),
            failed=level.failed,
        )

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        channels = [one.name for one in (*self.answers, *self.request)]
        return count_labels(scored, ("level", *channels))

    def _slice(self, values: Mapping[str, int]) -> tuple[Slice, bool]:
        """The first slice that holds, and whether the request is valid."""
        invalid = self.rubric.invalid
        for slice_ in self.rubric.slices:
            if holds(slice_.when, values):
                return slice_, slice_.valid and not (invalid and holds(invalid, values))
        raise AssertionError(f"no slice for {values}: the file was not checked")

    def _level(self, values: Mapping[str, int]) -> Level:
        for level in self.rubric.levels:
            if holds(level.when, values):
                return level
        raise AssertionError(f"no level for {values}: the file was not checked")

    def _sums(self, values: Mapping[str, int]) -> dict[str, int]:
        """Channel -> sum of its items."""
        sums = {}
        for one in (*self.answers, *self.request):
            sums[one.name] = sum(values[f"{one.name}.{item.name}"] for item in one.items)
        return sums

    def _check_channels(self, items: Mapping[str, object]) -> None:
        known = {one.name for one in (*self.answers, *self.request)}
        for name in items:
            if name not in known:
                raise Malformed(f"items.{name} is not a channel of {self.name}")


def open_rubric(name: str, path: Path) -> RubricObjective:
    """The objective that a file describes, under a name of the user's.

    Raises UsageError with file, line, path and what is allowed, and for a rubric that gives a
    combination of items two scores or none, with the combination.
    """
    if not LABEL.fullmatch(name) or name.endswith(REQUEST):
        raise UsageError(
            f"objectives.{name}: not a name for a rubric: {NAMES}, and not {REQUEST} at its end"
        )
    return RubricObjective(name, read_rubric(path))


def _turns(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Malformed(f"turns is {value!r}, not an integer of at least 1")
    return value


def _values(items: Mapping[str, object], channels: Sequence[Channel]) -> dict[str, int]:
    """Path -> value of all items of some channels. Malformed if one is missing or out of range."""
    values = {}
    for one in channels:
        for item, value in channel(items, one.name, one.ranges).items():
            values[f"{one.name}.{item}"] = value
    return values
