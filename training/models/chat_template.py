"""What a model's chat template makes of a chat: token ids, and labels on the assistant's turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.rendering.probe import probe
from eval.rendering.probe import turn_shape as turn_shape
from eval.rendering.render import LEARN as LEARN
from eval.rendering.render import Chat as Chat
from eval.rendering.render import ChatError as ChatError
from eval.rendering.render import Message as Message
from eval.rendering.render import is_off as is_off
from eval.rendering.turns import TokenisedChat, TurnEncoder
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that the loss passes over, as torch's cross entropy defines it."""


def tokenise(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]
) -> tuple[list[list[int]], list[list[int]]]:
    """(input ids, labels) of each chat; labels are -100 outside the assistant's turns.

    Every answer that is learnt from and the token that ends its turn are labelled, and nothing
    else; a chat where that cannot be exact is refused. Raises ChatError for the first such chat,
    and UsageError for a template that cannot be trained with at all.
    """
    encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
    tokenised = encoder.encode(chats)
    return [chat.ids for chat in tokenised], [labels_of(chat) for chat in tokenised]


def labels_of(chat: TokenisedChat) -> list[int]:
    """The token ids of answers and their ends, -100 elsewhere.

    >>> from eval.rendering.answers import Span
    >>> labels_of(TokenisedChat([5, 6, 7, 8], [Span(1, 3)]))
    [-100, 6, 7, -100]
    """
    labels = [IGNORED] * len(chat.ids)
    for start, end in chat.answers:
        labels[start:end] = chat.ids[start:end]
    return labels


def check_template(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UsageError with everything that keeps a base's chat template from being trained with."""
    faults = probe(tokenizer).faults
    if faults:
        listed = "\n  ".join(faults)
        raise UsageError(f"base_model: the chat template of {base}:\n  {listed}")
