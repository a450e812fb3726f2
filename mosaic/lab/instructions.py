"""Requests for a short description under verifiable constraints, with answers that meet some."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from eval.ifeval import complexity
from mosaic.core.types.base import JsonObject
from mosaic.lab.words import ADJECTIVES, END_PHRASES, KEYWORDS, Words

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
SAME_GROUP = ((TITLE, BULLETS), (POSTSCRIPT, PLACEHOLDERS), (QUOTATION, END_CHECKER))
# Each of two versions would bring its own bullets, so their number could not be met.
INCOMPATIBLE = {TWO_RESPONSES, BULLETS}
ASKS = {
    "seen": ("describe a {topic} .", "write about a {topic} .", "say something on a {topic} ."),
    "audit": ("write something on a {topic} .", "describe the {topic} ."),
}


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


@dataclass(frozen=True)
class Task:
    """A request with its constraints."""

    text: str
    topic: str
    constraints: list[Constraint]
    slice: str
    weight: int

    @property
    def kinds(self) -> list[str]:
        """The kinds of its constraints, in the order in which the request names them."""
        return [constraint.kind for constraint in self.constraints]


def task(rng: random.Random, words: Words, level: int, part: str) -> Task:
    """A request of complexity `level` (1 to 5): more constraints, of more groups."""
    audit = part == "audit"
    role = "audit" if audit else "seen"
    while True:
        kinds = _kinds(rng, level)
        # Some combinations of three constraints occur in the audit suites and nowhere else.
        if set(kinds) >= INCOMPATIBLE or (len(kinds) > 2 and _held_out(kinds) != audit):
            continue
        if complexity(kinds) == level:
            break
    topic = rng.choice(words.topics[part])
    constraints = [_constraint(rng, kind) for kind in kinds]
    phrases = []
    for constraint in constraints:
        phrase = rng.choice(PHRASES[constraint.kind][role])
        phrases.append(phrase.format(value=constraint.value))
    text = " ".join([rng.choice(ASKS[role]).format(topic=topic), *phrases])
    return Task(text, topic, constraints, f"complexity_{level}", level)


def _kinds(rng: random.Random, level: int) -> list[str]:
    """Kinds for a level: one; two of a group; two; two of a group and another; three."""
    if level in (2, 4):
        pair = list(rng.choice(SAME_GROUP))
        others = [kind for kind in sorted(PHRASES) if kind not in pair]
        kinds = pair if level == 2 else [*pair, rng.choice(others)]
    else:
        kinds = rng.sample(sorted(PHRASES), {1: 1, 3: 2, 5: 3}[level])
    rng.shuffle(kinds)
    return kinds


def _held_out(kinds: Sequence[str]) -> bool:
    """Whether only the audit uses this combination: about one in four, whatever its order."""
    places = [sorted(PHRASES).index(kind) for kind in kinds]
    return sum(places) % 4 == 0


def _constraint(rng: random.Random, kind: str) -> Constraint:
    """A constraint of this kind, its value drawn if there is a choice."""
    if kind == END_CHECKER:
        return Constraint(kind, "end_phrase", rng.choice(END_PHRASES))
    if kind == BULLETS:
        return Constraint(kind, "num_bullets", rng.choice((2, 3)))
    if kind == POSTSCRIPT:
        return Constraint(kind, "postscript_marker", "P.S.")
    if kind == PLACEHOLDERS:
        return Constraint(kind, "num_placeholders", 1)
    if kind == KEYWORD:
        return Constraint(kind, "keywords", rng.choice(KEYWORDS))
    return Constraint(kind)


def answer(rng: random.Random, made: Task, met: Sequence[str]) -> str:
    """A description that meets the constraints whose kinds are in `met`.

    It makes no effort to meet the others, though a short text meets some of them by chance.
    """
    values = {c.kind: c.value for c in made.constraints if c.kind in met}
    first = _body(rng, made.topic, values)
    if TWO_RESPONSES in values:
        second = _body(rng, made.topic, values)
        while second.strip() == first.strip():
            second = _body(rng, made.topic, values)
        first = f"{first}\n******\n{second}"
    lines = [first]
    if TITLE in values:
        lines.insert(0, f"<<the {made.topic}>>")
    if POSTSCRIPT in values:
        lines.append("P.S. see you .")
    if END_CHECKER in values:
        lines.append(str(values[END_CHECKER]))
    text = "\n".join(lines)
    if QUOTATION not in values:
        return text
    # A bullet counts only at the start of a line.
    return f'"\n{text}"' if text.startswith("*") else f'"{text}"'


def _body(rng: random.Random, topic: str, values: dict[str, str | int]) -> str:
    """The description itself: a sentence, or a list of bullets."""
    one, other = rng.sample(ADJECTIVES, 2)
    commas = NO_COMMA not in values
    blank = "[name] " if PLACEHOLDERS in values else ""
    with_keyword = f" with {values[KEYWORD]}" if KEYWORD in values else ""
    if BULLETS not in values:
        joint = " ," if commas else " and"
        return f"the {blank}{topic} is {one}{joint} {other}{with_keyword} ."
    qualities = rng.sample(ADJECTIVES, int(values[BULLETS]))
    lines = [f"* it is {quality}" for quality in qualities]
    lines[0] += f" {blank}{with_keyword}".rstrip().replace("  ", " ")
    if commas:
        lines[-1] += " , yes"
    return "\n".join(lines)
