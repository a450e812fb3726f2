"""Rows out of what holds them: JSONL, one JSON array, CSV, Parquet, `datasets` folders, the hub.

A container knows nothing about chats. It yields (place, row): the place is `file:line`, or
`file:row` if a file has no lines, and the row is a `BadRow` if it cannot be read. Nothing is held
but the row at hand and one buffer or batch.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.chat.strict_json import strict_decoder
from mosaic.core.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

BUFFER = 1 << 20
LONGEST = 64 << 20
BATCH = 1024
HUB = re.compile(r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class BadRow:
    """Why the row at a place cannot be used."""

    reason: str


# What a sign does to a JSON array, by the state of reading it.
SIGNS: dict[str, dict[str, str]] = {
    "before": {"[": "open"},
    "open": {"]": "ended"},
    "element": {",": "comma", "]": "ended"},
    "comma": {},
    "ended": {},
}

Row = dict[str, object]
Read = Iterator[tuple[str, Row | BadRow]]


def read(source: str, split: str = "train", name: str | None = None) -> Read:
    """(place, row or BadRow) of one source: a path, or `hub:owner/name@revision`.

    `split` and `name` (the hub's "config") only matter for `datasets` folders and the hub. Raises
    UsageError if nothing can be read.
    """
    if source.startswith("hub:"):
        return _hub(source, split, name)
    path = Path(source)
    if path.is_dir():
        return _folder(path, split, name)
    if not path.is_file():
        raise UsageError(
            f"{source}: no such file; give files, a `datasets` folder, or hub:owner/name@revision"
        )
    readers = {
        ".jsonl": read_lines,
        ".ndjson": read_lines,
        ".json": _json,
        ".csv": _csv,
        ".parquet": read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise UsageError(
            f"{path}: the ending {path.suffix!r} is not known; there are {', '.join(readers)}"
        )
    return readers[path.suffix.lower()](path)


def _plain(value: object) -> Row | BadRow:
    """A decoded value, which must be an object."""
    if isinstance(value, dict):
        return value
    return BadRow(f"a row is an object, this is {type(value).__name__}")


_decoder = strict_decoder(quote=True)


def read_lines(path: Path) -> Read:
    """Lines of JSON objects."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                yield f"{path}:{number}", _plain(_decoder.decode(line.decode("utf-8")))
            except UnicodeDecodeError as error:
                yield f"{path}:{number}", BadRow(f"not UTF-8 at byte {error.start}")
            except (ValueError, RecursionError) as error:
                yield f"{path}:{number}", BadRow(f"not valid JSON: {error}")


def _json(path: Path) -> Read:
    """One array of objects, element by element; or lines of objects, which some name `.json`."""
    with path.open("r", encoding="utf-8-sig") as stream:
        try:
            first = stream.read(BUFFER).lstrip()
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    if first.startswith("{"):
        yield from read_lines(path)
    elif first.startswith("["):
        yield from _array(path)
    else:
        raise UsageError(f"{path}: neither an array of objects nor lines of objects")


def _array(path: Path) -> Read:
    """Elements of a JSON array.

    A broken element is the last: nobody can tell where the next one begins.
    """
    line, name = 1, str(path)
    with path.open("r", encoding="utf-8-sig") as stream:
        text, at, ended = "", 0, False

        def more() -> None:
            """Read on, at least as much as is left over, and forget what was read."""
            nonlocal text, at, ended
            try:
                chunk = stream.read(max(BUFFER, len(text) - at))
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}: not UTF-8 after line {line} (byte {error.start} of a block)"
                ) from None
            ended = not chunk
            text, at = text[at:] + chunk, 0

        state = "before"
        while True:
            start = at
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
            line += text.count("\n", start, at)
            if at == len(text):
                if not ended:
                    more()
                    continue
                if state != "ended":
                    yield f"{name}:{line}", BadRow("not valid JSON: the array has no end")
                return
            if text[at] in SIGNS[state]:
                state = SIGNS[state][text[at]]
                at += 1
                continue
            if state in ("element", "ended"):
                wanted = "a comma or the array's end" if state == "element" else "nothing more"
                yield (
                    f"{name}:{line}",
                    BadRow(f"not valid JSON: {wanted} is expected here, not {text[at]!r}"),
                )
                return
            try:
                value, end = _decoder.raw_decode(text, at)
                if end == len(text) and not ended:
                    more()
                    continue
            except (ValueError, RecursionError) as error:
                if not ended and len(text) - at < LONGEST and not isinstance(error, RecursionError):
                    more()
                    continue
                yield (
                    f"{name}:{line}",
                    BadRow(f"not valid JSON, and what follows cannot be read: {error}"),
                )
                return
            yield f"{name}:{line}", _plain(value)
            line += text.count("\n", at, end)
            at, state = end, "element"


