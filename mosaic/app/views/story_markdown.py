"""The story as Markdown, to paste into an issue or a note."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mosaic.app.terminal import safe
from mosaic.app.views.parts import figure, percent
from mosaic.app.views.story import (
    Bars,
    Chapter,
    Entry,
    Messages,
    Part,
    PlanChange,
    Raw,
    Table,
    Words,
)

# Signs that would be read as markup in a line of text.
MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!])")


def chapter_markdown(chapter: Chapter) -> str:
    """A round."""
    pieces = [f"## {_plain(chapter.title)}"]
    pieces += [entry_markdown(entry) for entry in chapter.entries]
    return "\n\n".join(pieces) + "\n"


def entry_markdown(entry: Entry, level: int = 3) -> str:
    """An entry with its turns and all its parts, but for the record itself."""
    mark = "(!) " if entry.failed else ""
    pieces = [f"{'#' * level} {entry.id} {mark}{_plain(entry.title)}"]
    if entry.facts:
        pieces.append(_plain(", ".join(entry.facts)))
    for turn in entry.turns:
        pieces.append(entry_markdown(turn, level + 1))
    for part in entry.parts:
        if not isinstance(part, Raw):
            pieces.append(part_markdown(part))
    return "\n\n".join(piece for piece in pieces if piece)


def part_markdown(part: Part) -> str:
    """One part."""
    if isinstance(part, Words):
        label = f"{_plain(part.label)}:\n\n" if part.label else ""
        return label + _quoted(part.text)
    if isinstance(part, Bars):
        rows = []
        for bar in part.bars:
            interval = "-"
            if bar.low is not None and bar.high is not None:
                interval = f"{bar.low:.2f} to {bar.high:.2f}"
            rows.append([bar.label, figure(bar.mean), interval, bar.note])
        return _titled(part.title, ["", "mean", "95 %", ""], rows)
    if isinstance(part, PlanChange):
        rows = []
        for move in part.moves:
            wrong = "; ".join(move.problems)
            rows.append([move.path, percent(move.before), percent(move.after), wrong])
        for problem in part.problems:
            rows.append(["the plan", "", "", problem])
        return _titled(part.title, ["", "before", "after", "what is wrong"], rows)
    if isinstance(part, Messages):
        pieces = [f"{_plain(part.title)}:"]
        for message in part.messages:
            text = "\n".join([message.text, *(f"calls {call}" for call in message.calls)])
            pieces.append(f"*{_plain(message.role)}*\n\n{_quoted(text.strip())}")
        return "\n\n".join(pieces)
    assert isinstance(part, Table)
    return _titled(part.title, part.header, part.rows)


def _titled(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"{_plain(title)}:", "", _row(header), _row(["---"] * len(header), plain=False)]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Sequence[str], plain: bool = True) -> str:
    shown = [_plain(cell) if plain else cell for cell in cells]
    return f"| {' | '.join(shown)} |"


def _plain(text: str) -> str:
    """Text in one line that is read as it is.

    >>> _plain("a*b|c")
    'a\\\\*b\\\\|c'
    """
    return MARKUP.sub(r"\\\1", " ".join(safe(line) for line in text.split("\n")))


def _quoted(text: str) -> str:
    """Somebody's words in a fence that they cannot close.

    >>> _quoted("a ``` b").split("\\n")[0]
    '````text'
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(safe(line) for line in text.split("\n"))
    return f"{fence}text\n{lines}\n{fence}"
