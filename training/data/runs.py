"""Rows on disk in sorted runs, and out of them again in the order of a pool.

A pool is larger than memory, so rows are sorted a run at a time. A run is an Arrow file with one
block a bucket, in order; memory is mapped to it. Rows of a bucket are then taken from all runs by
ranges of their hash, which is as good as random, and each range is sorted by itself.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from training.data.counting import SCHEMA

# Bytes of rows that are sorted at a time, and that a range of hashes holds at most, nearly.
RUN_BYTES = 64 << 20
RANGE_BYTES = 32 << 20
KEYS = [(name, "ascending") for name in ("dataset", "bucket", "hash", "id", "window")]

Cell = tuple[str, str]
"""Data set and bucket."""


class RunWriter:
    """Collects tables of rows, and writes them as runs to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self.runs = 0

    def add(self, table: pa.Table) -> None:
        """Add rows, in any order."""
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes >= RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected, if there is any."""
        rows = pa.concat_tables(self._tables).combine_chunks() if self._tables else None
        self._tables, self._bytes = [], 0
        if rows is None or not rows.num_rows:
            return
        rows = rows.sort_by(KEYS).combine_chunks()
        with (
            pa.OSFile(str(self._folder / _name(self.runs)), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            for start, end in _cells(rows):
                writer.write_table(rows.slice(start, end - start))
        self.runs += 1


def _name(number: int) -> str:
    return f"run-{number:05}.arrow"


def _cells(rows: pa.Table) -> Iterator[tuple[int, int]]:
    """(start, end) of each bucket in sorted rows."""
    changed = np.zeros(rows.num_rows, dtype=bool)
    changed[0] = True
    for name in ("dataset", "bucket"):
        column = rows[name]
        differs = pc.not_equal(column.slice(1), column.slice(0, rows.num_rows - 1))
        changed[1:] |= differs.to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(changed).tolist()
    return zip(starts, [*starts[1:], rows.num_rows], strict=True)


class Runs:
    """The runs of some folders, read together."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._blocks: dict[Cell, list[pa.RecordBatch]] = {}
        self._maps: list[mmap.mmap] = []
        for folder in folders:
            for path in sorted(folder.glob("run-*.arrow")):
                file = pa.ipc.open_file(pa.py_buffer(self._mapped(path)))
                for number in range(file.num_record_batches):
                    block = file.get_batch(number)
                    cell = (block["dataset"][0].as_py(), block["bucket"][0].as_py())
                    self._blocks.setdefault(cell, []).append(block)
                self._forget()

    def _mapped(self, path: Path) -> mmap.mmap:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps.append(mapped)
        return mapped

    def _forget(self) -> None:
        """Give back the memory of what was read: it is on disk, and read again where it is needed."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def cells(self) -> list[Cell]:
        """Every data set and bucket, in order."""
        return sorted(self._blocks)

    def sorted_rows(self, cell: Cell) -> Iterator[pa.Table]:
        """The rows of a bucket in the order of the pool, a range of hashes at a time."""
        blocks = self._blocks[cell]
        for pieces in self._in_ranges(blocks, sum(block.nbytes for block in blocks)):
            rows = pa.Table.from_batches(pieces, SCHEMA).combine_chunks()
            rows = rows.sort_by(KEYS[2:]).combine_chunks()
            self._forget()
            yield rows

    def _in_ranges(
        self, blocks: Sequence[pa.RecordBatch], size: int
    ) -> Iterator[list[pa.RecordBatch]]:
        """The rows of blocks a range of hashes at a time: of `size` bytes in all, nearly
        `RANGE_BYTES` each."""
        ranges = max(1, -(-size // RANGE_BYTES))
        bounds = np.array([2**64 * number // ranges for number in range(1, ranges)], np.uint64)
        cuts = []
        for block in blocks:
            inner = np.searchsorted(block["hash"].to_numpy(), bounds)
            cuts.append([0, *inner.tolist(), block.num_rows])
        self._forget()
        for number in range(ranges):
            pieces = []
            for block, places in zip(blocks, cuts, strict=True):
                start, end = places[number], places[number + 1]
                if end > start:
                    pieces.append(block.slice(start, end - start))
            if pieces:
                yield pieces

    def repeated(self) -> list[dict[str, Any]]:
        """`id`, `number` and `place` of each chat whose id another one has too, as they were read."""
        twice = self._hashes_seen_twice()
        found: list[dict[str, Any]] = []
        for block in self._each() if len(twice) else ():
            suspect = np.isin(block["hash"].to_numpy(), twice) & _first_windows(block)
            rows = block.select(["id", "number", "place"]).filter(pa.array(suspect))
            found += rows.to_pylist()
        return sorted(found, key=lambda row: (row["id"], row["number"]))

    def _hashes_seen_twice(self) -> npt.NDArray[np.uint64]:
        """Hashes of more than one chat, found in a range of hashes at a time."""
        blocks = list(self._each())
        size = sum(block.num_rows for block in blocks) * np.dtype(np.uint64).itemsize
        twice = [np.empty(0, np.uint64)]
        for pieces in self._in_ranges(blocks, size):
            hashes = [piece["hash"].to_numpy()[_first_windows(piece)] for piece in pieces]
            every = np.concatenate(hashes)
            every.sort()
            twice.append(np.unique(every[1:][every[1:] == every[:-1]]))
            self._forget()
        return np.concatenate(twice)

    def _each(self) -> Iterator[pa.RecordBatch]:
        for blocks in self._blocks.values():
            yield from blocks
            self._forget()


def _first_windows(block: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    return block["window"].to_numpy() == 0
