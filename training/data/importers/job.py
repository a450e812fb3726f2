"""`pool import`: what is asked for, and what became of the rows.

Files as people have them become pool rows (`rows`) or suite prompts (`suites`). Every row that
cannot is named. Nothing is written if a row is bad, unless bad rows are left out on purpose. What
is left out is counted, by reason, in the card beside the file (`training.data.provenance`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from mosaic.core.errors import UsageError
from mosaic.core.types.base import LABEL, NAMES, JsonObject
from training.data.importers.chats import READ, SHAPES, Shape, alpaca_request, mapped, row_fields
from training.data.importers.containers import read
from training.data.importers.fields import RowFields, Unusable
from training.data.importers.prompts import PROMPT_READ, PROMPT_SHAPES
from training.data.importers.reading import BadRow, Row, Unread
from training.data.importers.where import MISSING, conditions, field_of, unmet
from training.data.provenance import LICENCES, UNKNOWN, Origin

SHOWN = 20
MAX_NOTES = 100
PROGRESS_EVERY = 10_000
FORMATS = (*SHAPES, "map", *PROMPT_SHAPES)


@dataclass(frozen=True)
class ImportJob:
    """What to import.

    `shape` is one of FORMATS, `mapping` the text of `--map`; `source` and `licence` go on the card.
    `quality` and `bucket` are for rows that carry none. `skip_bad` leaves bad rows out instead of
    refusing. Rows that contaminate a suite of one of the folders `without` are left out
    (`training.data.contamination`). `where` are conditions `field=value`
    (`training.data.importers.where`), `slice_from` names the field that slices and buckets are
    taken from, `id_prefix` stands between the data set's name and each id.
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
    where: Sequence[str] = ()
    slice_from: str | None = None
    id_prefix: str | None = None


@dataclass
class Tally:
    """What became of the rows.

    `shown` holds the first bad ones as `place: reason`, `unseen` the fields of `--map`, `--where`
    and `--slice-from` that no row has had so far. `left_out` counts rows that were not taken, and
    `notes` what was changed or not read of the others.
    """

    read: int = 0
    rows: int = 0
    bad: int = 0
    unseen: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    # Slice -> the first category that it was named for.
    named: dict[str, str] = field(default_factory=dict)

    def note_slice(self, name: str, category: str) -> None:
        """Count a row whose category has the same short name as another one."""
        first = self.named.setdefault(name, category)
        if first != category:
            self.notes[f"rows in the slice {name}, though other rows of it are {first[:60]!r}"] += 1

    def refuse(self, place: str, reason: str) -> None:
        """Count a bad row."""
        self.bad += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{place}: {reason}")

    def note_unread(self, name: str) -> None:
        """Count a row with a field that is not read. Odd files have a name of their own a row."""
        note = f"rows with a field {name[:60]!r}, which is not read"
        if note not in self.notes and len(self.notes) >= MAX_NOTES:
            note = "rows with other fields, which are not read"
        self.notes[note] += 1

    def data(self) -> JsonObject:
        """Plain JSON data, for a report."""
        return {
            "read": self.read,
            "rows": self.rows,
            "bad": self.bad,
            "bad_rows": list(self.shown),
            "left_out": dict(self.left_out),
            "notes": dict(self.notes),
        }

    def complaint(self) -> str:
        """The bad rows as text, a line each."""
        noun = "row" if self.bad == 1 else "rows"
        lines = [f"{self.bad:,} bad {noun} of {self.read:,}:"]
        lines += [f"  {line}" for line in self.shown]
        if self.bad > len(self.shown):
            lines.append(f"  ... and {self.bad - len(self.shown):,} more")
        return "\n".join(lines)


def check_names(job: ImportJob) -> None:
    """Raise UsageError unless `--dataset` and `--bucket` can be names."""
    for option, name in (("--dataset", job.dataset), ("--bucket", job.bucket)):
        if name is not None and not LABEL.fullmatch(name):
            raise UsageError(f"{option} {name!r} cannot be a name: {NAMES}")


def chat_shape(job: ImportJob, answers: bool = True) -> Shape:
    """How rows become chats, or without `answers` also requests alone.

    Raises UsageError if that is not what the options say.
    """
    if job.shape == "map":
        if not job.mapping:
            raise UsageError(
                "--as map needs --map, such as --map messages=dialogue,role=speaker,content=text"
            )
        return mapped(job.mapping, answers)
    if job.mapping:
        raise UsageError(f"--map goes with --as map, not with --as {job.shape}")
    if job.shape in PROMPT_SHAPES:
        raise UsageError(
            f"--as {job.shape} has prompts without answers, so it makes a suite, not pool rows: "
            "give --suite OBJECTIVE"
        )
    if job.shape not in SHAPES:
        raise UsageError(f"--as {job.shape}: no such shape; there are {', '.join(FORMATS)}")
    if job.shape == "alpaca" and not answers:
        return alpaca_request
    return SHAPES[job.shape]


