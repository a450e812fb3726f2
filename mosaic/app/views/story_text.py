"""The story for a terminal: lines of a given width, in the order of the page.

What a page folds is one line here, and `trace RUN --event ID` shows it. Nothing is cut: what does
not fit is wrapped, and a table that is too wide is told row by row.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from mosaic.app.terminal import safe
from mosaic.app.views.parts import figure, percent
from mosaic.app.views.story import (
    Bar,
    Bars,
    Chapter,
    Entry,
    Messages,
    Part,
    PlanChange,
    Raw,
    Story,
    Table,
    Words,
    position,
)

MIN_WIDTH, PIPE_WIDTH = 40, 120
# A column that would be narrower has its table told row by row.
MIN_COLUMN = 16
INDENT = 2
# Characters between the ends of the scale.
BAR = 25
LEGEND = "bars: 1 to 5; = interval, | mean, t target"


def terminal_width() -> int:
    """Columns of the terminal, or of a page of text if there is none."""
    return max(MIN_WIDTH, shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def story_text(story: Story, width: int, folder: str = "") -> str:
    """The whole story, folded parts as a line each. `folder` is where the run lies, for commands."""
    lines = [*wrapped(f"{story.run}: planner {story.planner}; {LEGEND}", width)]
    for chapter in story.chapters:
        lines += ["", *chapter_lines(chapter, width)]
    lines += [
        "",
        *wrapped(
            f"more of one event: python -m mosaic trace {folder or story.run} --event ID", width
        ),
    ]
    return "\n".join(lines)


def chapter_lines(chapter: Chapter, width: int) -> list[str]:
    took = [f"{span.kind} {span.seconds:.1f} s" for span in chapter.spans]
    title = chapter.title + (f" ({', '.join(took)})" if took else "")
    lines = wrapped(title, width)
    for entry in chapter.entries:
        lines += entry_lines(entry, width)
    return lines


def entry_text(entry: Entry, width: int, full: bool = False) -> str:
    """One entry with its turns; with `full` nothing is folded."""
    return "\n".join(entry_lines(entry, width, full))


def entry_lines(entry: Entry, width: int, full: bool = False, depth: int = 1) -> list[str]:
    """The lines of an entry."""
    indent = " " * (INDENT * depth)
    mark = "! " if entry.failed else ""
    facts = f" [{', '.join(entry.facts)}]" if entry.facts else ""
    lines = wrapped(f"{entry.id}  {mark}{entry.title}{facts}", width, indent)
    inner = indent + " " * INDENT
    # What led to a plan stands before the plan, as it happened.
    for turn in entry.turns:
        lines += entry_lines(turn, width, full, depth + 1)
    for part in entry.parts:
        lines += part_lines(part, width, inner, full)
    return lines


def part_lines(part: Part, width: int, indent: str, full: bool) -> list[str]:
    """The lines of a part; one line if it is folded."""
    if isinstance(part, Raw):
        return []
    if not full and (isinstance(part, Messages) or (isinstance(part, Table) and part.folded)):
        return wrapped(f"+ {part.title}", width, indent)
    if isinstance(part, Words):
        return _words(part, width, indent)
    if isinstance(part, Bars):
        return _bars(part, width, indent)
    if isinstance(part, PlanChange):
        return _change(part, width, indent)
    if isinstance(part, Messages):
        return _messages(part, width, indent)
    return _table(part, width, indent)


def wrapped(
    text: str, width: int, indent: str = "", hanging: str = "  ", least: int = MIN_WIDTH // 2
) -> list[str]:
    """Text in lines of at most `width` columns, and at least `least`; its own line breaks stay."""
    lines = []
    for piece in text.split("\n"):
        room = max(least, width - len(indent))
        found = textwrap.wrap(safe(piece), room, subsequent_indent=hanging, break_on_hyphens=False)
        lines += [indent + line for line in found or [""]]
    return lines


def _words(part: Words, width: int, indent: str) -> list[str]:
    lines = wrapped(f"{part.label}:", width, indent) if part.label else []
    return lines + wrapped(part.text, width, indent + "| ", "")


def _bars(part: Bars, width: int, indent: str) -> list[str]:
    if not part.bars:
        return []
    label_width = max(len(bar.label) for bar in part.bars)
    lines = wrapped(f"{part.title}:", width, indent)
    inner = indent + " " * INDENT
    for bar in part.bars:
        figures = f"{figure(bar.mean):>5} {_interval(bar):>13}"
        line = f"{safe(bar.label):<{label_width}} {figures}"
        drawn = f" {_drawn(bar)}"
        if len(inner) + len(line) + len(drawn) <= width:
            line += drawn
        if bar.note:
            if len(inner) + len(line) + 1 + len(bar.note) <= width:
                line += f" {safe(bar.note)}"
            else:
                lines += wrapped(line, width, inner)
                line = f"  {safe(bar.note)}"
        lines.append((inner + line).rstrip())
    return lines


def _interval(bar: Bar) -> str:
    if bar.low is None or bar.high is None:
        return ""
    return f"{bar.low:.2f} to {bar.high:.2f}"


def _drawn(bar: Bar) -> str:
    """A bar of text: dots, the interval, the target and the mean on a scale from 1 to 5.

    >>> _drawn(Bar(label="a", mean=3.0, low=2.5, high=3.5, target=4.5))
    '[.........===|===.....t...]'
    """
    cells = ["."] * BAR
    if bar.low is not None and bar.high is not None:
        for cell in range(_cell(bar.low), _cell(bar.high) + 1):
            cells[cell] = "="
    if bar.target is not None:
        cells[_cell(bar.target)] = "t"
    if bar.mean is not None:
        cells[_cell(bar.mean)] = "|"
    return f"[{''.join(cells)}]"


def _cell(score: float) -> int:
    return round(position(score) * (BAR - 1))


def _change(part: PlanChange, width: int, indent: str) -> list[str]:
    lines = wrapped(f"{part.title}:", width, indent)
    inner = indent + " " * INDENT
    label_width = max((len(move.path) for move in part.moves), default=0)
    for move in part.moves:
        line = f"{safe(move.path):<{label_width}}"
        if move.before is not None or move.after is not None:
            line += f" {percent(move.before):>7} -> {percent(move.after):>7}"
        if move.before is not None and move.after is not None:
            line += f" {100 * (move.after - move.before):+6.1f}"
        line = line.rstrip()
        lines += wrapped(line, width, inner) if len(inner + line) > width else [inner + line]
        for problem in move.problems:
            lines += wrapped(f"! {problem}", width, inner + "  ")
    if part.unchanged:
        lines += wrapped(f"unchanged: {part.unchanged} other weights", width, inner)
    for problem in part.problems:
        lines += wrapped(f"! the plan: {problem}", width, inner)
    return lines


def _messages(part: Messages, width: int, indent: str) -> list[str]:
    lines = wrapped(f"{part.title}:", width, indent)
    for message in part.messages:
        lines += wrapped(f"{message.role}:", width, indent + "  ")
        if message.text:
            lines += wrapped(message.text, width, indent + "  | ", "")
        for call in message.calls:
            lines += wrapped(f"calls {call}", width, indent + "  | ")
    return lines


def _table(part: Table, width: int, indent: str) -> list[str]:
    lines = wrapped(f"{part.title}:", width, indent)
    inner = indent + " " * INDENT
    rows = [part.header, *part.rows] if any(part.header) else part.rows
    if not rows:
        return lines
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(len(safe(cell)) for cell in column))
    over = len(inner) + sum(widths) + 2 * len(widths) - width
    if over > 0:
        widest = widths.index(max(widths))
        widths[widest] -= over
        if widths[widest] < MIN_COLUMN:
            return lines + _row_by_row(part.header, part.rows, width, inner)
    for row in rows:
        lines += _row_lines(row, widths, inner)
    return lines


def _row_lines(row: Sequence[str], widths: Sequence[int], indent: str) -> list[str]:
    """A row of a table; a cell that is too long takes several lines."""
    columns = []
    for cell, width in zip(row, widths, strict=True):
        columns.append(wrapped(cell, max(width, 1), "", "", least=1))
    lines = []
    for number in range(max(len(column) for column in columns)):
        cells = []
        for column, width in zip(columns, widths, strict=True):
            piece = column[number] if number < len(column) else ""
            cells.append(f"{piece:<{width}}")
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines


def _row_by_row(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, indent: str
) -> list[str]:
    """A table that is too wide: each row as its first cell, then a line for each other one."""
    lines = []
    for row in rows:
        lines += wrapped(row[0] or "-", width, indent)
        for name, cell in zip(header[1:], row[1:], strict=True):
            text = f"{name}: {cell}" if name else cell
            lines += wrapped(text, width, indent + "  ")
    return lines
