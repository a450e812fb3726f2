"""The texts of a pool: `id` and `messages` of every row, any of them read without the others.

`rows.arrow` is an Arrow IPC file of blocks of 64 rows, not compressed and mapped into memory: a
row costs the pages that it lies in, whatever the size of the pool. docs/data-path.md has what other
formats take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BLOCK_ROWS = 64


class TextsWriter:
    """Writes texts in the order of the index; every block but the last has `BLOCK_ROWS` rows."""

    def __init__(self, path: Path, messages: pa.DataType) -> None:
        self._schema = pa.schema({"id": pa.string(), "messages": messages})
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        self._rest = self._schema.empty_table()

    def write(self, texts: pa.Table) -> None:
        """Add rows with `id` and `messages`."""
        texts = pa.concat_tables([self._rest, texts.select(self._schema.names)])
        whole = texts.num_rows - texts.num_rows % BLOCK_ROWS
        # In one piece, since pieces of several tables would be blocks of their own.
        blocks = texts.slice(0, whole).combine_chunks()
        self._writer.write_table(blocks, max_chunksize=BLOCK_ROWS)
        self._rest = texts.slice(whole).combine_chunks()

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        if self._rest.num_rows:
            self._writer.write_table(self._rest.combine_chunks())
        self._writer.close()
        self._sink.close()


def read_texts(path: Path, rows: npt.NDArray[np.int64]) -> pa.Table:
    """`id` and `messages` of the given rows, in the given order.

    Raises OSError or ArrowException if the file cannot be read.
    """
    wanted, inverse = np.unique(rows, return_inverse=True)
    with _opened(path) as file:
        parts = []
        cuts = np.flatnonzero(np.diff(wanted // BLOCK_ROWS)) + 1
        for rows_of_block in np.split(wanted, cuts):
            if len(rows_of_block):
                block = file.get_batch(int(rows_of_block[0]) // BLOCK_ROWS)
                parts.append(_taken(block, rows_of_block % BLOCK_ROWS))
        table = pa.Table.from_batches(parts, file.schema).combine_chunks()
        return table.take(pa.array(inverse))


def _taken(block: pa.RecordBatch, places: npt.NDArray[np.int64]) -> pa.RecordBatch:
    # Most blocks give one row, and a slice copies nothing.
    if len(places) == 1:
        return block.slice(int(places[0]), 1)
    return block.take(pa.array(places))


def every_text(path: Path) -> Iterator[pa.RecordBatch]:
    """All blocks of the texts in order, one in memory at a time."""
    with pa.OSFile(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield file.get_batch(number)


@contextmanager
def _opened(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    with pa.memory_map(str(path)) as source:
        yield pa.ipc.open_file(source)
