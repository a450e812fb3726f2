"""What a pool folder holds: an index that curation scans, the texts, and the manifest.

* `index.parquet`: a row per chat or window, with the columns `hash`, `n_tokens`, `quality`,
  `window`, `windows`, and `attribute:NAME` for each attribute. Rows of one bucket lie together.
* `rows.parquet`: `id` and `messages` of the same rows in the same order. A message has `role`,
  `content`, and where any message of the pool is not to be learnt, `learn` (false or null).
* `pool.json`: the manifest, written last; it says where each bucket lies and what it holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mosaic.core.types.base import Attribute, JsonObject, canonical_json
from training.data.provenance import Origin
from training.models.chat_template import LEARN, Chat

VERSION = 1
INDEX, ROWS, MANIFEST = "index.parquet", "rows.parquet", "pool.json"
BLOCK = 1 << 20
ROW_GROUP = 8192
PLAIN = [("role", pa.string()), ("content", pa.string())]
MESSAGES = pa.list_(pa.struct(PLAIN))
MARKED_MESSAGES = pa.list_(pa.struct([*PLAIN, (LEARN, pa.bool_())]))


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
    """Where a bucket lies in the index, and quality -> [rows, tokens]."""

    start: int
    end: int
    stock: dict[str, list[int]]


class FileFacts(TypedDict):
    """Size and digest of a file."""

    bytes: int
    xxh3_128: str


class Manifest(TypedDict):
    """`pool.json`. Releases before this one wrote neither `files` nor `turns_left_out`."""

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
    datasets: dict[str, dict[str, BucketEntry]]
    origins: NotRequired[list[JsonObject]]
    template_day: NotRequired[str]


@dataclass(frozen=True)
class PoolFacts:
    """What a manifest says beside the rows.

    `tokenizer` is the digest of what counted the tokens, None for counts taken on trust.
    `template_day` is the date (ISO) that is pinned in a chat template which writes one.
    `too_long` counts chats without a turn that fits, `turns_left_out` the turns of other
    chats, `turns_cut` those behind the last answer of a chat.
    """

    max_length: int
    tokenizer: str | None
    too_long: int
    turns_left_out: int = 0
    template_day: str | None = None
    turns_cut: int = 0
    origins: Sequence[Origin] = ()


def write_pool(rows: Sequence[PoolRow], out: Path, facts: PoolFacts) -> Manifest:
    """Write rows, already in the order of the index, as a pool folder; its manifest.

    `digest` is SHA-256 over the canonical JSON of all rows in order.
    """
    kinds = attribute_kinds(rows)
    content = hashlib.sha256()
    for row in rows:
        content.update(hashlib.sha256(canonical_json(row).encode()).digest())
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(_index(rows, kinds), out / INDEX, compression="zstd")
    texts = {
        "id": pa.array([row["id"] for row in rows]),
        "messages": pa.array([row["messages"] for row in rows], messages_type(rows)),
    }
    pq.write_table(pa.table(texts), out / ROWS, compression="zstd", row_group_size=ROW_GROUP)
    manifest: Manifest = {
        "version": VERSION,
        "files": {name: file_facts(out / name) for name in (INDEX, ROWS)},
        "rows": len(rows),
        "digest": content.hexdigest(),
        "tokenizer": facts.tokenizer,
        "max_length": facts.max_length,
        "too_long": facts.too_long,
        "turns_left_out": facts.turns_left_out,
        "turns_cut": facts.turns_cut,
        "attributes": kinds,
        "datasets": _bucket_entries(rows),
        "origins": [origin.json_data() for origin in facts.origins],
    }
    if facts.template_day is not None:
        manifest["template_day"] = facts.template_day
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def messages_type(rows: Iterable[Mapping[str, Any]]) -> pa.DataType:
    """The type of a column of messages: with `learn` only if a message of a row has it."""
    marked = any(LEARN in message for row in rows for message in row["messages"])
    return MARKED_MESSAGES if marked else MESSAGES


def _index(rows: Sequence[PoolRow], kinds: dict[str, str]) -> pa.Table:
    """The columns that curation scans."""
    columns = {
        "hash": pa.array([row["hash"] for row in rows], pa.uint64()),
        "n_tokens": pa.array([row["n_tokens"] for row in rows], pa.int32()),
        "quality": pa.array([row["quality"] for row in rows], pa.int8()),
        "window": pa.array([row["window"] for row in rows], pa.int16()),
        "windows": pa.array([row["windows"] for row in rows], pa.int16()),
    }
    types = {"list": pa.list_(pa.string()), "number": pa.float64(), "text": pa.string()}
    for name, kind in kinds.items():
        cells = [_cell(row["attributes"].get(name), kind) for row in rows]
        columns[f"attribute:{name}"] = pa.array(cells, types[kind])
    return pa.table(columns)


def _bucket_entries(rows: Sequence[PoolRow]) -> dict[str, dict[str, BucketEntry]]:
    """Data set -> bucket -> where it lies and what it holds."""
    datasets: dict[str, dict[str, BucketEntry]] = {}
    for position, row in enumerate(rows):
        buckets = datasets.setdefault(row["dataset"], {})
        if row["bucket"] not in buckets:
            buckets[row["bucket"]] = {"start": position, "end": position, "stock": {}}
        entry = buckets[row["bucket"]]
        entry["end"] = position + 1
        stock = entry["stock"].setdefault(str(row["quality"]), [0, 0])
        stock[0] += 1
        stock[1] += row["n_tokens"]
    return datasets


def attribute_kinds(rows: Sequence[PoolRow]) -> dict[str, str]:
    """Attribute -> `list`, `number` or `text`, whichever holds all its values."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row["attributes"].items():
            kind = _kind(value)
            known = kinds.setdefault(name, kind)
            if known != kind:
                kinds[name] = "list" if "list" in (known, kind) else "text"
    return dict(sorted(kinds.items()))


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; True and False are not numbers here."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Attribute) -> str:
    if isinstance(value, list):
        return "list"
    return "number" if is_number(value) else "text"


def _cell(value: Attribute | None, kind: str) -> float | str | list[str] | None:
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
