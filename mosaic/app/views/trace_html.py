"""A trace as one self-contained page: `trace --html FILE`."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mosaic.app.views.parts import MOVED, figure, percent
from mosaic.app.views.story import Chapter, Entry, Move, Span, Story, position, without_texts
from mosaic.app.views.story_markdown import entry_markdown

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
STYLE = HERE.parent / "web" / "static" / "style.css"
# The bar of a score is so wide, that of a round's time so wide.
BAR_WIDTH, TIME_WIDTH = 200, 1000
# Part of judging, which is told as a whole.
INSIDE = ("verdict",)


class Links(Protocol):
    """Addresses of entries and chapters."""

    def entry(self, entry: Entry) -> str: ...

    def markdown(self, entry: Entry) -> str:
        """Where the entry stands as Markdown, "" if nowhere."""
        ...

    def kept(self, entry: Entry) -> str:
        """The entry as Markdown if the page itself holds it, else ""."""
        ...

    def chapter(self, number: int) -> str: ...


class HereLinks:
    """Addresses within one file, which holds each event as Markdown too."""

    def entry(self, entry: Entry) -> str:
        return f"#e{entry.id}"

    def markdown(self, entry: Entry) -> str:
        return ""

    def kept(self, entry: Entry) -> str:
        return "" if "." in entry.id else entry_markdown(entry)

    def chapter(self, number: int) -> str:
        return f"#round-{number}"


@dataclass(frozen=True)
class Asked:
    """What a filter asks for; the empty one shows all."""

    q: str = ""
    kind: str = ""
    objective: str = ""
    failed: bool = False

    @property
    def anything(self) -> bool:
        return bool(self.q or self.kind or self.objective or self.failed)


def add_filters(environment: Environment) -> None:
    """What the templates of the story call."""
    environment.filters |= {
        "at": lambda score: round(position(score) * BAR_WIDTH, 2),
        "figure": figure,
        "percent": percent,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
        "words": lambda name: str(name).replace("_", " "),
        "role": lambda role: role if role in ("system", "user", "assistant", "tool") else "other",
        "direction": _direction,
        "difference": _difference,
        "laid": laid,
    }


def laid(spans: Sequence[Span], longest: float) -> list[tuple[str, float, float]]:
    """(kind, x, width) of a round's parts beside each other; the longest round fills the bar.

    >>> laid([Span(kind="plan", count=1, seconds=1), Span(kind="train", count=1, seconds=3)], 8)
    [('plan', 0.0, 125.0), ('train', 125.0, 375.0)]
    """
    placed = []
    x = 0.0
    for span in spans:
        if span.kind in INSIDE or not longest:
            continue
        width = round(span.seconds / longest * TIME_WIDTH, 2)
        placed.append((span.kind, round(x, 2), width))
        x += width
    return placed


def longest_of(chapters: Sequence[Chapter]) -> float:
    """Seconds of the longest round."""
    totals = []
    for chapter in chapters:
        totals.append(sum(span.seconds for span in chapter.spans if span.kind not in INSIDE))
    return max(totals, default=0.0)


def _direction(move: Move) -> str:
    if move.before is None or move.after is None or abs(move.after - move.before) < MOVED:
        return ""
    return "up" if move.after > move.before else "down"


def _difference(move: Move) -> str:
    if move.before is None or move.after is None:
        return ""
    return f"{100 * (move.after - move.before):+.1f}"


def write_trace(story: Story, path: Path, with_texts: bool = True) -> None:
    """Write the story into one HTML file that opens offline.

    Without texts it holds no answer, no message and no words of a model or a person.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    add_filters(environment)
    if not with_texts:
        story = _without_texts(story)
    script = (HERE / "trace.js").read_text(encoding="utf-8")
    text = environment.get_template("trace.html.j2").render(
        story=story,
        with_texts=with_texts,
        links=HereLinks(),
        asked=Asked(),
        longest=longest_of(story.chapters),
        style=STYLE.read_text(encoding="utf-8") + (HERE / "trace.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=_hash_of(script),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _without_texts(story: Story) -> Story:
    chapters = []
    for chapter in story.chapters:
        entries = [without_texts(entry) for entry in chapter.entries]
        chapters.append(chapter.model_copy(update={"entries": entries}))
    return story.model_copy(update={"chapters": chapters})


def _hash_of(script: str) -> str:
    """A script's hash as a content security policy names it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
