"""Rows out of what holds them: JSONL, JSON, CSV, Parquet, Arrow, `datasets` folders, the hub.

JSON and CSV may be compressed (`.gz`, `.zst`).

A container knows nothing about chats. It yields (place, row): the place is `file:line`, or
`file:row` if a file has no lines, and the row is a `BadRow` if it cannot be read. Nothing is held
but the row at hand and one buffer or batch.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.core.errors import UsageError
from training.data.importers.arrow_json import json_decoder
from training.data.importers.json_rows import read_json
from training.data.importers.reading import BOM, BadRow, Read, ReadFile, Row
from training.data.importers.streams import COMPRESSED, bare_suffix, text_of

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

LONGEST = 64 << 20
BATCH = 1024
HUB = re.compile(r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def read(source: str, split: str = "train", name: str | None = None) -> ReadFile:
    """(place, row, BadRow or Unread) of one source: a path, or `hub:owner/name@revision`.

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
    return read_file(path)


def read_file(path: Path) -> ReadFile:
    """The rows of one file, read as its ending says. Raises UsageError for an unknown ending."""
    readers = {
        ".jsonl": read_json,
        ".ndjson": read_json,
        ".json": read_json,
        ".csv": _csv,
        ".parquet": read_parquet,
        ".arrow": read_arrow,
    }
    suffix = bare_suffix(path)
    if suffix not in readers:
        raise UsageError(
            f"{path}: the ending {''.join(path.suffixes[-2:])!r} is not known; there are "
            f"{', '.join(readers)}, the first four also with {' or '.join(COMPRESSED)}"
        )
    if suffix in (".parquet", ".arrow") and path.suffix.lower() != suffix:
        raise UsageError(f"{path}: unpack it: a file of columns is compressed inside")
    return readers[suffix](path)


def _csv(path: Path) -> Read:
    """Rows of a CSV file under the names of its first line."""
    csv.field_size_limit(LONGEST)
    with text_of(path, newline="") as stream:
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
            cells[0] = cells[0].lstrip(BOM)
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    twice = next(name for name in header if header.count(name) > 1)
                    raise UsageError(f"{path}: the header names the column {twice!r} twice")
            elif len(cells) != len(header):
                yield f"{path}:{number}", BadRow(f"{len(cells)} cells under {len(header)} columns")
            elif cells == header:
                yield f"{path}:{number}", BadRow("the header again, as in files that were joined")
            else:
                # An empty cell is the only way a table has to leave a value out.
                values = [cell or None for cell in cells]
                yield f"{path}:{number}", dict(zip(header, values, strict=True))


def read_parquet(path: Path) -> Read:
    """Rows of a Parquet file. Raises UsageError if it is something else, or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a Parquet file, or a damaged one ({error})") from None
    yield from _batches(file.iter_batches(batch_size=BATCH, use_threads=False), str(path))


def read_arrow(path: Path) -> Read:
    """Rows of an Arrow file or stream, as `datasets` keeps them. Raises UsageError if damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
            except pa.ArrowInvalid:
                table = pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path}: not an Arrow file, or a damaged one ({error})") from None
    yield from _batches(iter(table.to_batches(max_chunksize=BATCH)), str(path))


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
    decoder = None
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
        if number == 0:
            decoder = json_decoder(batch.schema)
        for row in rows:
            number += 1
            if decoder and not isinstance(row, BadRow):
                try:
                    row = decoder(row)
                except ValueError as error:
                    row = BadRow(f"not valid JSON in a column of JSON: {error}")
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
