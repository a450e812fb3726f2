"""`pool import`: files as people have them become pool rows or suite prompts; every row that cannot is named.

Rows stream: one at a time goes in, is checked, and is written. Nothing is written where a row is bad, unless bad rows are
left out on purpose; what is left out is counted, by reason, in the card beside the file (`training.data.provenance`).

A pool row needs a bucket and a quality. Where the file has none, the bucket is `unlabelled` and the quality 1, so that
nobody trains on it by accident; `pool label` puts a judge's in their place.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from pydantic import ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, canonical_json
from mosaic.core.types.data import Example
from mosaic.core.types.evaluation import ROLES, Prompt
from training.data.importers.chats import (
    SHAPES,
    Chat,
    Shape,
    Unusable,
    check,
    check_numbers,
    mapped,
    row_fields,
)
from training.data.importers.containers import BadRow, read
from training.data.importers.prompts import PROMPT_SHAPES, RECORDED, PromptShape, recorded
from training.data.outputs import check_place
from training.data.provenance import LICENCES, SUITE_CARD, UNKNOWN, Origin, card_of, write_card

UNLABELLED = "unlabelled"
UNNAMED = "-"
NO_QUALITY = "rows without a quality: 1 until they are labelled"
NO_BUCKET = f"rows without a bucket: {UNLABELLED!r} until they are labelled"
BATCH = 2048
SHOWN = 20
FORMATS = (*SHAPES, "map", *PROMPT_SHAPES)


@dataclass(frozen=True)
class ImportJob:
    """What to import. `shape` is one of FORMATS; `mapping` the text of `--map`; `source` and `licence` go on the card.

    `quality` and `bucket` are for rows that carry none. `skip_bad` leaves bad rows out instead of refusing. Rows that
    contaminate a suite of one of the folders `without` are left out (`training.data.contamination`).
    """

    sources: Sequence[str]
    shape: str
    dataset: str
    mapping: str | None = None
    split: str = "train"
    name: str | None = None
    quality: int | None = None
    bucket: str | None = None
    skip_bad: bool = False
    source: str | None = None
    licence: str | None = None
    command: str = ""
    without: Sequence[Path] = ()


@dataclass
class Tally:
    """What became of the rows. `shown` holds the first bad ones as `place: reason`, `unseen` the fields of `--map` that
    no row has had so far."""

    read: int = 0
    rows: int = 0
    bad: int = 0
    unseen: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def refuse(self, place: str, reason: str) -> None:
        self.bad += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place}: {reason}")

    def data(self) -> dict[str, Any]:
        return {"read": self.read, "rows": self.rows, "bad": self.bad, "bad_rows": self.shown,
                "left_out": dict(self.left_out), "notes": dict(self.notes)}  # fmt: skip

    def complaint(self) -> str:
        more = (
            f"\n  ... and {self.bad - len(self.shown):,} more" if self.bad > len(self.shown) else ""
        )
        rows = "row" if self.bad == 1 else "rows"
        return (
            f"{self.bad:,} bad {rows} of {self.read:,}:\n"
            + "\n".join(f"  {line}" for line in self.shown)
            + more
        )


def _check_names(job: ImportJob) -> None:
    for option, name in (("--dataset", job.dataset), ("--bucket", job.bucket)):
        if name is not None and not LABEL.fullmatch(name):
            raise UsageError(f"{option} {name!r} is no name: {NAMES}")


def _shape(job: ImportJob) -> Shape:
    if job.shape == "map":
        if not job.mapping:
            raise UsageError(
                "--as map needs --map, such as --map messages=dialogue,role=speaker,content=text"
            )
        return mapped(job.mapping)
    if job.mapping:
        raise UsageError(f"--map goes with --as map, not with --as {job.shape}")
    if job.shape not in SHAPES:
        raise UsageError(
            f"--as {job.shape} has prompts without answers, so it makes a suite, not pool rows: give --suite OBJECTIVE"
            if job.shape in PROMPT_SHAPES
            else f"--as {job.shape}: no such shape; there are {', '.join(FORMATS)}"
        )
    return SHAPES[job.shape]


def import_rows(
    job: ImportJob, out: Path, progress: Callable[[int], None] = lambda rows: None
) -> Tally:
    """Write pool rows to `out` (.jsonl or .parquet) and the card beside it. UsageError naming the bad rows."""
    _check_names(job)
    shape = _shape(job)
    if out.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"--out {out}: give a file that ends in .jsonl or .parquet")
    _absent(out)
    check_place(out)
    tally = Tally()
    seen: dict[str, str] = {}
    partial = out.with_name(f".{out.name}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("w", encoding="utf-8") as stream:
            made = (
                _example(job, shape, place, row, seen, tally)
                for place, row in _rows(job, tally, progress)
            )
            for example in _clean(job, (e for e in made if e is not None), tally):
                stream.write(canonical_json(example) + "\n")
                tally.rows += 1
        _settle(job, tally, f"{out} was not written")
        if out.suffix == ".parquet":
            from training.data.importers.parquet import rewrite

            rewrite(partial, partial)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    write_card(card_of(out), _origin(job, tally))
    return tally


def _rows(
    job: ImportJob, tally: Tally, progress: Callable[[int], None]
) -> Iterator[tuple[str, Any]]:
    tally.unseen = row_fields(job.mapping) if job.mapping else set()
    for source in job.sources:
        for place, row in read(source, job.split, job.name):
            tally.read += 1
            if tally.read % 10_000 == 0:
                progress(tally.read)
            if isinstance(row, BadRow):
                tally.refuse(place, row.reason)
            else:
                if tally.unseen:
                    tally.unseen.difference_update(row)
                yield place, row


def _clean(
    job: ImportJob, examples: Iterator[dict[str, Any]], tally: Tally
) -> Iterator[dict[str, Any]]:
    """The rows that stand in no suite of `job.without`."""
    if not job.without:
        yield from examples
        return
    from training.data.contamination import touched

    search = touched([prompt for folder in job.without for prompt in _suite_prompts(folder)])
    while batch := list(itertools.islice(examples, BATCH)):
        asked = [
            (e["id"], [m["content"] for m in e["messages"] if m["role"] == "user"]) for e in batch
        ]
        dropped = search(asked)
        tally.left_out["stands in a suite (--without)"] += len(dropped)
        yield from (e for e in batch if e["id"] not in dropped)


def _suite_prompts(folder: Path) -> list[Prompt]:
    prompts = []
    for role in ROLES:
        path = folder / f"{role}.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise UsageError(
                f"--without {folder}: {path.name}: {error.strerror}; give a suite's folder"
            ) from None
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                prompts.append(Prompt.model_validate_json(line))
            except ValidationError as error:
                raise UsageError(
                    f"{path}:{number}: not a prompt: {error.errors()[0]['msg']}"
                ) from None
    return prompts


def _example(
    job: ImportJob, shape: Shape, place: str, row: Any, seen: dict[str, str], tally: Tally
) -> dict[str, Any] | None:
    """The pool row as plain data, or None where it is bad or a repetition. Equal chats without an id are one row."""
    try:
        chat = shape(row)
        check(chat.messages)
        said = _digest(
            "".join(f"{m['role']} {len(m['content'])} {m['content']}" for m in chat.messages)
        )
        key = chat.id or said
        identifier = f"{job.dataset}-{key}"
        if chat.bucket is not None and not LABEL.fullmatch(chat.bucket):
            raise Unusable(f"bucket: {chat.bucket[:60]!r} is no name: {NAMES}")
        if identifier in seen:
            if chat.id is None:
                tally.left_out["repeats another row word for word"] += 1
                return None
            raise Unusable(f"id: {chat.id!r} stands at {seen[identifier]} already")
        example = {
            "id": identifier,
            "dataset": job.dataset,
            "bucket": chat.bucket or job.bucket or UNLABELLED,
            "messages": chat.messages,
            "quality": _quality(chat, job),
            "attributes": chat.attributes,
        }
        if chat.attributes:
            attributes = Example.model_validate(example).attributes
            canonical_json(attributes).encode()
            check_numbers(attributes)
            example["attributes"] = attributes
        identifier.encode()
    except Unusable as error:
        tally.refuse(place, str(error))
        return None
    except UnicodeEncodeError as error:
        tally.refuse(place, _half(error))
        return None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        tally.refuse(place, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        return None
    seen[identifier] = place
    if chat.quality is None and job.quality is None:
        tally.notes[NO_QUALITY] += 1
    if chat.bucket is None and job.bucket is None:
        tally.notes[NO_BUCKET] += 1
    if chat.unverifiable:
        tally.notes["constraints without parameters: unverifiable, kept as names only"] += (
            chat.unverifiable
        )
    return example


def _quality(chat: Chat, job: ImportJob) -> int:
    if chat.quality is None:
        return job.quality or 1
    value = chat.quality
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip() in {"1", "2", "3", "4", "5"}:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 5:
        raise Unusable(f"quality: {chat.quality!r} is not a whole number from 1 to 5")
    return value


def _half(error: UnicodeEncodeError) -> str:
    return f"half of a character (a lone surrogate, {error.object[error.start]!a}) in a text"


def _digest(text: str) -> str:
    """A hash of a text. UnicodeEncodeError for half of a character, which JSON can hold and UTF-8 cannot."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def import_suite(job: ImportJob, objective: str, out: Path, per_role: int) -> Tally:
    """Write suite prompts of an objective into the folder `out`, and the card.

    The three roles are disjoint, `per_role` prompts each (all in thirds where the file has fewer), chosen by a hash of
    the request, so that the order of the file does not matter. UsageError naming the bad rows.
    """
    _check_names(job)
    make = _prompt_shape(job, objective)
    check_place(out / SUITE_CARD)
    _absent(out / SUITE_CARD, *(out / f"{role}.jsonl" for role in ROLES))
    tally = Tally()
    found: dict[str, Prompt] = {}
    for place, row in _rows(job, tally, lambda rows: None):
        try:
            prompt, left = make(row, UNNAMED)
            if prompt:
                asked = (
                    prompt.turns[0] if job.shape in PROMPT_SHAPES else [prompt.system, prompt.turns]
                )
                name = f"{job.dataset}-{_digest(canonical_json(asked))[:16]}"
                prompt = prompt.model_copy(update={"id": name})
                _digest(canonical_json(prompt.model_dump()))
        except UnicodeEncodeError as error:
            tally.refuse(place, _half(error))
            continue
        except (Unusable, ValidationError) as error:
            tally.refuse(place, str(error).splitlines()[0])
            continue
        for reason, count in left.items():
            tally.left_out[f"unverifiable constraint: {reason}"] += count
        if prompt is None:
            tally.left_out["prompts with no verifiable constraint"] += 1
        elif (order := _digest(canonical_json(prompt.turns))) in found:
            tally.left_out["repeats another prompt word for word"] += 1
        else:
            found[order] = prompt
    _settle(job, tally, f"{out} was not written", rows=len(found))
    chosen = [found[key] for key in sorted(found)]
    size = min(per_role, len(chosen) // len(ROLES))
    if size == 0:
        raise UsageError(
            f"{', '.join(job.sources)}: {len(chosen)} usable prompts cannot fill three roles"
        )
    out.mkdir(parents=True, exist_ok=True)
    for number, role in enumerate(ROLES):
        part = chosen[number * size : (number + 1) * size]
        text = "".join(canonical_json(p.json_data()) + "\n" for p in part)
        (out / f"{role}.jsonl").write_text(text, encoding="utf-8")
    tally.rows = size * len(ROLES)
    if len(chosen) > tally.rows:
        tally.left_out["not drawn (see --per-role)"] = len(chosen) - tally.rows
    write_card(out / SUITE_CARD, _origin(job, tally))
    return tally


def _prompt_shape(job: ImportJob, objective: str) -> PromptShape:
    if job.shape in PROMPT_SHAPES:
        wanted, shape = PROMPT_SHAPES[job.shape]
        if objective != wanted:
            raise UsageError(f"--as {job.shape} makes prompts of {wanted}, not of {objective}")
        return shape
    if objective not in RECORDED:
        raise UsageError(
            f"--suite {objective}: recorded chats make suites of {' or '.join(RECORDED)}; verifiable constraints come "
            "with their parameters in --as ifeval"
        )
    return recorded(_shape(job), objective)


def _absent(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise UsageError(f"{path} exists; name another --out")


def _settle(job: ImportJob, tally: Tally, consequence: str, rows: int | None = None) -> None:
    if tally.bad and not job.skip_bad:
        raise UsageError(
            f"{tally.complaint()}\n{consequence}; mend them, or leave them out with --skip-bad"
        )
    if not (tally.rows if rows is None else rows):
        detail = f"\n{tally.complaint()}" if tally.bad else ""
        raise UsageError(f"{', '.join(job.sources)}: no usable row in them{detail}")
    if tally.unseen:
        raise UsageError(
            f"--map: no row has a field {', '.join(map(repr, sorted(tally.unseen)))}\n{consequence}"
        )
    if tally.bad:
        tally.left_out["bad rows"] = tally.bad


def _origin(job: ImportJob, tally: Tally) -> Origin:
    named = [s if s.startswith("hub:") else Path(s).name for s in job.sources]
    return Origin(
        dataset=job.dataset,
        source=job.source or ", ".join(named),
        licence=job.licence or LICENCES.get(job.shape, UNKNOWN),
        shape=job.shape,
        rows=tally.rows,
        left_out=dict(tally.left_out),
        command=job.command,
    )
