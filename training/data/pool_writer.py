"""Writes a pool folder from rows that come in the order of the index, a part at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.pool_format import (
    INDEX,
    MANIFEST,
    ROW_GROUP,
    ROWS,
    VERSION,
    BucketEntry,
    Manifest,
    file_facts,
    index_schema,
)
from training.data.pool_values import Values, add_values
from training.data.provenance import Origin
from training.data.texts import TextsWriter


@dataclass(frozen=True)
class PoolFacts:
    """What a manifest says beside the rows.

    `tokenizer` is the digest of what counted the tokens, None for counts taken on trust.
    `template_day` is the date (ISO) that is pinned in a chat template which writes one.
    `too_long` counts chats without a turn that fits, `turns_left_out` the turns of other
    chats, `turns_cut` those behind the last answer of a chat.
    """

    max_length: int
    tokenizer: str | None
    too_long: int
    turns_left_out: int = 0
    template_day: str | None = None
    turns_cut: int = 0
    origins: Sequence[Origin] = ()


class PoolWriter:
    """Writes the index and the texts of a pool, and its manifest when all rows are there.

    `kinds` is attribute -> kind of its column, `messages` the type of a row's messages.
    """

    def __init__(self, out: Path, kinds: Mapping[str, str], messages: pa.DataType) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._kinds = dict(kinds)
        self._schema = index_schema(kinds)
        self._index = pq.ParquetWriter(out / INDEX, self._schema, compression="zstd")
        self._rest = self._schema.empty_table()
        self._texts = TextsWriter(out / ROWS, messages)
        self._rows = 0
        self._datasets: dict[str, dict[str, BucketEntry]] = {}
        self._values: dict[str, Values] = {}

    def add(self, dataset: str, bucket: str, index: pa.Table, texts: pa.Table) -> None:
        """Add rows of one bucket: their columns of the index, and their `id` and `messages`."""
        self._count(dataset, bucket, index)
        self._texts.write(texts)
        index = pa.concat_tables([self._rest, index.select(self._schema.names)])
        whole = index.num_rows - index.num_rows % ROW_GROUP
        if whole:
            self._index.write_table(index.slice(0, whole), row_group_size=ROW_GROUP)
        self._rest = index.slice(whole).combine_chunks()

    def _count(self, dataset: str, bucket: str, index: pa.Table) -> None:
        buckets = self._datasets.setdefault(dataset, {})
        entry = buckets.setdefault(bucket, {"start": self._rows, "end": self._rows, "stock": {}})
        self._rows += index.num_rows
        entry["end"] = self._rows
        quality, tokens = index["quality"].to_numpy(), index["n_tokens"].to_numpy()
        for grade in np.unique(quality).tolist():
            of_grade = tokens[quality == grade]
            rows, total, longest = entry["stock"].get(str(grade), [0, 0, 0])
            entry["stock"][str(grade)] = [
                rows + len(of_grade),
                total + int(of_grade.sum(dtype=np.int64)),
                max(longest, int(of_grade.max())),
            ]
        add_values(self._values.setdefault(dataset, {}), index, self._kinds)

    def close(self, facts: PoolFacts, digest: str) -> Manifest:
        """Write what is left and then the manifest. `digest` is that of all rows."""
        if self._rest.num_rows:
            self._index.write_table(self._rest)
        self._index.close()
        self._texts.close()
        manifest: Manifest = {
            "version": VERSION,
            "files": {name: file_facts(self._out / name) for name in (INDEX, ROWS)},
            "rows": self._rows,
            "digest": digest,
            "tokenizer": facts.tokenizer,
            "max_length": facts.max_length,
            "too_long": facts.too_long,
            "turns_left_out": facts.turns_left_out,
            "turns_cut": facts.turns_cut,
            "attributes": self._kinds,
            "values": self._values,
            "datasets": self._datasets,
            "origins": [origin.json_data() for origin in facts.origins],
        }
        if facts.template_day is not None:
            manifest["template_day"] = facts.template_day
        (self._out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        return manifest
