"""Pool rows from JSON lines to Parquet, a block at a time, every attribute a column of one kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mosaic.core.errors import UsageError

BATCH = 4096


def rewrite(source: Path, out: Path) -> None:
    """Write the rows of the JSONL file `source` as Parquet to `out`, which may be the same path.

    UsageError where an attribute is text in one row and a number or a list in another: a column has one kind.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from training.data.pool_format import MESSAGES

    fields: dict[str, pa.DataType] = {}
    with source.open(encoding="utf-8") as stream:
        for line in stream:
            for name, value in json.loads(line)["attributes"].items():
                kind = _kind(value)
                if fields.setdefault(name, kind) != kind:
                    raise UsageError(
                        f"attributes.{name}: {fields[name]} in one row and {kind} in another; a Parquet column has one "
                        "kind, so write .jsonl instead"
                    )
    attributes = [("attributes", pa.struct(sorted(fields.items())))] if fields else []
    plain = [("id", pa.string()), ("dataset", pa.string()), ("bucket", pa.string())]
    schema = pa.schema([*plain, ("messages", MESSAGES), ("quality", pa.int8()), *attributes])
    temporary = out.with_name(out.name + ".parquet")
    try:
        with (
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
            source.open(encoding="utf-8") as stream,
        ):
            rows: list[dict[str, Any]] = []
            for line in stream:
                rows.append(json.loads(line))
                if len(rows) == BATCH:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pa.Table.from_pylist(rows, schema))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(value: Any) -> Any:
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
