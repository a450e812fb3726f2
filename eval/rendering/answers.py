"""Where the assistant's answers stand in a rendered chat.

A chat is rendered a second time with a placeholder for each answer. What stands between the
placeholders is the template's own text and the user's. The answers put back in between must give
the first rendering again, character by character; then their places are exact. No
`{% generation %}` markers are needed, and none are trusted.

Most templates write the same text around the messages of every chat with the same roles. That frame
is rendered once: a chat whose rendering is the frame filled with its messages needs no second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eval.rendering.render import Chat

STEM = "Zqanswer"


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int


class NotLocated(Exception):
    """The answers of a chat cannot be told apart in its rendering; the text says why."""


def stem_for(chats: Sequence[Chat]) -> str:
    """A word that stands in none of the chats.

    >>> stem_for([[{"role": "user", "content": "Zqanswer?"}]])
    'Zqanswerq'
    """
    stem = STEM
    while any(stem in message["content"] for chat in chats for message in chat):
        stem += "q"
    return stem


def marked(chat: Chat, stem: str) -> Chat:
    """The chat with a placeholder for each answer.

    >>> marked([{"role": "assistant", "content": "yes"}], "Zqanswer")
    [{'role': 'assistant', 'content': 'Zqanswer0x'}]
    """
    copy: Chat = []
    answers = 0
    for message in chat:
        if message["role"] == "assistant":
            copy.append({**message, "content": placeholder(stem, answers)})
            answers += 1
        else:
            copy.append(message)
    return copy


def frame_of(template: str, count: int, stem: str) -> list[str] | None:
    """What a template writes before, between and after `count` messages.

    `template` is the rendering of a chat whose messages are all placeholders. None if it leaves
    one out, repeats one or changes their order.

    >>> frame_of("Q: Zqanswer0x A: Zqanswer1x!", 2, "Zqanswer")
    ['Q: ', ' A: ', '!']
    """
    try:
        return _between(template, count, stem)
    except NotLocated:
        return None


def filled(text: str, frame: Sequence[str], contents: Sequence[str]) -> list[Span] | None:
    """The place of each message in `text` if that is the frame filled with them, else None.

    >>> filled("Q: hi A: yes!", ["Q: ", " A: ", "!"], ["hi", "yes"])
    [Span(start=3, end=5), Span(start=9, end=12)]
    """
    spans: list[Span] = []
    position = 0
    for before, content in zip(frame[:-1], contents, strict=True):
        start = position + len(before)
        position = start + len(content)
        if not text.startswith(before, start - len(before)) or not text.startswith(content, start):
            return None
        spans.append(Span(start, position))
    return spans if text[position:] == frame[-1] else None


def placeholder(stem: str, number: int) -> str:
    """What stands for an answer (from 0). None is part of another."""
    return f"{stem}{number}x"


def answers_of(chat: Chat) -> list[str]:
    """The assistant's texts."""
    return [message["content"] for message in chat if message["role"] == "assistant"]


def locate(text: str, template: str, answers: Sequence[str], stem: str) -> list[Span]:
    """The place of each answer in `text`, the rendering of a chat.

    `template` is the rendering of the same chat with placeholders. White space round an answer may
    be missing from the text, since many templates trim.

    Raises NotLocated if an answer is left out, repeated, changed or moved.

    >>> locate("Q: hi A: yes!", "Q: hi A: Zqanswer0x!", [" yes "], "Zqanswer")
    [Span(start=9, end=12)]
    """
    glue = _between(template, len(answers), stem)
    if not text.startswith(glue[0]):
        raise NotLocated("the template writes other text round this answer than round another one")
    spans: list[Span] = []
    found = _fit(text, len(glue[0]), answers, glue[1:], spans)
    if not found:
        raise NotLocated(
            "the template changes what an answer says, or what stands round it, by what it says"
        )
    return spans


def _between(template: str, count: int, stem: str) -> list[str]:
    """What stands before, between and after the placeholders."""
    glue = []
    position = 0
    for number in range(count):
        mark = placeholder(stem, number)
        times = template.count(mark)
        if times != 1:
            what = "leaves out" if times == 0 else f"writes {times} times"
            raise NotLocated(f"the template {what} answer {number + 1} of {count}")
        at = template.find(mark, position)
        if at < 0:
            raise NotLocated("the template changes the order of the answers")
        glue.append(template[position:at])
        position = at + len(mark)
    glue.append(template[position:])
    return glue


def _fit(
    text: str, position: int, answers: Sequence[str], glue: Sequence[str], spans: list[Span]
) -> bool:
    """Whether the answers and the text after each fill `text` from `position` to its end.

    Their places are added to `spans`.
    """
    if not answers:
        return position == len(text)
    for wording in _wordings(answers[0]):
        if not text.startswith(wording, position):
            continue
        end = position + len(wording)
        if not text.startswith(glue[0], end):
            continue
        spans.append(Span(position, end))
        if _fit(text, end + len(glue[0]), answers[1:], glue[1:], spans):
            return True
        spans.pop()
    return False


def _wordings(answer: str) -> list[str]:
    """The answer, then with less and less white space at its ends."""
    core = answer.strip()
    if core == answer:
        return [answer]
    if not core:
        return [answer[start:] for start in range(len(answer) + 1)]
    lead = len(answer) - len(answer.lstrip())
    trail = len(answer) - len(answer.rstrip())
    cuts = []
    for before in range(lead + 1):
        for after in range(trail + 1):
            cuts.append((before + after, answer[before : len(answer) - after]))
    cuts.sort(key=lambda cut: cut[0])
    return [wording for _, wording in cuts]
