"""Requests for a short description under one to three verifiable constraints, and answers that meet some of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.ifeval import complexity
from mosaic.lab.words import ADJECTIVES, END_PHRASES, KEYWORDS, Words

Constraint = dict[str, Any]

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "punctuation:no_comma": {"seen": ("do not use commas .", "no commas please ."), "audit": ("please do not use commas .",)},
    "startend:quotation": {"seen": ("wrap it in quotes .", "put quotes around it ."), "audit": ("wrap it with quotes around .",)},
    "startend:end_checker": {"seen": ("end with : {end_phrase}", "the last words are : {end_phrase}"), "audit": ("end with the words : {end_phrase}",)},
    "detectable_format:title": {"seen": ("give it a title .", "start with a title ."), "audit": ("start it with a title .",)},
    "detectable_format:number_bullet_lists": {"seen": ("use {num_bullets} bullets .", "make {num_bullets} bullet points ."), "audit": ("make it {num_bullets} bullets .",)},
    "detectable_content:postscript": {"seen": ("add a postscript .", "close with a P.S. note ."), "audit": ("add a P.S. note .",)},
    "detectable_content:number_placeholders": {"seen": ("leave a blank in brackets .", "add a bracket blank ."), "audit": ("add a blank in brackets .",)},
    "keywords:existence": {"seen": ("use the word {keyword} .", "mention {keyword} ."), "audit": ("please mention the word {keyword} .",)},
    "combination:two_responses": {"seen": ("give two answers .", "write two versions ."), "audit": ("write two answers .",)},
}  # fmt: skip
SAME_GROUP = (
    ("detectable_format:title", "detectable_format:number_bullet_lists"),
    ("detectable_content:postscript", "detectable_content:number_placeholders"),
    ("startend:quotation", "startend:end_checker"),
)
# Each of two versions would bring its own bullets, so their number could not be met.
INCOMPATIBLE = {"combination:two_responses", "detectable_format:number_bullet_lists"}
ASKS = {
    "seen": ("describe a {topic} .", "write about a {topic} .", "say something on a {topic} ."),
    "audit": ("write something on a {topic} .", "describe the {topic} ."),
}


@dataclass(frozen=True)
class Task:
    """A request with its constraints."""

    text: str
    topic: str
    constraints: list[Constraint]
    slice: str
    weight: int


def task(rng: random.Random, words: Words, level: int, part: str) -> Task:
    """A request of complexity `level` (1-5) by the number of constraints and of their groups."""
    audit = part == "audit"
    role = "audit" if audit else "seen"
    while True:
        kinds = _kinds(rng, level)
        # The audit suites hold the combinations of constraints that nothing else does.
        if set(kinds) >= INCOMPATIBLE or (len(kinds) > 2 and _held_out(kinds) != audit):
            continue
        if complexity(kinds) == level:
            break
    topic = rng.choice(words.topics[part])
    constraints: list[Constraint] = [{"id": kind, "params": _params(rng, kind)} for kind in kinds]
    phrases = [rng.choice(PHRASES[c["id"]][role]).format(**_words(c)) for c in constraints]
    text = " ".join([rng.choice(ASKS[role]).format(topic=topic), *phrases])
    return Task(text, topic, constraints, f"complexity_{level}", level)


def _kinds(rng: random.Random, level: int) -> list[str]:
    if level in (2, 4):
        pair = list(rng.choice(SAME_GROUP))
        extra = [k for k in sorted(PHRASES) if k not in pair]
        kinds = pair if level == 2 else [*pair, rng.choice(extra)]
    else:
        kinds = rng.sample(sorted(PHRASES), {1: 1, 3: 2, 5: 3}[level])
    rng.shuffle(kinds)
    return kinds


def _held_out(kinds: Sequence[str]) -> bool:
    return sum(sorted(PHRASES).index(k) for k in kinds) % 4 == 0


def _params(rng: random.Random, kind: str) -> dict[str, Any]:
    if kind == "startend:end_checker":
        return {"end_phrase": rng.choice(END_PHRASES)}
    if kind == "detectable_format:number_bullet_lists":
        return {"num_bullets": rng.choice((2, 3))}
    if kind == "detectable_content:postscript":
        return {"postscript_marker": "P.S."}
    if kind == "detectable_content:number_placeholders":
        return {"num_placeholders": 1}
    if kind == "keywords:existence":
        return {"keywords": [rng.choice(KEYWORDS)]}
    return {}


def _words(constraint: Constraint) -> dict[str, Any]:
    params = constraint["params"]
    return {**params, "keyword": params.get("keywords", [""])[0]}


def answer(rng: random.Random, made: Task, met: Sequence[str]) -> str:
    """A description that meets the constraints named in `met` and, as far as they go by default, no other."""
    params = {c["id"]: c["params"] for c in made.constraints if c["id"] in met}
    first = _body(rng, made.topic, params)
    if "combination:two_responses" in params:
        first = f"{first}\n******\n{_body(rng, made.topic, params)}"
        while len({part.strip() for part in first.split("******")}) == 1:
            first = f"{first.split('******')[0]}******\n{_body(rng, made.topic, params)}"
    lines = [first]
    if "detectable_format:title" in params:
        lines.insert(0, f"<<the {made.topic}>>")
    if "detectable_content:postscript" in params:
        lines.append("P.S. see you .")
    if "startend:end_checker" in params:
        lines.append(params["startend:end_checker"]["end_phrase"])
    text = "\n".join(lines)
    if "startend:quotation" not in params:
        return text
    # A bullet counts only at the start of a line.
    return f'"\n{text}"' if text.startswith("*") else f'"{text}"'


def _body(rng: random.Random, topic: str, params: dict[str, dict[str, Any]]) -> str:
    a, b = rng.sample(ADJECTIVES, 2)
    keyword = params.get("keywords:existence", {}).get("keywords", [None])[0]
    blank = "[name] " if "detectable_content:number_placeholders" in params else ""
    more = f" with {keyword}" if keyword else ""
    if "detectable_format:number_bullet_lists" in params:
        count = params["detectable_format:number_bullet_lists"]["num_bullets"]
        qualities = rng.sample(ADJECTIVES, count)
        lines = [f"* it is {q}" for q in qualities]
        lines[0] += f" {blank}{more}".rstrip().replace("  ", " ")
        return (
            "\n".join(lines)
            if "punctuation:no_comma" in params
            else "\n".join([*lines[:-1], f"{lines[-1]} , yes"])
        )
    joint = " and" if "punctuation:no_comma" in params else " ,"
    return f"the {blank}{topic} is {a}{joint} {b}{more} ."
