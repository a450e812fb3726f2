"""What a judge that is a model is told of a rubric's items, in the form of `prompts/judge_*.md`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from eval.objectives.base import Channel, Side
from eval.objectives.rubrics.model import Rubric
from prompts.load import Prompt

OPENING = {
    "answers": "You judge the answers of an AI assistant in one conversation.",
    "request": "You label the user's side of one conversation with an AI assistant.",
}
SCOPE = {
    "answers": (
        "Decide each item below for the assistant's turns only; what the user wrote is context "
        "and is not judged."
    ),
    "request": (
        "Decide each item below for the user's turns, all of them together; the assistant's "
        "turns are context."
    ),
}
READ_FROM = {
    "all": " over all turns of the assistant; an item that holds in any of them counts.",
    "last": " the assistant's last turn only.",
}


def words_of(rubric: Rubric, name: str, side: Side) -> Prompt:
    """The words for one side's items. The digest is that of the text."""
    channels = rubric.answers if side == "answers" else rubric.request
    paragraphs = [f"{OPENING[side]} {rubric.about} {SCOPE[side]}"]
    for channel in channels:
        paragraphs.append(_items(rubric, channel, side))
    paragraphs.append(_ending(rubric, channels, side))
    text = "\n\n".join(paragraphs) + "\n"
    return Prompt(f"{name}_{side}", text, hashlib.sha256(text.encode()).hexdigest())


def _items(rubric: Rubric, channel: Channel, side: Side) -> str:
    """A paragraph on a channel, with a line for each of its items."""
    read_from = READ_FROM[channel.turns] if side == "answers" else ""
    lines = [f"Items of `{channel.name}`:{read_from}"]
    for item in channel.items:
        lines.append(f"- `{item.name}`: {rubric.asks[f'{channel.name}.{item.name}']}")
    return "\n".join(lines)


def _ending(rubric: Rubric, channels: Sequence[Channel], side: Side) -> str:
    """How to answer, and the rubric's hint."""
    degrees = []
    for channel in channels:
        degrees += [f"`{item.name}`" for item in channel.items if item.most > 1]
    ending = (
        "Answer each item with `yes`, `no`, or `cannot_tell` where the text does not let you decide"
    )
    if degrees:
        ending += f"; {', '.join(degrees)} with `none`, `some`, `most` or `cannot_tell`"
    hint = rubric.hints.get(side)
    return f"{ending}. {hint}" if hint else f"{ending}."