def row_reading(job: ImportJob, learnt: bool) -> RowFields:
    """The fields of a row itself that the job reads or asks about.

    A field that is only asked about still means what it means: `--where tools.name=x` does not make
    calls of tools text.
    """
    read = READ.get(job.shape) or PROMPT_READ.get(job.shape, frozenset())
    asked = {name for name in (job.slice_from, *conditions(job.where)) if name}
    mapped_fields = row_fields(job.mapping) if job.mapping else set()
    tops = frozenset(name.split(".")[0] for name in asked)
    return RowFields(read | mapped_fields, learnt, tops)


def usable_rows(
    job: ImportJob, tally: Tally, progress: Callable[[int], None], learnt: bool = True
) -> Iterator[tuple[str, Row]]:
    """(place, row) of all sources that meets the conditions.

    Rows that cannot be read, or hold a field that changes their meaning, are tallied as bad. Marks
    of what is learnt matter only if the answers will be `learnt`.
    """
    wanted = conditions(job.where)
    fields = row_reading(job, learnt)
    tally.unseen = row_fields(job.mapping) if job.mapping else set()
    tally.unseen |= {*wanted, *([job.slice_from] if job.slice_from else [])}
    for source in job.sources:
        for place, row in read(source, job.split, job.name):
            if isinstance(row, Unread):
                tally.notes[f"{place}: {row.what}"] += 1
                continue
            tally.read += 1
            if tally.read % PROGRESS_EVERY == 0:
                progress(tally.read)
            if isinstance(row, BadRow):
                tally.refuse(place, row.reason)
                continue
            if tally.unseen:
                tally.unseen = {n for n in tally.unseen if field_of(row, n) is MISSING}
            missed = unmet(row, wanted) if wanted else None
            if missed:
                shown = " or ".join(wanted[missed])
                tally.left_out[f"--where: {missed} is not {shown}"] += 1
                continue
            try:
                unread = fields.check(row)
            except Unusable as error:
                tally.refuse(place, str(error))
                continue
            for name in unread:
                tally.note_unread(name)
            yield place, row


def check_tally(job: ImportJob, tally: Tally, rows: int, consequence: str) -> None:
    """Decide whether what was read may be written.

    `rows` are those that can be used. Raises UsageError for bad rows without `skip_bad`, if no row
    can be used, and for a field that an option names and no row has.
    """
    unseen = ""
    if tally.unseen:
        names = ", ".join(repr(name) for name in sorted(tally.unseen))
        unseen = f"{_asking(job, tally.unseen)}: no row has a field {names}"
    if tally.bad and not job.skip_bad:
        also = f"\n{unseen}" if unseen else ""
        raise UsageError(
            f"{tally.complaint()}{also}\n{consequence}; mend them, or leave them out with --skip-bad"
        )
    if unseen and tally.read:
        raise UsageError(f"{unseen}\n{consequence}")
    if not rows:
        detail = f"\n{tally.complaint()}" if tally.bad else ""
        detail += "".join(f"\n  {count:,}: {what}" for what, count in tally.left_out.items())
        raise UsageError(f"{', '.join(job.sources)}: no usable row in them{detail}")
    if tally.bad:
        tally.left_out["bad rows"] = tally.bad


def _asking(job: ImportJob, names: set[str]) -> str:
    """The option that names a field which no row has."""
    if names & {*conditions(job.where)}:
        return "--where"
    return "--slice-from" if job.slice_from in names else "--map"


def origin(job: ImportJob, tally: Tally) -> Origin:
    """The card's entry for an import. Paths are cut to names: a card may be published."""
    names = [s if s.startswith("hub:") else Path(s).name for s in job.sources]
    return Origin(
        dataset=job.dataset,
        source=job.source or ", ".join(names),
        licence=job.licence or LICENCES.get(job.shape, UNKNOWN),
        shape=job.shape,
        rows=tally.rows,
        left_out=dict(tally.left_out),
        command=job.command,
    )


def text_digest(text: str) -> str:
    """A hash of a text.

    Raises UnicodeEncodeError for half of a character, which JSON can hold and UTF-8 cannot.
    """
    return xxhash.xxh3_128_hexdigest(text.encode())


def half_character(error: UnicodeEncodeError) -> str:
    """What is wrong with a text that cannot be encoded."""
    return f"half of a character (a lone surrogate, {error.object[error.start]!a}) in a text"
