"""Counts of tokens as the trainer will see them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.rendering.pins import pinned_day
from eval.rendering.probe import turn_shape
from eval.rendering.render import Chat
from eval.rendering.tokenizer import load_tokenizer as load_tokenizer
from eval.rendering.tokenizer import readable as readable
from eval.rendering.turns import TurnEncoder, special_ids, text_of_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenCounter:
    """Counts tokens of chats by a model's own chat template and tokenizer.

    `template` is a file that replaces the model's chat template. `digest` (SHA-256) changes with
    the tokenizer or the template, and so with the counts. `day` (ISO) is the date that is pinned in
    a template which writes one.

    Raises UsageError for a template that cannot be trained with.
    """

    def __init__(self, model: Path, template: Path | None = None) -> None:
        tokenizer = load_tokenizer(model, template)
        shape = turn_shape(tokenizer)
        self._encoder = TurnEncoder(tokenizer, shape)
        self._special = text_of_tokens(tokenizer, special_ids(tokenizer) | shape.ends)
        self.day = pinned_day(tokenizer.chat_template)
        self.digest = rendering_digest(tokenizer)

    def control_token(self, texts: Iterable[str]) -> str | None:
        """The first special token that is written out in one of the texts, or None.

        The tokenizer would take it for the real one, so the text could end its turn and begin
        another speaker's.
        """
        for text in texts:
            found = self._special.search(text)
            if found:
                return found[0]
        return None

    def __call__(self, chats: Sequence[Chat]) -> list[int]:
        """Tokens of each chat.

        Raises ChatError for the first one that the template refuses, or whose answers could not be
        labelled exactly.
        """
        return self._encoder.lengths(chats)


def rendering_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of a fast tokenizer and its chat template."""
    backend = tokenizer.backend_tokenizer
    # The file may still hold padding or truncation of somebody's batch, which changes counts.
    backend.no_padding()
    backend.no_truncation()
    text = backend.to_str() + tokenizer.chat_template
    return hashlib.sha256(text.encode()).hexdigest()
