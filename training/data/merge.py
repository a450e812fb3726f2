"""From shards to a pool: rows that were checked and counted, put in order and written.

A shard is what one process or one machine made of its part of the rows: sorted runs
(`training.data.runs`), `too-long.jsonl`, and `shard.json`, which is written last. A pool that is
built in one go is one shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel
from training.data.examples import used_twice
from training.data.faults import Faults
from training.data.outputs import check_place
from training.data.pool_format import (
    COLUMN_TYPES,
    MANIFEST,
    MARKED_MESSAGES,
    MESSAGES,
    Manifest,
    cell,
    joined_kind,
)
from training.data.pool_writer import PoolFacts, PoolWriter
from training.data.provenance import Origin, origins
from training.data.runs import Runs

SHARD, TOO_LONG = "shard.json", "too-long.jsonl"


class Shard(FrozenModel):
    """What a shard is, beside its rows.

    `number` of `of` counts from 1. `sources` are the names of the files that it was made from, and
    `tokenizer`, `template_day` and `max_length` say how, as in a manifest: shards of one pool have
    them in common. `kinds` is attribute -> kind, `chats` data set -> chats; `marked` says whether a
    message is not to be learnt.
    """

    number: int
    of: int
    sources: list[str]
    max_length: int
    tokenizer: str | None
    template_day: str | None
    licences: dict[str, str]
    cards: list[Origin]
    kinds: dict[str, str]
    chats: dict[str, int]
    marked: bool
    turns_cut: int

    def made_alike(self, other: Shard) -> bool:
        """Whether two shards may be parts of one pool."""
        return self._making == other._making

    @property
    def _making(self) -> tuple[object, ...]:
        how = (self.max_length, self.tokenizer, self.template_day, self.licences)
        return (self.of, self.sources, self.cards, *how)


def write_shard(shard: Shard, folder: Path) -> None:
    """Write `shard.json`, when everything else is there."""
    (folder / SHARD).write_text(shard.model_dump_json(indent=1) + "\n")


def read_shard(folder: Path) -> Shard:
    """What a folder says of its shard. Raises UsageError if it is none, or is not finished."""
    try:
        return Shard.model_validate_json((folder / SHARD).read_text())
    except (OSError, ValidationError) as error:
        first = str(error).partition("\n")[0]
        raise UsageError(
            f"{folder}: not a shard, or one that is not finished ({first}); make it with "
            "`python -m mosaic pool build ROWS... --shard I/N --out FOLDER`"
        ) from None


def merge(folders: Sequence[Path], out: Path) -> Manifest:
    """Write the pool folder `out` from all of its shards; the manifest, which is written last.

    Raises UsageError for shards that are missing, or that were not made alike, and with file:line
    for every id that two rows have.
    """
    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a pool already; name a new folder")
    check_place(out)
    shards = _checked_shards(folders)
    runs = Runs(folders)
    _refuse_repeated(runs)
    first = shards[0]
    chats: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for shard in shards:
        chats.update(shard.chats)
        for name, kind in shard.kinds.items():
            kinds[name] = joined_kind(kinds.get(name, kind), kind)
    known = origins(first.cards, dict(sorted(chats.items())), first.licences)
    marked = any(shard.marked for shard in shards)
    writer = PoolWriter(out, dict(sorted(kinds.items())), MARKED_MESSAGES if marked else MESSAGES)
    content = hashlib.sha256()
    for dataset, bucket in runs.cells:
        for rows in runs.sorted_rows((dataset, bucket)):
            for digest in rows["digest"].to_pylist():
                content.update(digest)
            writer.add(dataset, bucket, _index(rows, kinds), _texts(rows, marked))
    too_long, turns_left_out = _carry_too_long(folders, out)
    facts = PoolFacts(
        max_length=first.max_length,
        tokenizer=first.tokenizer,
        template_day=first.template_day,
        too_long=too_long,
        turns_left_out=turns_left_out,
        turns_cut=sum(shard.turns_cut for shard in shards),
        origins=known,
    )
    return writer.close(facts, content.hexdigest())


def _checked_shards(folders: Sequence[Path]) -> list[Shard]:
    """The shards in the folders, which must be all shards of one pool."""
    shards = [read_shard(folder) for folder in folders]
    first = shards[0]
    for folder, shard in zip(folders, shards, strict=True):
        if not first.made_alike(shard):
            raise UsageError(
                f"{folder} is not a shard of the same pool as {folders[0]}: its sources, model, "
                "template, licences, --max-length or number of shards differ"
            )
    numbers = Counter(shard.number for shard in shards)
    missing = [str(n) for n in range(1, first.of + 1) if n not in numbers]
    twice = [str(n) for n, times in sorted(numbers.items()) if times > 1]
    if missing or twice:
        said = [f"shard {', '.join(missing)} of {first.of} is missing"] if missing else []
        said += [f"shard {', '.join(twice)} is given twice"] if twice else []
        raise UsageError(f"{'; '.join(said)}; name the folder of every shard once")
    return shards


def _refuse_repeated(runs: Runs) -> None:
    """Raise UsageError with every id that two chats have."""
    faults = Faults()
    first: dict[str, str] = {}
    for row in runs.repeated():
        if row["id"] in first:
            faults.add(used_twice(row["place"], row["id"], first[row["id"]]))
        first.setdefault(row["id"], row["place"])
    faults.refuse()


def _index(rows: pa.Table, kinds: Mapping[str, str]) -> pa.Table:
    """The columns that curation reads."""
    index = rows.select(["hash", "n_tokens", "quality", "window", "windows"])
    cells: dict[str, list[object]] = {name: [] for name in kinds}
    for text in rows["attributes"].to_pylist() if kinds else ():
        attributes = json.loads(text)
        for name, kind in kinds.items():
            cells[name].append(cell(attributes.get(name), kind))
    for name, kind in kinds.items():
        index = index.append_column(f"attribute:{name}", pa.array(cells[name], COLUMN_TYPES[kind]))
    return index


def _texts(rows: pa.Table, marked: bool) -> pa.Table:
    """`id` and `messages`, without the marks of messages if the pool has none."""
    if marked:
        return rows.select(["id", "messages"])
    messages = rows["messages"].combine_chunks()
    values = messages.values
    plain = pa.StructArray.from_arrays(
        [values.field("role"), values.field("content")], fields=list(MESSAGES.value_type)
    )
    return pa.table(
        {"id": rows["id"], "messages": pa.ListArray.from_arrays(messages.offsets, plain)}
    )


def _carry_too_long(folders: Sequence[Path], out: Path) -> tuple[int, int]:
    """Join the lists of chats that were too long.

    Returns chats that are not in the pool at all, and turns that the others lost.
    """
    gone = lost = 0
    named = [folder / TOO_LONG for folder in folders if (folder / TOO_LONG).is_file()]
    for entry in _lines(named):
        if entry["in_pool"]:
            lost += entry["turns_left_out"]
        else:
            gone += 1
    if named:
        with (out / TOO_LONG).open("wb") as joined:
            for path in named:
                with path.open("rb") as stream:
                    shutil.copyfileobj(stream, joined)
    return gone, lost


def _lines(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with path.open(encoding="utf-8") as stream:
            for line in stream:
                yield json.loads(line)
