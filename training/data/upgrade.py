"""A pool of an earlier release, written anew in the present form, with the same digest and rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mosaic.core.errors import UsageError
from training.data.outputs import check_place
from training.data.pool_files import check_files
from training.data.pool_format import INDEX, MANIFEST, Manifest
from training.data.pool_writer import PoolFacts, PoolWriter
from training.data.provenance import Origin

FIRST_VERSION = 1
TEXTS = "rows.parquet"
PART = 8192


def upgrade(old: Path, out: Path) -> Manifest:
    """Write the pool of version 1 at `old` as a new folder `out`; its manifest.

    Raises UsageError if `old` is not such a pool, if its files are not those that were built, or if
    `out` holds a pool already.
    """
    try:
        manifest: Manifest = json.loads((old / MANIFEST).read_text())
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"pool {old}: no readable {MANIFEST} ({error})") from None
    if version != FIRST_VERSION:
        raise UsageError(f"pool {old} has version {version}; only version 1 is written anew")
    if (out / MANIFEST).exists():
        raise UsageError(f"--out {out} holds a pool already; name a new folder")
    check_place(out)
    check_files(old, manifest, read_all=True)
    index, texts = pq.ParquetFile(old / INDEX), pq.ParquetFile(old / TEXTS)
    writer = PoolWriter(out, manifest["attributes"], texts.schema_arrow.field("messages").type)
    index_rows, text_rows = _Rows(index), _Rows(texts)
    for dataset, buckets in manifest["datasets"].items():
        for bucket, entry in buckets.items():
            for start in range(entry["start"], entry["end"], PART):
                count = min(PART, entry["end"] - start)
                writer.add(dataset, bucket, index_rows.take(count), text_rows.take(count))
    return writer.close(_facts(manifest), manifest["digest"])


def _facts(manifest: Manifest) -> PoolFacts:
    return PoolFacts(
        max_length=manifest["max_length"],
        tokenizer=manifest["tokenizer"],
        too_long=manifest["too_long"],
        turns_left_out=manifest.get("turns_left_out", 0),
        template_day=manifest.get("template_day"),
        turns_cut=manifest.get("turns_cut", 0),
        origins=[Origin.model_validate(origin) for origin in manifest.get("origins", [])],
    )


class _Rows:
    """The rows of a Parquet file, taken a few at a time from the first to the last."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches: Iterator[pa.RecordBatch] = file.iter_batches(PART, use_threads=False)
        self._rest = file.schema_arrow.empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` rows."""
        while self._rest.num_rows < count:
            more = pa.Table.from_batches([next(self._batches)])
            self._rest = pa.concat_tables([self._rest, more.cast(self._rest.schema)])
        taken = self._rest.slice(0, count).combine_chunks()
        self._rest = self._rest.slice(count)
        return taken
