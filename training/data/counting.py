"""From checked rows to what is stored of them: tokens counted, long chats windowed, as a table.

Rows come in groups that are counted together. A group is known by itself, so that several
processes can work on different ones.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import pyarrow as pa
import xxhash

from mosaic.core.types.base import canonical_json
from mosaic.core.types.data import Example
from training.data.examples import PlacedExample, PlacedRow, checked, plain
from training.data.faults import Faults
from training.data.learnable import learnable_part
from training.data.pool_format import MARKED_MESSAGES, PoolRow, joined_kind, kind_of
from training.data.windows import windows
from training.models.chat_template import LEARN, Chat, ChatError
from training.models.tokenizer import TokenCounter

MAX_TOKENS = 2**31 - 1
# What is kept of a row until the pool is written. `digest` is SHA-256 of the row's canonical JSON,
# `number` counts rows in the order in which they were read, `attributes` are JSON.
SCHEMA = pa.schema(
    {
        "dataset": pa.string(),
        "bucket": pa.string(),
        "hash": pa.uint64(),
        "id": pa.string(),
        "window": pa.int16(),
        "windows": pa.int16(),
        "n_tokens": pa.int32(),
        "quality": pa.int8(),
        "attributes": pa.string(),
        "messages": MARKED_MESSAGES,
        "digest": pa.binary(32),
        "number": pa.int64(),
        "place": pa.string(),
    }
)


class TooLong(TypedDict):
    """A line of `too-long.jsonl`: a chat that lost turns, or all of itself."""

    id: str
    dataset: str
    place: str
    turns_left_out: int
    in_pool: bool


Windows = tuple[list[tuple[Chat, int]], int]
"""(messages, tokens) of each window, and how many turns are in none of them."""


@dataclass
class Group:
    """What a group of rows became.

    `forged` are places with control tokens written out, `refused` those that the template refuses.
    `kinds` is attribute -> kind, `chats` data set -> chats in the pool; `marked` says whether a
    message is not to be learnt.
    """

    table: pa.Table = field(default_factory=SCHEMA.empty_table)
    faults: Faults = field(default_factory=Faults)
    forged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    too_long: list[TooLong] = field(default_factory=list)
    turns_cut: int = 0
    kinds: dict[str, str] = field(default_factory=dict)
    chats: Counter[str] = field(default_factory=Counter)
    marked: bool = False


def counted(
    rows: Sequence[PlacedRow],
    numbers: Sequence[int],
    counter: TokenCounter | None,
    max_length: int,
) -> Group:
    """What becomes of rows, `numbers` being their places in the order of reading.

    Without a counter token counts are taken as they came.
    """
    group = Group()
    number_at: dict[str, int] = {}
    countable: list[PlacedExample] = []
    for number, (where, row) in zip(numbers, rows, strict=True):
        example = checked(where, row, group.faults)
        if example is not None and _is_countable(where, example, counter, group):
            number_at[where] = number
            countable.append((where, example))
    made: list[PoolRow] = []
    origins: list[tuple[int, str]] = []
    for (where, example), (parts, lost) in _windowed(countable, counter, max_length, group):
        stored = list(_rows(example, parts))
        made += stored
        origins += [(number_at[where], where)] * len(stored)
        if parts:
            group.chats[example.dataset] += 1
        if lost or not parts:
            group.too_long.append(
                {
                    "id": example.id,
                    "dataset": example.dataset,
                    "place": where,
                    "turns_left_out": lost,
                    "in_pool": bool(parts),
                }
            )
    _note_kinds(made, group)
    group.table = _table(made, origins)
    return group


def _note_kinds(rows: Sequence[PoolRow], group: Group) -> None:
    """Note what kinds of columns the rows need."""
    for row in rows:
        for name, value in row["attributes"].items():
            kind = kind_of(value)
            group.kinds[name] = joined_kind(group.kinds.setdefault(name, kind), kind)
        group.marked = group.marked or any(LEARN in message for message in row["messages"])


def _table(rows: Sequence[PoolRow], origins: Sequence[tuple[int, str]]) -> pa.Table:
    """The rows in columns (`SCHEMA`)."""
    columns: dict[str, list[object]] = {}
    for name in SCHEMA.names:
        if name in ("attributes", "digest", "number", "place"):
            continue
        columns[name] = [row[name] for row in rows]  # type: ignore[literal-required]
    columns["attributes"] = [canonical_json(row["attributes"]) for row in rows]
    columns["digest"] = [hashlib.sha256(canonical_json(row).encode()).digest() for row in rows]
    columns["number"] = [number for number, _ in origins]
    columns["place"] = [place for _, place in origins]
    return pa.table(columns, SCHEMA)


def _is_countable(where: str, example: Example, counter: TokenCounter | None, group: Group) -> bool:
    """Whether a row's tokens can be counted, or its own count be taken; if not, the group says why.

    A row with a control token of the model written out in a text is not counted.
    """
    if counter is None:
        fault = _miscounted(example)
        if fault:
            group.faults.add(f"{where}: {fault}")
        return fault is None
    token = counter.control_token(message.content for message in example.messages)
    if token:
        group.forged.append(f"{where}: {token}")
    return token is None


def _miscounted(example: Example) -> str | None:
    """Why the token count that a row came with cannot be taken; None if it can."""
    if example.n_tokens is None:
        return "n_tokens is missing; count tokens with --model DIR instead"
    if example.n_tokens > MAX_TOKENS:
        return f"n_tokens: {example.n_tokens} is more than {MAX_TOKENS:,}"
    end = len(learnable_part(plain(example)))
    if end < len(example.messages):
        return (
            f"messages.{end}: a turn after the last answer teaches nothing, and n_tokens counts "
            "it; take it out, or count tokens with --model DIR"
        )
    return None


def _cut(example: Example) -> tuple[Example, int]:
    """The example without turns behind its last answer, and how many turns that were."""
    last = example.messages[-1]
    if last.role == "assistant" and last.learn:
        return example, 0
    end = len(learnable_part(plain(example)))
    lost = len(example.messages) - end
    return example.model_copy(update={"messages": example.messages[:end]}), lost


def _windowed(
    placed: Sequence[PlacedExample], counter: TokenCounter | None, max_length: int, group: Group
) -> Iterator[tuple[PlacedExample, Windows]]:
    """Each example with its windows: itself if it fits or its count is trusted.

    Turns behind the last answer are cut off. Examples that the template refuses are left out, and
    added to `group.refused` with the reason.
    """
    kept: list[PlacedExample] = []
    for where, example in placed:
        example, lost = _cut(example)
        group.turns_cut += lost
        kept.append((where, example))
    if counter is None:
        for one in kept:
            yield one, _trusted(one[1])
        return
    if not kept:
        return
    chats = [plain(example) for _, example in kept]
    try:
        totals: Sequence[int | None] = counter(chats)
    except ChatError:
        # Some are refused; one by one, so that each is named with its own reason.
        totals = [None] * len(kept)
    for one, chat, known in zip(kept, chats, totals, strict=True):
        try:
            total = counter([chat])[0] if known is None else known
            parts: Windows = ([(chat, total)], 0)
            if total > max_length:
                parts = windows(chat, max_length, counter)
        except ChatError as error:
            group.refused.append(f"{one[0]}: messages: {error.reason}")
            continue
        yield one, parts


def _trusted(example: Example) -> Windows:
    """An example with the count that it came with, which was checked."""
    assert example.n_tokens is not None
    return [(plain(example), example.n_tokens)], 0


def _rows(example: Example, parts: Sequence[tuple[Chat, int]]) -> Iterator[PoolRow]:
    """A pool row for each window of an example."""
    for window, (messages, tokens) in enumerate(parts):
        yield {
            "id": example.id,
            "dataset": example.dataset,
            "bucket": example.bucket,
            "hash": xxhash.xxh3_64_intdigest(example.id.encode()),
            "n_tokens": tokens,
            "quality": example.quality,
            "window": window,
            "windows": len(parts),
            "messages": messages,
            "attributes": example.attributes,
        }
