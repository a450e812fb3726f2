"""Pool rows from JSON lines to Parquet, a block at a time, every attribute a column of one kind."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.core.errors import UsageError
from training.data.pool_format import MESSAGES, messages_type

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 4096


def rewrite(source: Path, out: Path) -> None:
    """Write the rows of the JSONL file `source` as Parquet to `out`, which may be the same path.

    Raises UsageError if an attribute is text in one row and a number or a list in another: a column
    has one kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(source)
    temporary = out.with_name(out.name + ".parquet")
    try:
        with (
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
            source.open(encoding="utf-8") as stream,
        ):
            while lines := list(itertools.islice(stream, BATCH)):
                rows = [json.loads(line) for line in lines]
                writer.write_table(pa.Table.from_pylist(rows, schema))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _schema(source: Path) -> pa.Schema:
    """The columns that hold all rows of a file."""
    import pyarrow as pa

    fields: dict[str, pa.DataType] = {}
    messages = MESSAGES
    with source.open(encoding="utf-8") as stream:
        for line in stream:
            row = json.loads(line)
            if messages is MESSAGES:
                messages = messages_type([row])
            for name, value in row["attributes"].items():
                kind = _kind(value)
                if fields.setdefault(name, kind) != kind:
                    raise UsageError(
                        f"attributes.{name}: {fields[name]} in one row and {kind} in another; a "
                        "Parquet column has one kind, so write .jsonl instead"
                    )
    attributes = [("attributes", pa.struct(sorted(fields.items())))] if fields else []
    plain = [("id", pa.string()), ("dataset", pa.string()), ("bucket", pa.string())]
    return pa.schema([*plain, ("messages", messages), ("quality", pa.int8()), *attributes])


def _kind(value: object) -> pa.DataType:
    """The type of the column that holds a value of JSON."""
    import pyarrow as pa

    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, list):
        numbers = bool(value) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        return pa.list_(pa.int64() if numbers else pa.string())
    return pa.string()
