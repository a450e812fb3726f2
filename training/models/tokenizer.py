"""The tokenizer of a model folder, and counts of tokens as the trainer will see them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import check_model_folder
from mosaic.core.errors import UsageError
from training.models.chat_template import Chat, first_line, render
from training.models.learnt_turns import without_flags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MATCHES_NOTHING = r"(?!)"


def load_tokenizer(base: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a padding token.

    Raises UsageError if the folder has no chat template, asks for remote code or is damaged.
    """
    from transformers import AutoTokenizer

    check_model_folder(base)
    with readable(f"{base}: its tokenizer files are missing or damaged"):
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    if not tokenizer.chat_template:
        raise UsageError(f"{base}: the tokenizer has no chat template, so chats cannot be rendered")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn any failure to read a model's files into a UsageError: `what`, and the first reason.

    `tokenizers` raises nothing narrower than Exception, and `transformers` raises whatever a
    damaged file happens to lead to.
    """
    try:
        yield
    except Exception as error:
        raise UsageError(f"{what}: {first_line(error)}") from None


class TokenCounter:
    """Counts tokens of chats by a model's own chat template and tokenizer.

    `digest` (SHA-256) changes with the tokenizer or the template, and so with the counts.
    """

    def __init__(self, model: Path) -> None:
        self._tokenizer = load_tokenizer(model)
        self._special = _special_tokens(self._tokenizer)
        backend = self._tokenizer.backend_tokenizer
        # The file may still hold padding or truncation of somebody's batch, which changes counts.
        backend.no_padding()
        backend.no_truncation()
        text = backend.to_str() + self._tokenizer.chat_template
        self.digest = hashlib.sha256(text.encode()).hexdigest()

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
        """Tokens of each chat. Raises ChatError for the first one that the template refuses."""
        plain, _ = without_flags(chats)
        return render(self._count, plain) if chats else []

    def _count(self, chats: Sequence[Chat]) -> list[int]:
        texts = self._tokenizer.apply_chat_template(list(chats), tokenize=False)
        return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False)["input_ids"]]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that finds any special token of a tokenizer in a text."""
    written = []
    for token in tokenizer.added_tokens_decoder.values():
        if token.special and token.content:
            written.append(re.escape(token.content))
    return re.compile("|".join(written) or MATCHES_NOTHING)
