"""What a pool folder holds: an index that curation scans, the texts, and the manifest.

* `index.parquet`: a row per chat or window, with the columns `hash`, `n_tokens`, `quality`,
  `window`, `windows`, and `attribute:NAME` for each attribute. Rows of one bucket lie together.
* `rows.arrow`: `id` and `messages` of the same rows in the same order (`training.data.texts`). A
  message has `role`, `content`, and where any message of the pool is not to be learnt, `learn`
  (false or null).
* `pool.json`: the manifest, written last; it says where each bucket lies and what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import xxhash

from mosaic.core.types.base import Attribute, JsonObject
from training.data.pool_values import Values
from training.models.chat_template import LEARN, Chat

VERSION = 2
INDEX, ROWS, MANIFEST = "index.parquet", "rows.arrow", "pool.json"
BLOCK = 1 << 20
# Rows of the index that are read at a time: what curation holds beside what it chooses.
ROW_GROUP = 1 << 17
PLAIN = [("role", pa.string()), ("content", pa.string())]
MESSAGES = pa.list_(pa.struct(PLAIN))
MARKED_MESSAGES = pa.list_(pa.struct([*PLAIN, (LEARN, pa.bool_())]))
COLUMN_TYPES = {"list": pa.list_(pa.string()), "number": pa.float64(), "text": pa.string()}


class PoolRow(TypedDict):
    """A chat, or one window of a long chat. `hash` is the 64-bit XXH3 of the id."""

    id: str
    dataset: str
    bucket: str
    hash: int
    n_tokens: int
    quality: int
    window: int
    windows: int
    messages: Chat
    attributes: dict[str, Attribute]


class BucketEntry(TypedDict):
    """Where a bucket lies in the index, and quality -> [rows, tokens, tokens of the longest]."""

    start: int
    end: int
    stock: dict[str, list[int]]


class FileFacts(TypedDict):
    """Size and digest of a file."""

    bytes: int
    xxh3_128: str


class Manifest(TypedDict):
    """`pool.json`. `values` are those of attributes, by data set and quality."""

    version: int
    files: NotRequired[dict[str, FileFacts]]
    rows: int
    digest: str
    tokenizer: str | None
    max_length: int
    too_long: int
    turns_left_out: NotRequired[int]
    turns_cut: NotRequired[int]
    attributes: dict[str, str]
    values: dict[str, Values]
    datasets: dict[str, dict[str, BucketEntry]]
    origins: NotRequired[list[JsonObject]]
    template_day: NotRequired[str]


def index_schema(kinds: Mapping[str, str]) -> pa.Schema:
    """The columns of the index, in order."""
    fields = [
        ("hash", pa.uint64()),
        ("n_tokens", pa.int32()),
        ("quality", pa.int8()),
        ("window", pa.int16()),
        ("windows", pa.int16()),
    ]
    for name, kind in kinds.items():
        fields.append((f"attribute:{name}", COLUMN_TYPES[kind]))
    return pa.schema(fields)


def messages_type(rows: Iterable[Mapping[str, Any]]) -> pa.DataType:
    """The type of a column of messages: with `learn` only if a message of a row has it."""
    marked = any(LEARN in message for row in rows for message in row["messages"])
    return MARKED_MESSAGES if marked else MESSAGES


def joined_kind(one: str, other: str) -> str:
    """The kind of column that holds the values of both kinds.

    >>> joined_kind("number", "text"), joined_kind("number", "list")
    ('text', 'list')
    """
    if one == other:
        return one
    return "list" if "list" in (one, other) else "text"


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind_of(value: Attribute) -> str:
    """`list`, `number` or `text`."""
    if isinstance(value, list):
        return "list"
    return "number" if is_number(value) else "text"


def cell(value: Attribute | None, kind: str) -> float | str | list[str] | None:
    """An attribute's value as its column stores it."""
    if value is None:
        return None
    if kind == "list":
        values = value if isinstance(value, list) else [value]
        return [as_text(each) for each in values]
    if kind == "number" and not isinstance(value, list | str):
        return float(value)
    return as_text(value)


def as_text(value: Attribute) -> str:
    """A value as texts are compared: itself, or JSON for what is not a text.

    >>> as_text("yes"), as_text(True), as_text(3)
    ('yes', 'true', '3')
    """
    return value if isinstance(value, str) else json.dumps(value)


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file. XXH3: this finds accidents and costs no more than reading."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}
