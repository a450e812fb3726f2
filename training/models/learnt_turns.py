"""Assistant turns that are context only: marked in a chat, their labels are switched off.

A message of a pool carries the key `learn` only where it is False. The chat template must not
see it: `without_flags` takes it off and says which assistant turns it marked. After tokenising,
`switch_off` puts the label of their tokens to -100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEARN = "learn"
IGNORED = -100
"""The label of a token that the loss passes over, as torch's cross entropy defines it."""

Span = tuple[int, int]
"""Tokens [start, end) of one assistant turn, its end-of-turn token included."""


def is_off(message: Mapping[str, Any]) -> bool:
    """Whether a message is marked as not to be learnt.

    A Parquet column of messages has the key everywhere, and null where a message has no mark.
    """
    return message.get(LEARN) is False


def without_flags(
    chats: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[list[list[dict[str, Any]]], list[list[int]]]:
    """The chats without their marks, and for each the assistant turns that are off.

    Assistant turns count from 0.

    >>> without_flags([[{"role": "assistant", "content": "a", "learn": False}]])
    ([[{'role': 'assistant', 'content': 'a'}]], [[0]])
    """
    plain: list[list[dict[str, Any]]] = []
    off: list[list[int]] = []
    for chat in chats:
        plain.append([_without_flag(message) for message in chat])
        answers = [message for message in chat if message["role"] == "assistant"]
        off.append([number for number, message in enumerate(answers) if is_off(message)])
    return plain, off


def _without_flag(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != LEARN}


def spans_of(labels: Sequence[int]) -> list[Span]:
    """The runs of tokens with a label.

    They are the assistant turns where the template puts at least one token between two turns.

    >>> spans_of([-100, 5, 6, -100, 7])
    [(1, 3), (4, 5)]
    """
    spans: list[Span] = []
    start = None
    for place, label in enumerate([*labels, IGNORED]):
        if label != IGNORED and start is None:
            start = place
        elif label == IGNORED and start is not None:
            spans.append((start, place))
            start = None
    return spans


def switch_off(
    labels: Sequence[int], spans: Sequence[Span], off: Sequence[int], turns: int
) -> list[int]:
    """The labels with those of the assistant turns `off` at -100.

    `spans` are the tokens of all `turns` assistant turns, in order. Raises ValueError if their
    numbers differ: nobody could say which tokens are whose.
    """
    switched = list(labels)
    if not off:
        return switched
    if len(spans) != turns:
        raise ValueError(
            f"{turns} assistant turns, but {len(spans)} stretches of tokens to learn: turns that "
            "are not to be learnt cannot be told apart"
        )
    for number in off:
        start, end = spans[number]
        switched[start:end] = [IGNORED] * (end - start)
    return switched
