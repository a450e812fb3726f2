"""A run as it is told: chapters of entries, made of parts that every view can draw.

The page, the terminal, Markdown and the self-contained file draw the same parts in the same order
(`telling` makes them). A part is words, bars, a table, a change of a plan, messages or, last and
closed, plain JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from mosaic.core.types.base import LABEL, SCALE, FrozenModel


class Words(FrozenModel):
    """What somebody said; `by` says whose words they are. The label is empty where the title says it."""

    kind: Literal["words"] = "words"
    by: str
    label: str
    text: str


class Bar(FrozenModel):
    """A mean score with its interval and target. `note` stands beside it."""

    label: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""


class Bars(FrozenModel):
    """Mean scores on one scale, from 1 to 5."""

    kind: Literal["bars"] = "bars"
    title: str
    bars: list[Bar]


class Table(FrozenModel):
    """A table, closed at first if `folded`. Columns in `texts` hold what others wrote."""

    kind: Literal["table"] = "table"
    title: str
    header: list[str]
    rows: list[list[str]]
    texts: list[int] = []
    folded: bool = True


class Move(FrozenModel):
    """A weight of a plan, 0-1, against the plan executed last, with what is wrong with it."""

    path: str
    before: float | None
    after: float | None
    problems: list[str] = []


class PlanChange(FrozenModel):
    """A plan as a change. Weights that stay are counted as `unchanged`.

    `problems` are about the plan as a whole. If they are `quoted`, they hold what somebody else
    wrote.
    """

    kind: Literal["change"] = "change"
    title: str
    moves: list[Move]
    unchanged: int = 0
    problems: list[str] = []
    quoted: bool = False


class Said(FrozenModel):
    """A message to or from a model. `calls` are the tools that it calls, as JSON text."""

    role: str
    text: str
    calls: list[str] = []


class Messages(FrozenModel):
    """Messages of a conversation, closed at first. `earlier` stand in requests before this one."""

    kind: Literal["messages"] = "messages"
    title: str
    earlier: int = 0
    messages: list[Said]


class Raw(FrozenModel):
    """The record itself, one click away."""

    kind: Literal["raw"] = "raw"
    title: str
    data: JsonValue


Part = Annotated[Words | Bars | Table | PlanChange | Messages | Raw, Field(discriminator="kind")]


class Entry(FrozenModel):
    """Something that happened, in a sentence, and what belongs to it.

    `id` is the number of the event, for a turn of its conversation with the turn's number:
    `12.3`. `facts` are short: tokens, seconds, money. `at` is wall time in seconds since 1970.
    """

    id: str
    kind: str
    round: int
    at: float | None = None
    title: str
    facts: list[str] = []
    objectives: list[str] = []
    failed: bool = False
    parts: list[Part] = []
    turns: list[Entry] = []

    @property
    def seq(self) -> int:
        """The number of the event."""
        return int(self.id.partition(".")[0])

    @property
    def about(self) -> list[str]:
        """The objectives that it or one of its turns is about."""
        named = [*self.objectives]
        for turn in self.turns:
            named += turn.objectives
        return list(dict.fromkeys(named))

    @property
    def any_failed(self) -> bool:
        return self.failed or any(turn.failed for turn in self.turns)

    @property
    def gist(self) -> str:
        """The first words that belong to it in one line: a rationale, a comment, why it failed."""
        for part in self.parts:
            if isinstance(part, Words):
                return " ".join(part.text.split())
        return ""

    def without_turns(self) -> Entry:
        return self.model_copy(update={"turns": []})


class Span(FrozenModel):
    """What one kind of step took in a round."""

    kind: str
    count: int
    seconds: float


class Chapter(FrozenModel):
    """A round: what took how long, and what happened, in order."""

    round: int
    title: str
    spans: list[Span]
    entries: list[Entry]


class Story(FrozenModel):
    """A run. `kinds` and `objectives` are what entries can be filtered by."""

    run: str
    planner: str
    objectives: list[str]
    chapters: list[Chapter]

    @property
    def kinds(self) -> list[str]:
        found: dict[str, None] = {}
        for chapter in self.chapters:
            for entry in chapter.entries:
                found |= dict.fromkeys([entry.kind, *(turn.kind for turn in entry.turns)])
        return list(found)


def flat(entries: list[Entry]) -> Iterator[Entry]:
    """Every entry, each followed by its turns."""
    for entry in entries:
        yield entry.without_turns()
        yield from entry.turns


# -- without texts --------------------------------------------------------------------------------


def without_texts(entry: Entry) -> Entry:
    """The entry without what a model or a person wrote: numbers, names and our own sentences stay."""
    parts = [_bare(part) for part in entry.parts if not isinstance(part, Raw)]
    turns = [without_texts(turn) for turn in entry.turns]
    return entry.model_copy(update={"parts": parts, "turns": turns})


def left_out(text: str) -> str:
    """What stands in the place of a text.

    >>> left_out("a" * 1200), left_out("")
    ('(text left out: 1,200 characters)', '')
    """
    return f"(text left out: {len(text):,} characters)" if text else ""


def _bare(part: Part) -> Part:
    if isinstance(part, Words):
        return part.model_copy(update={"text": left_out(part.text)})
    if isinstance(part, Messages):
        said = []
        for message in part.messages:
            calls = [left_out(call) for call in message.calls]
            said.append(Said(role=message.role, text=left_out(message.text), calls=calls))
        return part.model_copy(update={"messages": said})
    if isinstance(part, Table) and part.texts:
        rows = []
        for row in part.rows:
            rows.append([left_out(c) if i in part.texts else c for i, c in enumerate(row)])
        return part.model_copy(update={"rows": rows})
    if isinstance(part, PlanChange):
        moves = []
        for move in part.moves:
            path = ".".join(_name(piece) for piece in move.path.split("."))
            problems = [left_out(p) for p in move.problems] if part.quoted else move.problems
            moves.append(move.model_copy(update={"path": path, "problems": problems}))
        problems = [left_out(p) for p in part.problems] if part.quoted else part.problems
        return part.model_copy(update={"moves": moves, "problems": problems})
    return part


def _name(text: str) -> str:
    """A name as it is; anything else may be what a model wrote."""
    return text if LABEL.fullmatch(text) else left_out(text)


def position(score: float) -> float:
    """Where a score lies on the scale, 0-1.

    >>> position(1.0), position(4.0)
    (0.0, 0.75)
    """
    low, high = SCALE
    return min(1.0, max(0.0, (score - low) / (high - low)))
