"""A pool: all rows one may train on, as columns.

Opened by its manifest, read a bucket and a column at a time. `training.data.pool_format` says
what the folder holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Criterion, Range, Stock
from training.data.build import build
from training.data.pool_format import (
    INDEX,
    MANIFEST,
    ROWS,
    VERSION,
    Manifest,
    as_text,
    file_facts,
    is_number,
)
from training.data.provenance import Origin

Mask = npt.NDArray[np.bool_]
# A numpy array for numbers, an Arrow array for attributes of text and lists.
Column: TypeAlias = pa.Array
MAX_VALUES = 64
NEEDED = ("digest", "max_length", "attributes", "datasets")


@dataclass(frozen=True)
class Bucket:
    """Where a bucket lies in the columns: rows [start, end)."""

    dataset: str
    name: str
    start: int
    end: int


class BucketStats(TypedDict):
    """Rows and tokens of a bucket, in all and by quality."""

    rows: int
    tokens: int
    by_quality: dict[str, dict[str, int]]


class DatasetStats(TypedDict):
    """Rows and tokens of a data set, in all and by bucket."""

    rows: int
    tokens: int
    buckets: dict[str, BucketStats]


class PoolStats(TypedDict):
    """Counts of a pool for a person to read."""

    rows: int
    tokens: int
    digest: str
    max_length: int
    too_long: int
    attributes: dict[str, str]
    turns_left_out: int
    turns_cut: int
    origins: list[dict[str, Any]]
    datasets: dict[str, DatasetStats]


@dataclass
class Pool:
    """A pool folder. Columns are read when first asked for and kept for the pool's life."""

    path: Path
    manifest: Manifest
    _columns: dict[str, Column] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path) -> Pool:
        """Open a pool by its manifest. Raises UsageError if it is none of this version."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(
                f"pool {path}: no readable {MANIFEST} ({error}); make one with `mosaic pool build`"
            ) from None
        version = manifest.get("version") if isinstance(manifest, dict) else None
        if version != VERSION:
            raise UsageError(
                f"pool {path} has version {version}, this release reads {VERSION}; rebuild it"
            )
        missing = sorted(set(NEEDED) - set(manifest))
        if missing:
            raise UsageError(
                f"pool {path}: its {MANIFEST} lacks {', '.join(missing)}; build the pool again"
            )
        pool = cls(path, manifest)
        try:
            pool._check_manifest()
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise UsageError(
                f"pool {path}: its {MANIFEST} is damaged ({detail}); build the pool again"
            ) from None
        return pool

    def _check_manifest(self) -> None:
        """Use every part of the manifest once, so that what is damaged shows here."""
        for part in (self.manifest["attributes"], self.manifest["datasets"]):
            if not isinstance(part, dict):
                raise TypeError("attributes or datasets is not an object")
        self.stats()
        if self.max_length < 1 or not isinstance(self.manifest.get("files", {}), dict):
            raise ValueError("max_length or files")
        for dataset in self.datasets:
            self.buckets(dataset)

    def verify(self) -> None:
        """Check that the files are those that were built.

        Raises UsageError naming the first that is not. This reads all of them, so only those ask
        who depend on the pool for long: the manifest's own digest says nothing about its files.
        """
        files = self.manifest.get("files")
        if not files:
            raise UsageError(
                f"pool {self.path}: its {MANIFEST} holds no digests of its files, as an earlier "
                "release left it; build the pool again with `python -m mosaic pool build`"
            )
        for name, facts in files.items():
            try:
                same = file_facts(self.path / name) == facts
            except OSError as error:
                raise UsageError(
                    f"pool {self.path}: {name}: {error.strerror}; build the pool again"
                ) from None
            if not same:
                raise UsageError(
                    f"pool {self.path}: {name} is not the file that was built (size or digest "
                    f"differ from {MANIFEST}); restore it, or build the pool again"
                )

    @property
    def digest(self) -> str:
        """SHA-256 over the content of all rows."""
        return str(self.manifest["digest"])

    @property
    def max_length(self) -> int:
        """Tokens that no row exceeds, as asked for when the pool was built."""
        return int(self.manifest["max_length"])

    @property
    def datasets(self) -> list[str]:
        return list(self.manifest["datasets"])

    @property
    def attributes(self) -> dict[str, str]:
        """Attribute -> kind: list, number or text."""
        return dict(self.manifest["attributes"])

    @property
    def origins(self) -> list[Origin]:
        """Where each data set came from; empty for pools built before cards were kept."""
        return [Origin.model_validate(entry) for entry in self.manifest.get("origins", [])]

    def buckets(self, dataset: str) -> dict[str, Bucket]:
        """Name -> bucket of a data set."""
        entries = self.manifest["datasets"][dataset]
        return {name: Bucket(dataset, name, e["start"], e["end"]) for name, e in entries.items()}

    def stock(self, min_quality: int = 1) -> dict[str, dict[str, Stock]]:
        """Rows and tokens per data set and bucket at or above a quality."""
        stock: dict[str, dict[str, Stock]] = {}
        for dataset, entries in self.manifest["datasets"].items():
            stock[dataset] = {}
            for bucket, entry in entries.items():
                rows = tokens = 0
                for quality, cell in entry["stock"].items():
                    if int(quality) >= min_quality:
                        rows += cell[0]
                        tokens += cell[1]
                stock[dataset][bucket] = Stock(rows=rows, tokens=tokens)
        return stock

    def stats(self) -> PoolStats:
        """Rows and tokens by data set, bucket and quality, and what was left out."""
        rows = tokens = 0
        datasets: dict[str, DatasetStats] = {}
        for dataset, entries in self.manifest["datasets"].items():
            counts: DatasetStats = {"rows": 0, "tokens": 0, "buckets": {}}
            for bucket, entry in entries.items():
                of_bucket = _bucket_stats(entry["stock"])
                counts["buckets"][bucket] = of_bucket
                counts["rows"] += of_bucket["rows"]
                counts["tokens"] += of_bucket["tokens"]
            datasets[dataset] = counts
            rows += counts["rows"]
            tokens += counts["tokens"]
        return {
            "rows": rows,
            "tokens": tokens,
            "digest": self.manifest["digest"],
            "max_length": self.manifest["max_length"],
            "too_long": self.manifest["too_long"],
            "attributes": self.manifest["attributes"],
            "turns_left_out": self.manifest.get("turns_left_out", 0),
            "turns_cut": self.manifest.get("turns_cut", 0),
            "origins": [origin.json_data() for origin in self.origins],
            "datasets": datasets,
        }

    def column(self, name: str) -> Column:
        """A whole index column: numpy for numbers, Arrow for attributes of text and lists."""
        if name not in self._columns:
            is_text = self.attributes.get(name.removeprefix("attribute:")) == "text"
            with self._reading(INDEX):
                table = pq.read_table(
                    self.path / INDEX,
                    columns=[name],
                    read_dictionary=[name] if is_text else None,
                    use_threads=False,
                )
            array = table[name].combine_chunks()
            if isinstance(array, pa.ChunkedArray):
                array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
            plain = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
            self._columns[name] = array.to_numpy(zero_copy_only=False) if plain else array
        return self._columns[name]

    def slice(self, name: str, bucket: Bucket) -> Column:
        """A bucket's part of a column."""
        return self.column(name)[bucket.start : bucket.end]

    def matches(self, attribute: str, criterion: Criterion, bucket: Bucket) -> Mask:
        """Which rows of a bucket meet a criterion on an attribute, which must exist.

        A row without the attribute meets none.
        """
        kind = self.attributes[attribute]
        values = self.slice(f"attribute:{attribute}", bucket)
        if kind == "number":
            return _matching_numbers(values, criterion)
        if isinstance(criterion, Range):
            return np.zeros(bucket.end - bucket.start, dtype=bool)
        wanted = pa.array([as_text(value) for value in criterion], pa.string())
        if kind == "list":
            return _matching_lists(values, wanted, bucket.end - bucket.start)
        hit = pc.is_in(values.dictionary, value_set=wanted).to_numpy(zero_copy_only=False)
        # A null has no code in the dictionary: it gets the code behind the last, which never hits.
        codes = pc.fill_null(values.indices, len(hit)).to_numpy(zero_copy_only=False)
        return np.asarray(np.append(hit, False)[codes], dtype=bool)

    def attribute_values(self, min_quality: int = 1) -> dict[str, dict[str, list[Attribute]]]:
        """Data set -> attribute -> its values among rows of the quality.

        At most 64 texts each; numbers as [least, greatest].
        """
        found: dict[str, dict[str, list[Attribute]]] = {}
        for dataset in self.datasets:
            buckets = list(self.buckets(dataset).values())
            start = min(bucket.start for bucket in buckets)
            end = max(bucket.end for bucket in buckets)
            kept = self.column("quality")[start:end] >= min_quality
            found[dataset] = {}
            for name, kind in self.attributes.items():
                values = _distinct(self.column(f"attribute:{name}")[start:end], kept, kind)
                if values:
                    found[dataset][name] = values
        return found

    def rows(self, indices: npt.NDArray[np.int64]) -> pa.Table:
        """`id` and `messages` of the given rows, in the given order.

        Reads only the row groups that they lie in.
        """
        with self._reading(ROWS):
            file = pq.ParquetFile(self.path / ROWS)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            unique, inverse = np.unique(indices, return_inverse=True)
            parts = []
            groups = np.searchsorted(starts, unique, side="right") - 1
            for group in np.unique(groups):
                inside = unique[groups == group] - starts[group]
                parts.append(file.read_row_group(int(group)).take(pa.array(inside)))
            table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table()
            return table.take(pa.array(inverse))

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn any failure to read a file into a UsageError."""
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError) as error:
            raise UsageError(
                f"pool {self.path}: {name} cannot be read ({error}); build the pool again"
            ) from None


def _bucket_stats(stock: Mapping[str, Sequence[int]]) -> BucketStats:
    """Quality -> [rows, tokens], summed and by name."""
    stats: BucketStats = {"rows": 0, "tokens": 0, "by_quality": {}}
    for quality, cell in sorted(stock.items()):
        stats["rows"] += cell[0]
        stats["tokens"] += cell[1]
        stats["by_quality"][quality] = {"rows": cell[0], "tokens": cell[1]}
    return stats


def _matching_numbers(values: Column, criterion: Criterion) -> Mask:
    """Which numbers lie in a range, or are among the values wanted; NaN does neither."""
    if isinstance(criterion, Range):
        low = -np.inf if criterion.min is None else criterion.min
        high = np.inf if criterion.max is None else criterion.max
        return np.asarray((values >= low) & (values <= high))
    wanted = [float(value) for value in criterion if is_number(value)]
    return np.isin(values, wanted)


def _matching_lists(values: Column, wanted: pa.Array, size: int) -> Mask:
    """Which of `size` lists hold any of the texts wanted."""
    hit = pc.is_in(pc.list_flatten(values), value_set=wanted).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(values).to_numpy()
    mask = np.zeros(size, dtype=bool)
    mask[parents[hit]] = True
    return mask


def _distinct(values: Column, kept: Mask, kind: str) -> list[Attribute]:
    """The first texts of the rows kept, sorted; for numbers the least and the greatest."""
    if kind == "number":
        known = values[kept & ~np.isnan(values)]
        return [float(known.min()), float(known.max())] if len(known) else []
    chosen = values.filter(pa.array(kept))
    flat = pc.list_flatten(chosen) if kind == "list" else chosen
    texts = [value for value in pc.unique(flat).to_pylist() if value is not None]
    return sorted(texts)[:MAX_VALUES]


def build_pool(
    sources: Sequence[Path],
    out: Path,
    *,
    model: Path | None,
    max_length: int,
    trust_token_counts: bool = False,
    licences: Mapping[str, str] | None = None,
    template: Path | None = None,
) -> Pool:
    """Make a pool folder from JSONL or Parquet files of rows (`training.data.build`); open it."""
    build(
        sources,
        out,
        model=model,
        max_length=max_length,
        trust_token_counts=trust_token_counts,
        licences=licences,
        template=template,
    )
    return Pool.open(out)
