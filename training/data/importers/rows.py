"""`pool import`: files of chats become pool rows. One row at a time is read, checked and written.

A pool row needs a bucket and a quality. If the file has none, the bucket is `unlabelled` and the
quality 1, so that nobody trains on it by accident; `pool label` puts a judge's in their place.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from pydantic import ValidationError

from eval.suite import read_prompts
from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, Attribute, canonical_json
from mosaic.core.types.data import Example
from mosaic.core.types.evaluation import ROLES, Prompt
from training.data.importers.chats import ImportedChat, Shape, check, check_numbers
from training.data.importers.fields import Unusable
from training.data.importers.identifiers import Identifiers
from training.data.importers.job import (
    ImportJob,
    Tally,
    chat_shape,
    check_names,
    check_tally,
    half_character,
    origin,
    text_digest,
    usable_rows,
)
from training.data.importers.slices import category_of, slice_of
from training.data.learnable import CUT, learnable_part, why_nothing
from training.data.outputs import check_absent, check_place
from training.data.provenance import card_of, write_card
from training.models.chat_template import LEARN, Chat

UNLABELLED = "unlabelled"
NO_QUALITY = "rows without a quality: 1 until they are labelled"
NO_BUCKET = f"rows without a bucket: {UNLABELLED!r} until they are labelled"
UNVERIFIABLE = "constraints without parameters: unverifiable, kept as names only"
OFF = "answers marked as not to be learnt: kept as context"
BATCH = 2048
# A message has a role and a content, and beside them only the mark of one that is not learnt.
PLAIN_KEYS = 2


class ImportedRow(TypedDict):
    """A pool row as it is written; tokens are counted when the pool is built."""

    id: str
    dataset: str
    bucket: str
    messages: Chat
    quality: int
    attributes: dict[str, Attribute]


def import_rows(
    job: ImportJob, out: Path, progress: Callable[[int], None] = lambda rows: None
) -> Tally:
    """Write pool rows to `out` (.jsonl or .parquet) and the card beside it.

    `progress` is told how many rows were read. Raises UsageError naming the bad rows.
    """
    check_names(job)
    shape = chat_shape(job)
    if out.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"--out {out}: give a file that ends in .jsonl or .parquet")
    check_absent(out)
    check_place(out)
    tally = Tally()
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", encoding="utf-8") as stream:
            for row in _clean(job, _imported(job, shape, tally, progress), tally):
                stream.write(canonical_json(row) + "\n")
                tally.rows += 1
        check_tally(job, tally, tally.rows, f"{out} was not written")
        if out.suffix == ".parquet":
            from training.data.importers.parquet import rewrite

            rewrite(partial, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    write_card(card_of(out), origin(job, tally))
    return tally


def _imported(
    job: ImportJob, shape: Shape, tally: Tally, progress: Callable[[int], None]
) -> Iterator[ImportedRow]:
    """The rows that can be used; the others are tallied."""
    identifiers = Identifiers(job.dataset, job.sources, job.id_prefix)
    for place, row in usable_rows(job, tally, progress):
        try:
            chat = shape(row)
            if job.slice_from:
                chat.bucket = slice_of(row, job.slice_from)
                tally.note_slice(chat.bucket, category_of(row, job.slice_from))
            imported = _pool_row(job, chat, place, identifiers, tally)
        except Unusable as error:
            tally.refuse(place, str(error))
        except UnicodeEncodeError as error:
            tally.refuse(place, half_character(error))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            tally.refuse(place, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        else:
            if imported:
                yield imported


def _pool_row(
    job: ImportJob, chat: ImportedChat, place: str, identifiers: Identifiers, tally: Tally
) -> ImportedRow | None:
    """The pool row of a chat, or None for a repetition.

    Equal chats without an id are one row. Raises Unusable, UnicodeEncodeError or ValidationError
    for a bad row.
    """
    check(chat.messages)
    messages = learnable_part(chat.messages)
    if not messages:
        raise Unusable(why_nothing(chat.messages))
    if chat.bucket is not None and not LABEL.fullmatch(chat.bucket):
        raise Unusable(f"bucket: {chat.bucket[:60]!r} cannot be a name: {NAMES}")
    quality = _quality(chat, job)
    row: ImportedRow = {
        "id": chat.id or UNLABELLED,
        "dataset": job.dataset,
        "bucket": chat.bucket or job.bucket or UNLABELLED,
        "messages": messages,
        "quality": quality,
        "attributes": {},
    }
    if chat.attributes:
        row["attributes"] = _attributes(row, chat)
    identifier, note = identifiers.new(chat.id, text_digest(_said(messages)), place)
    if identifier is None:
        tally.left_out[str(note)] += 1
        return None
    row["id"] = identifier
    _count(job, chat, row, tally)
    if note:
        tally.notes[note] += 1
    return row


def _said(messages: Chat) -> str:
    """All that a chat says, so that equal texts are equal chats."""
    said = "".join([f"{m['role']} {len(m['content'])} {m['content']}" for m in messages])
    if sum(map(len, messages)) == PLAIN_KEYS * len(messages):
        return said
    return said + "".join("-" if LEARN in message else "+" for message in messages)


def _count(job: ImportJob, chat: ImportedChat, row: ImportedRow, tally: Tally) -> None:
    """Note what was changed, assumed or not read of a row that is taken."""
    if chat.quality is None and job.quality is None:
        tally.notes[NO_QUALITY] += 1
    if chat.bucket is None and job.bucket is None:
        tally.notes[NO_BUCKET] += 1
    if chat.unverifiable:
        tally.notes[UNVERIFIABLE] += chat.unverifiable
    messages = row["messages"]
    if len(messages) < len(chat.messages):
        tally.notes[CUT] += len(chat.messages) - len(messages)
    off = sum(map(len, messages)) - PLAIN_KEYS * len(messages)
    if off:
        tally.notes[OFF] += off
    for name in chat.unread:
        tally.note_unread(name)


def _attributes(row: ImportedRow, chat: ImportedChat) -> dict[str, Attribute]:
    """A chat's attributes as a pool can hold them."""
    # The messages were checked when they were read; one is enough for a row to be whole.
    whole = {**row, "messages": row["messages"][:1], "attributes": chat.attributes}
    checked = Example.model_validate(whole).attributes
    canonical_json(checked).encode()
    check_numbers(checked)
    return checked


