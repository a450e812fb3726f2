"""Requests for a short description under verifiable constraints, with answers that meet some."""

from __future__ import annotations

import random
from collections.abc import Sequence

from eval.ifeval import complexity
from mosaic.lab import formats
from mosaic.lab.english.words import ADJECTIVES, Names, phrases_of
from mosaic.lab.formats import (
    BULLETS,
    END_CHECKER,
    KEYWORD,
    NO_COMMA,
    PLACEHOLDERS,
    POSTSCRIPT,
    QUOTATION,
    TITLE,
    TWO_RESPONSES,
    Constraint,
)
from mosaic.lab.instructions import INCOMPATIBLE, Task, draw_kinds

WORD_LIMIT = "length_constraints:number_words"
MAX_WORDS = 60

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    NO_COMMA: {
        "seen": (
            "Do not use any commas.",
            "Write without commas.",
            "Avoid commas.",
            "No commas, please.",
        ),
        "audit": ("There must not be a comma in your answer.",),
    },
    QUOTATION: {
        "seen": (
            "Wrap the answer in double quotation marks.",
            "Put everything in double quotation marks.",
            "The whole answer goes in double quotes.",
        ),
        "audit": ("Begin and end your answer with a double quotation mark.",),
    },
    END_CHECKER: {
        "seen": (
            "End with exactly these words: {value}",
            "Your last words must be: {value}",
            "Finish with: {value}",
        ),
        "audit": ("Close your answer with the words: {value}",),
    },
    TITLE: {
        "seen": (
            "Give it a title, such as <<title>>.",
            "Start with a title like <<this>>.",
            "Begin with a title in double angular brackets.",
        ),
        "audit": ("Add a title that stands in double angular brackets, like <<this>>.",),
    },
    BULLETS: {
        "seen": (
            "Answer with exactly {value} bullet points, like * this.",
            "Use {value} bullets that begin with *.",
            "Make a list of {value} bullet points with asterisks.",
        ),
        "audit": ("Write it as {value} bullet points with an asterisk in front of each.",),
    },
    POSTSCRIPT: {
        "seen": ("Add a postscript that starts with P.S.", "Close with a P.S.", "Add a P.S."),
        "audit": ("Put a postscript at the end, beginning with P.S.",),
    },
    PLACEHOLDERS: {
        "seen": (
            "Include a placeholder such as [name].",
            "Leave one blank in square brackets.",
            "Have a placeholder in it, like [this].",
        ),
        "audit": ("There should be a placeholder in square brackets, like [name].",),
    },
    KEYWORD: {
        "seen": ("Include the word {value}.", "Mention the word {value}.", "Use the word {value}."),
        "audit": ("The word {value} has to appear.",),
    },
    TWO_RESPONSES: {
        "seen": (
            "Give two different answers, separated by ******.",
            "Write two versions with ****** between them.",
        ),
        "audit": ("I would like two different answers with ****** in between.",),
    },
    WORD_LIMIT: {
        "seen": (
            "Use fewer than {value} words.",
            "Stay below {value} words.",
            "Write less than {value} words.",
        ),
        "audit": ("Your answer should have less than {value} words.",),
    },
}
ASKS = {
    "seen": (
        "Describe a {topic}.",
        "Write a sentence about a {topic}.",
        "Tell me something about a {topic}.",
    ),
    "audit": ("Give me a short description of a {topic}.", "What comes to mind about a {topic}?"),
}
END_PHRASES = ("That is all for now.", "This is the end of my note.", "Thank you for reading.")
KEYWORDS = ("copper", "sunset", "candle", "morning")
# {c} is a comma, or nothing where none is allowed.
FRAMES = (
    "A {one} {topic}{c} with its {other} shape{c} is a sight that people remember",
    "My neighbour has a {one} {topic} that looks {other}{c} and everyone likes it",
    "On a calm day{c} a {one} {topic} can seem {other} to those who pass by",
    "The {topic} was {one} and {other}{c} just as my grandmother had told me",
    "I think{c} to be fair{c} that few things are as {one} as a {other} {topic}",
    "There is a {one} {topic} at the end of our street{c} and it is rather {other}",
)


def task(rng: random.Random, names: Names, level: int, part: str) -> Task:
    """A request of complexity `level` (1 to 5): more constraints, of more groups."""
    while True:
        kinds = draw_kinds(rng, level, PHRASES)
        if not set(kinds) >= INCOMPATIBLE and complexity(kinds) == level:
            break
    phrasing = phrases_of(part)
    topic = rng.choice(names.topics[part])
    constraints = [formats.constraint(rng, kind, KEYWORDS, END_PHRASES) for kind in kinds]
    sentences = []
    for constraint in constraints:
        phrase = rng.choice(PHRASES[constraint.kind][phrasing])
        sentences.append(phrase.format(value=constraint.value or MAX_WORDS))
    # Between the constraints the topic, which no two parts share, breaks up runs of equal words.
    sentences.insert(len(sentences) // 2, rng.choice(ASKS[phrasing]).format(topic=topic))
    turns = [" ".join(sentences)]
    return Task(turns, "topic", topic, constraints, f"complexity_{level}", level)


def constraint_data(constraint: Constraint) -> dict[str, object]:
    """The constraint as suites hold it: `{"id", "params"}`."""
    data: dict[str, object] = dict(constraint.data())
    if constraint.kind == WORD_LIMIT:
        data["params"] = {"num_words": MAX_WORDS, "relation": "less than"}
    return data


def answer(rng: random.Random, made: Task, met: Sequence[str]) -> str:
    """A description that meets the constraints whose kinds are in `met`.

    It makes no effort to meet the others, though a short text meets some of them by chance.
    """
    values = {c.kind: c.value for c in made.constraints if c.kind in met}
    body = _body(rng, made.noun, values)
    if TWO_RESPONSES in values:
        second = _body(rng, made.noun, values)
        while second == body:
            second = _body(rng, made.noun, values)
        body = f"{body}\n******\n{second}"
    return formats.frame(body, f"The {made.noun}", values, "Come and see it some day.")


def _body(rng: random.Random, topic: str, values: dict[str, str | int]) -> str:
    """The description itself: a sentence, or a list of bullets."""
    comma = "" if NO_COMMA in values else ","
    extra = ""
    if KEYWORD in values:
        extra += f" and reminds me of {values[KEYWORD]}"
    if PLACEHOLDERS in values:
        extra += " near [place]"
    if BULLETS not in values:
        one, other = rng.sample(ADJECTIVES, 2)
        frame = rng.choice(FRAMES)
        return frame.format(one=one, other=other, topic=topic, c=comma) + extra + "."
    qualities = rng.sample(ADJECTIVES, int(values[BULLETS]))
    lines = [f"* The {topic} is {quality}{comma} as you can see." for quality in qualities]
    lines[0] = f"* The {topic} is {qualities[0]}{extra}."
    return "\n".join(lines)
