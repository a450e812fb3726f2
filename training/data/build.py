"""From files of chats to a pool folder: rows checked, tokens counted, long chats windowed.

Rows are stored by data set, bucket and hash of the id, so that a bucket is one slice of every
column and equal keys are ordered by id. The same rows in other files or another order make the
same pool.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import xxhash
from pydantic import ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, canonical_json
from mosaic.core.types.data import Example
from training.data.faults import MAX_SHOWN, Faults
from training.data.importers.chats import check_numbers
from training.data.importers.containers import read_file
from training.data.importers.fields import Unusable
from training.data.importers.reading import BadRow, Row, Unread
from training.data.learnable import LATE_SYSTEM, learnable_part, why_nothing
from training.data.outputs import check_place
from training.data.pool_format import (
    INDEX,
    MANIFEST,
    ROWS,
    Manifest,
    PoolFacts,
    PoolRow,
    write_pool,
)
from training.data.provenance import origins, read_cards
from training.data.windows import windows
from training.models.chat_template import LEARN, Chat, ChatError, Message
from training.models.tokenizer import TokenCounter

TOO_LONG = "too-long.jsonl"
MAX_TOKENS = 2**31 - 1
COUNT_BATCH = 512
COLUMNS = (".parquet", ".arrow")


class TooLong(TypedDict):
    """A line of `too-long.jsonl`: a chat that lost turns, or all of itself."""

    id: str
    dataset: str
    place: str
    turns_left_out: int
    in_pool: bool


PlacedExample = tuple[str, Example]
Windows = tuple[list[tuple[Chat, int]], int]
"""(messages, tokens) of each window, and how many turns are in none of them."""


def read_rows(path: Path) -> Iterator[tuple[str, Row | BadRow]]:
    """(file:line, row as plain data, or why it is none) of a file of pool rows.

    Raises UsageError for a file that cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give JSONL or Parquet files of pool rows")
    columns = path.suffix in COLUMNS
    for where, row in read_file(path):
        if isinstance(row, Unread):
            raise UsageError(f"{where}: {row.what}; give files of pool rows")
        if columns and not isinstance(row, BadRow):
            row = _without_nulls(row)
        yield where, row