def _csv(path: Path) -> Read:
    """Rows of a CSV file under the names of its first line."""
    csv.field_size_limit(LONGEST)
    with path.open("r", encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] | None = None
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{path}: not UTF-8 after line {reader.line_num} ({error.reason})"
                ) from None
            except csv.Error as error:
                yield f"{path}:{number}", BadRow(f"not valid CSV: {error}")
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise UsageError(f"{path}: the header names the column {twice!r} twice")
            elif len(cells) != len(header):
                yield f"{path}:{number}", BadRow(f"{len(cells)} cells under {len(header)} columns")
            else:
                yield f"{path}:{number}", dict(zip(header, cells, strict=True))


def read_parquet(path: Path) -> Read:
    """Rows of a Parquet file. Raises UsageError if it is something else, or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a Parquet file, or a damaged one ({error})") from None
    yield from _batches(file.iter_batches(batch_size=BATCH, use_threads=False), str(path))


def _folder(path: Path, split: str, name: str | None) -> Read:
    """Rows of a folder that `save_to_disk` wrote, or of data files as `load_dataset` takes them."""
    import datasets

    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(path))
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise UsageError(f"{path}: no split {split!r}; it has {', '.join(loaded)}")
                loaded = loaded[split]
        else:
            loaded = datasets.load_dataset(str(path), name, split=split)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(f"{path}: `datasets` cannot read it: {_short(error)}") from None
    return _dataset(loaded, f"{path}[{split}]")


def _hub(source: str, split: str, name: str | None) -> Read:
    """Rows of a data set of the hub, from its cache if it was fetched before.

    Scripts of data sets never run.
    """
    import datasets

    found = HUB.fullmatch(source)
    if not found or not found["revision"]:
        raise UsageError(
            f"{source}: write hub:owner/name@REVISION, the commit, so that the same rows come again"
        )
    try:
        loaded = datasets.load_dataset(found["name"], name, split=split, revision=found["revision"])
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UsageError(
            f"{source}: `datasets` cannot load it: {_short(error)}; if the hub is out of reach "
            "(HF_HUB_OFFLINE=1), fetch the files and give their paths"
        ) from None
    return _dataset(loaded, f"{source}[{split}]")


def _dataset(loaded: Dataset, where: str) -> Read:
    yield from _batches(loaded.with_format("arrow").iter(batch_size=BATCH), where)


def _batches(batches: Iterator[pa.RecordBatch], where: str) -> Read:
    """Rows of Arrow batches. A text that is not UTF-8 makes a bad row.

    Raises UsageError if a batch cannot be read at all: nobody can tell how many rows are in it.
    """
    import pyarrow as pa

    number = 0
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{where}: damaged after row {number:,}: {_short(error)}") from None
        if batch is None:
            return
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_single(batch, i) for i in range(batch.num_rows)]
        for row in rows:
            number += 1
            yield f"{where}:{number}", row


def _single(batch: pa.RecordBatch, place: int) -> Row | BadRow:
    """One row of a batch that cannot be read as a whole."""
    try:
        return batch.slice(place, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 at byte {error.start} of a text")


def _short(error: Exception) -> str:
    """The first line of an error, cut to what fits in a message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
