"""From files of chats to a pool folder: every row checked, tokens counted, long chats windowed, columns written.

Rows are stored by data set, bucket and hash of the id, so that a bucket is one slice of every column and equal keys
are ordered by id. The same rows in other files or another order make the same pool.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, Attribute, canonical_json
from mosaic.core.types.data import Example
from training.data.importers.chats import Unusable, check_numbers
from training.data.importers.containers import BadRow, read_lines, read_parquet
from training.data.outputs import check_place
from training.data.provenance import Origin, origins, read_cards
from training.data.windows import windows
from training.models.chat_template import Chat, ChatError
from training.models.tokenizer import TokenCounter

VERSION = 1
INDEX, ROWS, MANIFEST = "index.parquet", "rows.parquet", "pool.json"
TOO_LONG = "too-long.jsonl"
MAX_TOKENS = 2**31 - 1
BLOCK = 1 << 20
COUNT_BATCH = 512
ROW_GROUP = 8192
MAX_SHOWN = 20


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, row as plain data) of a JSONL or Parquet file. UsageError for anything that is not a row of JSON."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give JSONL or Parquet files of pool rows")
    parquet = path.suffix == ".parquet"
    for where, row in (read_parquet if parquet else read_lines)(path):
        if isinstance(row, BadRow):
            raise UsageError(f"{where}: {row.reason}")
        yield where, _without_nulls(row) if parquet else row


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Parquet has a column for every attribute; absent ones come back as null."""
    attributes = row.get("attributes")
    if isinstance(attributes, dict):
        row["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return {k: v for k, v in row.items() if v is not None}


def parse(
    path: Path, seen: dict[str, str], defaults: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Example]]:
    """(file:line, example), every field checked; `seen` maps ids to where they stood, `defaults` are fields that a row
    may lack."""
    for where, row in read_rows(path):
        try:
            example = Example.model_validate({**defaults, **row} if defaults else row)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "(row)"
            shown = (
                "" if first["type"] == "missing" else f" (value: {str(first.get('input'))[:60]!r})"
            )
            raise UsageError(f"{where}: {field}: {first['msg']}{shown}") from None
        try:
            canonical_json(example.model_dump()).encode()
            check_numbers(example.attributes)
        except Unusable as error:
            raise UsageError(f"{where}: {error}") from None
        except UnicodeEncodeError as error:
            broken = error.object[error.start]
            raise UsageError(
                f"{where}: half of a character (a lone surrogate, {broken!a}) in a text"
            ) from None
        for field in ("dataset", "bucket"):
            if not LABEL.fullmatch(getattr(example, field)):
                raise UsageError(
                    f"{where}: {field}: {getattr(example, field)[:60]!r} is no name: {NAMES}"
                )
        if example.id in seen:
            raise UsageError(f"{where}: the id {example.id!r} stands at {seen[example.id]} already")
        seen[example.id] = where
        if not any(m.role == "assistant" for m in example.messages):
            raise UsageError(
                f"{where}: messages: no assistant turn, so there is nothing to learn from"
            )
        for number, message in enumerate(example.messages):
            if message.role == "assistant" and not message.content.strip():
                raise UsageError(
                    f"{where}: messages.{number}.content: empty, so there is nothing to learn from"
                )
        yield where, example


