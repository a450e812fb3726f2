"""The sections of a run's page, each with a mark that changes with what it says.

A live update asks with the marks it has and is sent the sections that differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

NAMES = ("head", "approval", "result", "rounds", "slices", "forecast", "reasons")
MARK = 12  # hexadecimal digits: sections are told apart, not secured


class Render(Protocol):
    """Text of a template, filled with values."""

    def __call__(self, template: str, /, **values: object) -> str: ...


@dataclass(frozen=True)
class Section:
    """A part of the page that is replaced as a whole."""

    name: str
    html: str

    @property
    def mark(self) -> str:
        return hashlib.sha256(self.html.encode()).hexdigest()[:MARK]


def sections_of(render: Render, values: Mapping[str, object]) -> list[Section]:
    """All sections of a page, in order."""
    return [Section(name, render(f"run_{name}.html.j2", **values)) for name in NAMES]


def marks_of(text: str) -> dict[str, str]:
    """The marks that a browser has, from the words of its request.

    >>> marks_of("head:ab12 rounds:cd34 x")
    {'head': 'ab12', 'rounds': 'cd34', 'x': ''}
    """
    marks = {}
    for word in text.split():
        name, _, mark = word.partition(":")
        marks[name] = mark
    return marks


def changed(sections: Sequence[Section], marks: Mapping[str, str]) -> list[Section]:
    """The sections that differ from what a browser has."""
    return [section for section in sections if marks.get(section.name) != section.mark]