def _quality(chat: ImportedChat, job: ImportJob) -> int:
    """A row's own quality, that of the job, or 1. Raises Unusable for anything but 1 to 5."""
    value = chat.quality
    if value is None:
        return job.quality or 1
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip() in {"1", "2", "3", "4", "5"}:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise Unusable(f"quality: {chat.quality!r} is not a whole number from 1 to 5")
    return value


def _clean(job: ImportJob, rows: Iterator[ImportedRow], tally: Tally) -> Iterator[ImportedRow]:
    """The rows that do not stand in a suite of `job.without`."""
    if not job.without:
        yield from rows
        return
    from training.data.contamination import touched

    prompts: list[Prompt] = []
    for folder in job.without:
        prompts += _suite_prompts(folder)
    search = touched(prompts)
    while batch := list(itertools.islice(rows, BATCH)):
        dropped = search([(row["id"], _requests(row["messages"])) for row in batch])
        tally.left_out["stands in a suite (--without)"] += len(dropped)
        for row in batch:
            if row["id"] not in dropped:
                yield row


def _requests(messages: Chat) -> list[str]:
    """What the user says."""
    return [message["content"] for message in messages if message["role"] == "user"]


def _suite_prompts(folder: Path) -> list[Prompt]:
    """All prompts of a suite's folder. Raises UsageError with file:line for anything else."""
    prompts: list[Prompt] = []
    there = [role for role in ROLES if (folder / f"{role}.jsonl").is_file()]
    for role in there if there == ["audit"] else ROLES:  # an independent suite has no other role
        if not (folder / f"{role}.jsonl").is_file():
            raise UsageError(
                f"--without {folder}: {role}.jsonl: no such file; give a suite's folder"
            )
        prompts += read_prompts(folder, role)[0]
    return prompts