def build(
    sources: Sequence[Path],
    out: Path,
    *,
    model: Path | None,
    max_length: int,
    trust_token_counts: bool,
    licences: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the pool folder `out`; its manifest, written last. UsageError with file:line for every fault.

    Turns above `max_length` tokens are left out, and chats of which no turn fits: both are counted in the manifest
    (`too_long` chats, `turns_left_out` of the others) and named in `too-long.jsonl`.
    Cards beside the sources (`training.data.provenance`) go into the manifest; `licences` (by data set) overrides them.
    """
    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a pool already; name a new folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    check_place(out)
    for source in sources:
        if source.resolve() in [(out / name).resolve() for name in (INDEX, ROWS, TOO_LONG)]:
            raise UsageError(
                f"--out {out}: the pool's {source.name} would replace the source {source}; name another folder"
            )
    if model is None and not trust_token_counts:
        raise UsageError(
            "tokens cannot be counted: give --model DIR, or --trust-token-counts to take n_tokens as given"
        )
    counter = TokenCounter(model) if model and not trust_token_counts else None
    seen: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    too_long: list[dict[str, Any]] = []
    batch: list[tuple[str, Example]] = []
    forged: list[str] = []

    def flush() -> None:
        for (where, example), (parts, lost) in zip(
            batch, _counted(batch, counter, max_length), strict=True
        ):
            rows.extend(_rows(example, parts))
            if lost or not parts:
                entry = {"id": example.id, "dataset": example.dataset, "place": where}
                too_long.append({**entry, "turns_left_out": lost, "in_pool": bool(parts)})
        batch.clear()

    for source in sources:
        for item in parse(source, seen):
            if counter and (token := counter.control_token(m.content for m in item[1].messages)):
                forged.append(f"{item[0]}: {token}")
            batch.append(item)
            if len(batch) >= COUNT_BATCH:
                flush()
    flush()
    if forged:
        more = f"\n  and {len(forged) - MAX_SHOWN:,} more" if len(forged) > MAX_SHOWN else ""
        raise UsageError(
            "rows hold control tokens of the model, which would end a turn or begin another's; write them otherwise, or "
            "leave these rows out:\n  " + "\n  ".join(forged[:MAX_SHOWN]) + more
        )
    if not rows:
        detail = (
            f"; none of {len(too_long):,} has a turn that fits in --max-length {max_length}"
            if too_long
            else ""
        )
        raise UsageError(f"{', '.join(map(str, sources))}: no row in them{detail}")
    counts = Counter(r["dataset"] for r in rows if r["window"] == 0)
    known = origins(read_cards(sources), dict(counts), dict(licences or {}))
    rows.sort(key=lambda r: (r["dataset"], r["bucket"], r["hash"], r["id"], r["window"]))
    tokenizer = counter.digest if counter else None
    out.mkdir(parents=True, exist_ok=True)
    if too_long:
        (out / TOO_LONG).write_text(
            "".join(canonical_json(entry) + "\n" for entry in too_long), encoding="utf-8"
        )
    left_out = sum(entry["turns_left_out"] for entry in too_long if entry["in_pool"])
    gone = sum(not entry["in_pool"] for entry in too_long)
    return write(
        rows,
        out,
        max_length=max_length,
        tokenizer=tokenizer,
        too_long=gone,
        turns_left_out=left_out,
        known=known,
    )


def _counted(
    batch: list[tuple[str, Example]], counter: TokenCounter | None, max_length: int
) -> list[tuple[list[tuple[Chat, int]], int]]:
    """Per example its windows as (messages, tokens), itself where it fits, and how many turns are in none of them."""
    chats = [[m.model_dump() for m in example.messages] for _, example in batch]
    if counter is None:
        result = []
        for (where, example), chat in zip(batch, chats, strict=True):
            if example.n_tokens is None:
                raise UsageError(
                    f"{where}: n_tokens is missing; count tokens with --model DIR instead"
                )
            if example.n_tokens > MAX_TOKENS:
                raise UsageError(
                    f"{where}: n_tokens: {example.n_tokens} is more than {MAX_TOKENS:,}"
                )
            result.append(([(chat, example.n_tokens)], 0))
        return result
    try:
        totals = counter(chats)
    except ChatError as error:
        raise _refused(batch[error.position][0], error) from None
    result = []
    for (where, _), chat, total in zip(batch, chats, totals, strict=True):
        if total <= max_length:
            result.append(([(chat, total)], 0))
            continue
        try:
            result.append(windows(chat, max_length, counter))
        except ChatError as error:
            raise _refused(where, error) from None
    return result


def _refused(where: str, error: ChatError) -> UsageError:
    return UsageError(
        f"{where}: messages: the model's chat template refuses them: {error.reason}; change this "
        "row or leave it out"
    )


def _rows(example: Example, parts: list[tuple[Chat, int]]) -> Iterator[dict[str, Any]]:
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


def attribute_kinds(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Attribute -> `list`, `number` or `text`, whichever holds all its values."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row["attributes"].items():
            kind = _kind(value)
            known = kinds.setdefault(name, kind)
            if known != kind:
                kinds[name] = "list" if "list" in (known, kind) else "text"
    return dict(sorted(kinds.items()))


def _kind(value: Attribute) -> str:
    if isinstance(value, list):
        return "list"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "text"


def _cell(value: Attribute | None, kind: str) -> Any:
    if value is None:
        return None
    if kind == "list":
        return [text(v) for v in value] if isinstance(value, list) else [text(value)]
    return float(value) if kind == "number" and not isinstance(value, list | str) else text(value)


def text(value: Any) -> str:
    """Attribute values as they are compared: text, with JSON's words for booleans."""
    return value if isinstance(value, str) else json.dumps(value)


def file_facts(path: Path) -> dict[str, Any]:
    """Size and digest of a file: XXH3, since this finds accidents and costs no more than reading."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def write(
    rows: Sequence[dict[str, Any]],
    out: Path,
    *,
    max_length: int,
    tokenizer: str | None,
    too_long: int,
    turns_left_out: int = 0,
    known: Sequence[Origin] = (),
) -> dict[str, Any]:
    """Write sorted rows as columns: an index that curation scans, and the texts, read only for chosen rows."""
    kinds = attribute_kinds(rows)
    content = hashlib.sha256()
    for row in rows:
        content.update(hashlib.sha256(canonical_json(row).encode()).digest())
    out.mkdir(parents=True, exist_ok=True)
    columns: dict[str, pa.Array] = {
        "hash": pa.array([r["hash"] for r in rows], pa.uint64()),
        "n_tokens": pa.array([r["n_tokens"] for r in rows], pa.int32()),
        "quality": pa.array([r["quality"] for r in rows], pa.int8()),
        "window": pa.array([r["window"] for r in rows], pa.int16()),
        "windows": pa.array([r["windows"] for r in rows], pa.int16()),
    }
    for name, kind in kinds.items():
        cells = [_cell(r["attributes"].get(name), kind) for r in rows]
        if kind == "list":
            columns[f"attribute:{name}"] = pa.array(cells, pa.list_(pa.string()))
        elif kind == "number":
            columns[f"attribute:{name}"] = pa.array(cells, pa.float64())
        else:
            columns[f"attribute:{name}"] = pa.array(cells, pa.string())
    pq.write_table(pa.table(columns), out / INDEX, compression="zstd")
    texts = pa.table(
        {
            "id": pa.array([r["id"] for r in rows]),
            "messages": pa.array([r["messages"] for r in rows], MESSAGES),
        }
    )
    pq.write_table(texts, out / ROWS, compression="zstd", row_group_size=ROW_GROUP)
    return write_manifest(
        out,
        groups=[(r["dataset"], r["bucket"], r["quality"], r["n_tokens"]) for r in rows],
        kinds=kinds,
        digest=content.hexdigest(),
        max_length=max_length,
        tokenizer=tokenizer,
        too_long=too_long,
        turns_left_out=turns_left_out,
        known=known,
    )


def write_manifest(
    out: Path,
    *,
    groups: Sequence[tuple[str, str, int, int]],
    kinds: dict[str, str],
    digest: str,
    max_length: int,
    tokenizer: str | None,
    too_long: int,
    turns_left_out: int = 0,
    known: Sequence[Origin] = (),
) -> dict[str, Any]:
    """The manifest: digests of the files, which must be there; where each bucket lies, and its rows and tokens by
    quality. `groups` is per row, in row order."""
    buckets: dict[str, dict[str, Any]] = {}
    for position, (dataset, bucket, quality, tokens) in enumerate(groups):
        entry = buckets.setdefault(dataset, {}).setdefault(
            bucket, {"start": position, "end": position, "stock": {}}
        )
        entry["end"] = position + 1
        stock = entry["stock"].setdefault(str(quality), [0, 0])
        stock[0] += 1
        stock[1] += tokens
    manifest = {
        "version": VERSION,
        "files": {name: file_facts(out / name) for name in (INDEX, ROWS)},
        "rows": len(groups),
        "digest": digest,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "too_long": too_long,
        "turns_left_out": turns_left_out,
        "attributes": kinds,
        "datasets": buckets,
        "origins": [origin.json_data() for origin in known],
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest
