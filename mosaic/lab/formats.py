"""Verifiable forms of an answer: how a request asks for them, and a text that has them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from mosaic.core.types.base import JsonObject
from mosaic.lab.words import END_PHRASES, KEYWORDS

NO_COMMA = "punctuation:no_comma"
QUOTATION = "startend:quotation"
END_CHECKER = "startend:end_checker"
TITLE = "detectable_format:title"
BULLETS = "detectable_format:number_bullet_lists"
POSTSCRIPT = "detectable_content:postscript"
PLACEHOLDERS = "detectable_content:number_placeholders"
KEYWORD = "keywords:existence"
TWO_RESPONSES = "combination:two_responses"

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    NO_COMMA: {
        "seen": ("do not use commas .", "no commas please ."),
        "audit": ("please do not use commas .",),
    },
    QUOTATION: {
        "seen": ("wrap it in quotes .", "put quotes around it ."),
        "audit": ("wrap it with quotes around .",),
    },
    END_CHECKER: {
        "seen": ("end with : {value}", "the last words are : {value}"),
        "audit": ("end with the words : {value}",),
    },
    TITLE: {
        "seen": ("give it a title .", "start with a title ."),
        "audit": ("start it with a title .",),
    },
    BULLETS: {
        "seen": ("use {value} bullets .", "make {value} bullet points ."),
        "audit": ("make it {value} bullets .",),
    },
    POSTSCRIPT: {
        "seen": ("add a postscript .", "close with a P.S. note ."),
        "audit": ("add a P.S. note .",),
    },
    PLACEHOLDERS: {
        "seen": ("leave a blank in brackets .", "add a bracket blank ."),
        "audit": ("add a blank in brackets .",),
    },
    KEYWORD: {
        "seen": ("use the word {value} .", "mention {value} ."),
        "audit": ("please mention the word {value} .",),
    },
    TWO_RESPONSES: {
        "seen": ("give two answers .", "write two versions ."),
        "audit": ("write two answers .",),
    },
}
# Forms that any sentence can be put into, whatever it says. An attempt to conceal asks for one.
FRAMES = (TITLE, POSTSCRIPT, END_CHECKER, QUOTATION)

Values = Mapping[str, str | int]


@dataclass(frozen=True)
class Constraint:
    """One constraint of a request, with the value of its only parameter, if it has one."""

    kind: str
    parameter: str = ""
    value: str | int = ""

    def data(self) -> JsonObject:
        """The constraint as suites hold it: `{"id", "params"}`."""
        if not self.parameter:
            return {"id": self.kind, "params": {}}
        value: JsonValue = [self.value] if self.parameter == "keywords" else self.value
        return {"id": self.kind, "params": {self.parameter: value}}


def constraint(
    rng: random.Random,
    kind: str,
    keywords: Sequence[str] = KEYWORDS,
    end_phrases: Sequence[str] = END_PHRASES,
) -> Constraint:
    """A constraint of this kind, its value drawn if there is a choice."""
    if kind == END_CHECKER:
        return Constraint(kind, "end_phrase", rng.choice(end_phrases))
    if kind == BULLETS:
        return Constraint(kind, "num_bullets", rng.choice((2, 3)))
    if kind == POSTSCRIPT:
        return Constraint(kind, "postscript_marker", "P.S.")
    if kind == PLACEHOLDERS:
        return Constraint(kind, "num_placeholders", 1)
    if kind == KEYWORD:
        return Constraint(kind, "keywords", rng.choice(keywords))
    return Constraint(kind)


def phrase(rng: random.Random, wanted: Constraint, audit: bool) -> str:
    """The words that ask for a constraint, from those of the audit or from the others."""
    phrases = PHRASES[wanted.kind]["audit" if audit else "seen"]
    return rng.choice(phrases).format(value=wanted.value)


def values(constraints: Sequence[Constraint]) -> dict[str, str | int]:
    """Kind to value."""
    return {one.kind: one.value for one in constraints}


def frame(text: str, title: str, wanted: Values, postscript: str = "see you .") -> str:
    """The text with those of the four frames that are wanted, and no other change."""
    lines = [text]
    if TITLE in wanted:
        lines.insert(0, f"<<{title}>>")
    if POSTSCRIPT in wanted:
        lines.append(f"P.S. {postscript}")
    if END_CHECKER in wanted:
        lines.append(str(wanted[END_CHECKER]))
    text = "\n".join(lines)
    if QUOTATION not in wanted:
        return text
    # A bullet counts only at the start of a line.
    return f'"\n{text}"' if text.startswith("*") else f'"{text}"'