def _without_nulls(row: Row) -> Row:
    """A row without the nulls that Parquet puts where a row lacks what another row has."""
    messages = row.get("messages")
    if isinstance(messages, list) and any(LEARN in m for m in messages if isinstance(m, dict)):
        row["messages"] = [_without_null_mark(message) for message in messages]
    attributes = row.get("attributes")
    if isinstance(attributes, dict):
        row["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return {k: v for k, v in row.items() if v is not None}


def _without_null_mark(message: object) -> object:
    if isinstance(message, dict) and message.get(LEARN, False) is None:
        return {name: value for name, value in message.items() if name != LEARN}
    return message


def parse(
    path: Path,
    seen: dict[str, str],
    faults: Faults,
    defaults: Mapping[str, object] | None = None,
) -> Iterator[PlacedExample]:
    """(file:line, example) of each row of a file that can be trained on, every field checked.

    `seen` maps the ids so far to where they were read; `defaults` are fields that a row may lack.
    The others are added to `faults`, which the caller refuses when all are read.
    """
    for where, row in read_rows(path):
        if isinstance(row, BadRow):
            faults.add(f"{where}: {row.reason}")
            continue
        try:
            example = _example(where, {**defaults, **row} if defaults else row)
            if example.id in seen:
                raise UsageError(
                    f"{where}: the id {example.id!r} was used at {seen[example.id]} already; ids "
                    "are unique in a pool"
                )
            seen[example.id] = where
            _check_learnable(where, example)
        except UsageError as error:
            faults.add(str(error))
            continue
        yield where, example


def _example(where: str, row: Row) -> Example:
    """A row as an example whose texts, numbers and names can be stored."""
    try:
        example = Example.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(row)"
        shown = f" (value: {str(first.get('input'))[:60]!r})"
        if first["type"] == "missing":
            shown = ""
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
    for field, name in (("dataset", example.dataset), ("bucket", example.bucket)):
        if not LABEL.fullmatch(name):
            raise UsageError(f"{where}: {field}: {name[:60]!r} cannot be a name: {NAMES}")
    return example


def _check_learnable(where: str, example: Example) -> None:
    """Raise UsageError unless a turn is learnt, no answer is empty, and system comes first."""
    for number, message in enumerate(example.messages):
        if message.role == "system" and number:
            raise UsageError(f"{where}: {LATE_SYSTEM}")
        if not message.learn and message.role != "assistant":
            raise UsageError(
                f"{where}: messages.{number}.learn: only turns of the assistant are learnt, this "
                f"is the {message.role}'s"
            )
        if message.role != "assistant" and "learn" in message.model_fields_set:
            raise UsageError(
                f"{where}: messages.{number}.learn: a turn of the {message.role} is marked to be "
                "learnt, but only the assistant's are"
            )
        if message.role == "assistant" and not message.content.strip():
            raise UsageError(
                f"{where}: messages.{number}.content: empty, so there is nothing to learn from"
            )
    last = example.messages[-1]
    if last.role == "assistant" and last.learn:
        return
    chat = _plain(example)
    if not learnable_part(chat):
        raise UsageError(f"{where}: {why_nothing(chat)}")


def build(
    sources: Sequence[Path],
    out: Path,
    *,
    model: Path | None,
    max_length: int,
    trust_token_counts: bool,
    licences: Mapping[str, str] | None = None,
    template: Path | None = None,
) -> Manifest:
    """Write the pool folder `out`; its manifest, which is written last.

    `template` is a file that replaces the chat template of `model`.

    Turns above `max_length` tokens are left out, and chats without a turn that fits: the manifest
    counts both (`too_long` chats, `turns_left_out` of the others), `too-long.jsonl` names them.
    Turns behind a chat's last answer that is learnt are cut off and counted (`turns_cut`).
    Cards beside the sources (`training.data.provenance`) go into the manifest; `licences` (by data
    set) override them. Raises UsageError with file:line for every fault.
    """
    _check_request(sources, out, model, trust_token_counts)
    counter = TokenCounter(model, template) if model and not trust_token_counts else None
    rows: list[PoolRow] = []
    too_long: list[TooLong] = []
    forged: list[str] = []
    refused: list[str] = []
    turns_cut = 0
    for batch in _batches(sources, counter, forged):
        batch, cut = _cut(batch)
        turns_cut += cut
        counted = _counted(batch, counter, max_length, refused)
        for (where, example), (parts, lost) in counted:
            rows.extend(_rows(example, parts))
            if lost or not parts:
                too_long.append(
                    {
                        "id": example.id,
                        "dataset": example.dataset,
                        "place": where,
                        "turns_left_out": lost,
                        "in_pool": bool(parts),
                    }
                )
    _refuse_rows(forged, refused)
    if not rows:
        detail = ""
        if too_long:
            detail = (
                f"; none of {len(too_long):,} has a turn that fits in --max-length {max_length}"
            )
        raise UsageError(f"{', '.join(map(str, sources))}: no row in them{detail}")
    counts = Counter(row["dataset"] for row in rows if row["window"] == 0)
    known = origins(read_cards(sources), dict(counts), dict(licences or {}))
    rows.sort(key=lambda r: (r["dataset"], r["bucket"], r["hash"], r["id"], r["window"]))
    out.mkdir(parents=True, exist_ok=True)
    if too_long:
        lines = [canonical_json(entry) + "\n" for entry in too_long]
        (out / TOO_LONG).write_text("".join(lines), encoding="utf-8")
    gone, turns_left_out = _losses(too_long)
    facts = PoolFacts(
        max_length=max_length,
        tokenizer=counter.digest if counter else None,
        template_day=counter.day if counter else None,
        too_long=gone,
        turns_left_out=turns_left_out,
        turns_cut=turns_cut,
        origins=known,
    )
    return write_pool(rows, out, facts)


def _check_request(
    sources: Sequence[Path], out: Path, model: Path | None, trust_token_counts: bool
) -> None:
    """Raise UsageError if nothing can be written at `out`, or tokens cannot be counted."""
    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a pool already; name a new folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a new folder")
    check_place(out)
    written = [(out / name).resolve() for name in (INDEX, ROWS, TOO_LONG)]
    for source in sources:
        if source.resolve() in written:
            raise UsageError(
                f"--out {out}: the pool's {source.name} would replace the source {source}; "
                "name another folder"
            )
    if model is None and not trust_token_counts:
        raise UsageError(
            "tokens cannot be counted: give --model DIR, or --trust-token-counts to take n_tokens "
            "as given"
        )


def _batches(
    sources: Sequence[Path], counter: TokenCounter | None, forged: list[str]
) -> Iterator[list[PlacedExample]]:
    """Examples of all sources in batches that are counted together.

    Rows with a control token of the model written out in a text are left out, and added to
    `forged` with their places.
    """
    seen: dict[str, str] = {}
    faults = Faults()
    examples = itertools.chain.from_iterable(parse(source, seen, faults) for source in sources)
    while batch := list(itertools.islice(examples, COUNT_BATCH)):
        countable = []
        for where, example in batch:
            token = fault = None
            if counter:
                token = counter.control_token(message.content for message in example.messages)
            else:
                fault = _miscounted(example)
            if token:
                forged.append(f"{where}: {token}")
            elif fault:
                faults.add(f"{where}: {fault}")
            else:
                countable.append((where, example))
        yield countable
    faults.refuse()


def _miscounted(example: Example) -> str | None:
    """Why the token count that a row came with cannot be taken; None if it can."""
    if example.n_tokens is None:
        return "n_tokens is missing; count tokens with --model DIR instead"
    if example.n_tokens > MAX_TOKENS:
        return f"n_tokens: {example.n_tokens} is more than {MAX_TOKENS:,}"
    end = len(learnable_part(_plain(example)))
    if end < len(example.messages):
        return (
            f"messages.{end}: a turn after the last answer teaches nothing, and n_tokens counts "
            "it; take it out, or count tokens with --model DIR"
        )
    return None


def _refuse_rows(forged: Sequence[str], refused: Sequence[str]) -> None:
    """Raise UsageError with all rows that hold control tokens or that the template refuses."""
    complaints = []
    if forged:
        complaints.append(
            "rows hold control tokens of the model, which would end a turn or begin another's; "
            f"write them otherwise, or leave these rows out:\n  {_some_of(forged)}"
        )
    if refused:
        complaints.append(
            f"the model's chat template refuses {len(refused):,} rows, or their answers cannot be "
            "told apart exactly in what it makes of them; change these rows or leave them out:\n  "
            + _some_of(refused)
        )
    if complaints:
        raise UsageError("\n".join(complaints))


def _some_of(lines: Sequence[str]) -> str:
    """The first lines, and how many more there are."""
    shown = "\n  ".join(lines[:MAX_SHOWN])
    if len(lines) > MAX_SHOWN:
        shown += f"\n  and {len(lines) - MAX_SHOWN:,} more"
    return shown


def _cut(batch: Sequence[PlacedExample]) -> tuple[list[PlacedExample], int]:
    """The examples without turns behind their last answer, and how many turns that were."""
    kept: list[PlacedExample] = []
    cut = 0
    for where, example in batch:
        last = example.messages[-1]
        if last.role == "assistant" and last.learn:
            kept.append((where, example))
            continue
        end = len(learnable_part(_plain(example)))
        lost = len(example.messages) - end
        if lost:
            cut += lost
            example = example.model_copy(update={"messages": example.messages[:end]})
        kept.append((where, example))
    return kept, cut


def _losses(too_long: Sequence[TooLong]) -> tuple[int, int]:
    """Chats that are not in the pool at all, and turns that the others lost."""
    gone = lost = 0
    for entry in too_long:
        if entry["in_pool"]:
            lost += entry["turns_left_out"]
        else:
            gone += 1
    return gone, lost


def _counted(
    batch: Sequence[PlacedExample],
    counter: TokenCounter | None,
    max_length: int,
    refused: list[str],
) -> list[tuple[PlacedExample, Windows]]:
    """Each example with its windows: itself if it fits or its count is trusted.

    Examples that the template refuses are left out, and added to `refused` with the reason.
    """
    if counter is None:
        return [(placed, _trusted(placed[1])) for placed in batch]
    if not batch:
        return []
    chats = [_plain(example) for _, example in batch]
    try:
        totals: Sequence[int | None] = counter(chats)
    except ChatError:
        # Some are refused; one by one, so that each is named with its own reason.
        totals = [None] * len(batch)
    counted: list[tuple[PlacedExample, Windows]] = []
    for placed, chat, known in zip(batch, chats, totals, strict=True):
        try:
            total = counter([chat])[0] if known is None else known
            parts: Windows = ([(chat, total)], 0)
            if total > max_length:
                parts = windows(chat, max_length, counter)
        except ChatError as error:
            refused.append(f"{placed[0]}: messages: {error.reason}")
            continue
        counted.append((placed, parts))
    return counted


def _trusted(example: Example) -> Windows:
    """An example with the count that it came with, which was checked."""
    assert example.n_tokens is not None
    return [(_plain(example), example.n_tokens)], 0


def _plain(example: Example) -> Chat:
    chat: Chat = []
    for message in example.messages:
        turn: Message = {"role": message.role, "content": message.content}
        if not message.learn:
            turn["learn"] = False
        chat.append(turn)
    return chat


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
