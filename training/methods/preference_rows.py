"""Preference pairs as a file, and as the token ids that are trained on.

The file is Parquet in the shape that TRL calls a conversational preference set: `prompt`, `chosen`
and `rejected` are lists of messages, and `prompt + chosen` is a whole conversation. A conversation
of several turns begins to differ with its first answer, so all that follows belongs to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.rendering.render import Chat
from mosaic.core.errors import UsageError
from training.models.chat_template import IGNORED, ChatError, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mosaic.core.types.evaluation import Prompt


@dataclass(frozen=True)
class PreferenceRow:
    """One pair: conversations from the first user turn on, the tokens of each, and the gap."""

    id: str
    slice: str
    prompt: Chat
    chosen: Chat
    rejected: Chat
    chosen_tokens: int
    rejected_tokens: int
    gap: float

    @property
    def tokens(self) -> int:
        """What one epoch trains on."""
        return self.chosen_tokens + self.rejected_tokens


@dataclass(frozen=True)
class TokenisedPair:
    """Both conversations as token ids; masks are 1 where the model's own words stand."""

    chosen: list[int]
    chosen_mask: list[int]
    rejected: list[int]
    rejected_mask: list[int]

    @property
    def tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)

    @property
    def supervised(self) -> int:
        return sum(self.chosen_mask) + sum(self.rejected_mask)


def conversation(prompt: Prompt, answers: Sequence[str]) -> tuple[Chat, Chat]:
    """What is asked first, and everything from the first answer on."""
    asked: Chat = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    asked.append({"role": "user", "content": prompt.turns[0]})
    rest: Chat = [{"role": "assistant", "content": answers[0]}]
    for turn, answer in zip(prompt.turns[1:], answers[1:], strict=True):
        rest.append({"role": "user", "content": turn})
        rest.append({"role": "assistant", "content": answer})
    return asked, rest


def write_pairs(rows: Sequence[PreferenceRow], path: Path) -> None:
    """Write pairs in their order, always the same bytes for the same pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chat = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("slice", pa.string()),
            ("prompt", chat),
            ("chosen", chat),
            ("rejected", chat),
            ("chosen_tokens", pa.int64()),
            ("rejected_tokens", pa.int64()),
            ("gap", pa.float64()),
        ]
    )
    table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema)
    pq.write_table(table, path)


def read_pairs(path: Path) -> list[PreferenceRow]:
    """The pairs of a file, in its order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows: list[dict[str, Any]] = file.read(use_threads=False).to_pylist()
    return [PreferenceRow(**row) for row in rows]


def tokenised_pairs(
    rows: Sequence[PreferenceRow], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[TokenisedPair]:
    """Pairs as the trainer sees them.

    Raises UsageError if a conversation cannot be rendered, has other tokens than were counted, or
    more than `max_length`.
    """
    chats = []
    for row in rows:
        chats += [[*row.prompt, *row.chosen], [*row.prompt, *row.rejected]]
    try:
        ids, labels = tokenise(tokenizer, chats)
    except ChatError as error:
        row = rows[error.position // 2]
        raise UsageError(f"preference pair {row.id}: {error.reason}") from None
    masks = [_own_words(row) for row in labels]
    pairs = []
    for number, row in enumerate(rows):
        first, second = 2 * number, 2 * number + 1
        pair = TokenisedPair(ids[first], masks[first], ids[second], masks[second])
        counted = (row.chosen_tokens, row.rejected_tokens)
        if (len(pair.chosen), len(pair.rejected)) != counted:
            raise UsageError(
                f"preference pair {row.id}: {counted} tokens were counted, the trainer sees "
                f"{(len(pair.chosen), len(pair.rejected))}"
            )
        longest = max(counted)
        if longest > max_length:
            raise UsageError(
                f"preference pair {row.id} has {longest} tokens, methods.dpo.max_length is "
                f"{max_length}"
            )
        pairs.append(pair)
    return pairs


def _own_words(labels: Sequence[int]) -> list[int]:
    """1 where a token is labelled, which is where the model's own words stand."""
    return [int(label != IGNORED) for label in labels]
