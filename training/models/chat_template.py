"""What a model's chat template makes of a chat: token ids, and labels on the assistant's turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mosaic.core.errors import MosaicError, UsageError
from training.models.learnt_turns import spans_of, switch_off, without_flags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Chat = list[Message]
T = TypeVar("T")
IGNORED = -100
"""The label of a token that the loss passes over, as torch's cross entropy defines it."""

GENERATION = re.compile(r"\{%-?\s*generation\b")
ANSWER = "yes"
PROBE: Chat = [{"role": "user", "content": "no"}, {"role": "assistant", "content": ANSWER}]
# Failures that say nothing about the chat that was being rendered.
ELSEWHERE = (MosaicError, MemoryError, OSError)


class ChatError(UsageError):
    """A chat that the model's chat template or tokenizer refuses.

    `position` counts from 0 among the chats that were given together.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"chat {position}: the chat template or tokenizer refuses it: {reason}")
        self.position = position
        self.reason = reason


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def render(work: Callable[[Sequence[Chat]], T], chats: Sequence[Chat]) -> T:
    """`work(chats)`, where `work` puts chats through the template and the tokenizer.

    Raises ChatError for the first chat that fails on its own. A template is a program: it may
    refuse a chat by `raise_exception`, or break in any way a Python expression can.
    """
    try:
        return work(chats)
    except ELSEWHERE:
        raise
    except Exception:
        for position, chat in enumerate(chats):
            try:
                work([chat])
            except ELSEWHERE:
                raise
            except Exception as error:
                raise ChatError(position, first_line(error)) from None
        raise


def tokenise(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]
) -> tuple[list[list[int]], list[list[int]]]:
    """(input ids, labels) of each chat; labels are -100 outside the assistant's turns.

    Turns that are marked as not to be learnt are context only: their labels are -100 too.
    Raises ChatError for the first chat that the template or the tokenizer refuses.
    """

    def encode(some: Sequence[Chat]) -> tuple[list[list[int]], list[list[int]]]:
        encoded = tokenizer.apply_chat_template(
            list(some), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return encoded["input_ids"], encoded["assistant_masks"]

    plain, off = without_flags(chats)
    rows, masks = render(encode, plain)
    labels = []
    for number, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        all_on = [t if learned else IGNORED for t, learned in zip(row, mask, strict=True)]
        answers = sum(message["role"] == "assistant" for message in plain[number])
        try:
            labels.append(switch_off(all_on, spans_of(all_on), off[number], answers))
        except ValueError as error:
            raise ChatError(number, str(error)) from None
    return [list(row) for row in rows], labels


def check_generation_markers(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the template marks the assistant's text together with its end-of-turn token.

    Raises UsageError if it has no `{% generation %}` markers, if it cannot render a question and
    an answer, or if the markers close before the end of the turn: the model would never learn to
    stop.
    """
    if not GENERATION.search(tokenizer.chat_template):
        raise UsageError(
            f"base_model: the chat template of {base} has no {{% generation %}} markers, so "
            "assistant tokens cannot be told apart; add them around the assistant's text and its "
            "end-of-turn token"
        )
    try:
        (ids,), (labels,) = tokenise(tokenizer, [PROBE])
    except ChatError as error:
        raise UsageError(
            f"base_model: the chat template of {base} cannot render a question and an answer "
            f"({error.reason}); mend its chat_template.jinja"
        ) from None
    supervised = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    if tokenizer.decode(supervised).strip() == ANSWER:
        raise UsageError(
            f"base_model: the {{% generation %}} markers of {base} end before the end-of-turn "
            "token, so the model would not learn to stop; move the closing marker behind it"
        )
