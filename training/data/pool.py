"""A pool: all rows one may train on, as columns.

Opened by its manifest, read a part of a bucket and a column at a time: only one row group of each
column is in memory. `training.data.pool_format` says what the folder holds.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Criterion, Range, Stock
from training.data.build import BuildOptions, build
from training.data.pool_files import check_files
from training.data.pool_format import (
    INDEX,
    MANIFEST,
    ROWS,
    VERSION,
    Manifest,
    as_text,
    is_number,
)
from training.data.pool_values import values_from
from training.data.provenance import Origin
from training.data.texts import read_texts

Mask = npt.NDArray[np.bool_]
# A numpy array for numbers, an Arrow array for attributes of text and lists.
Column: TypeAlias = pa.Array
NEEDED = ("digest", "max_length", "attributes", "values", "datasets")


@dataclass(frozen=True)
class Bucket:
    """Where a bucket, or a part of one, lies in the columns: rows [start, end)."""

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
    """A pool folder. Of each column the row group that was read last is kept."""

    path: Path
    manifest: Manifest
    _groups: dict[str, tuple[int, Column]] = field(default_factory=dict, repr=False)
    # Planners may ask from several threads, and a Parquet reader serves one at a time.
    _lock: Any = field(default_factory=RLock, repr=False, compare=False)

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
        if version == 1:
            raise UsageError(
                f"pool {path} is of an earlier release; write it anew, with the same digest: "
                f"python -m mosaic pool upgrade {path} --out NEW"
            )
        if version != VERSION:
            raise UsageError(
                f"pool {path} has version {version}, this release reads {VERSION}; build it again "
                "with `python -m mosaic pool build`"
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
        self.attribute_values()
        if self.max_length < 1 or not isinstance(self.manifest.get("files", {}), dict):
            raise ValueError("max_length or files")
        for dataset in self.datasets:
            self.buckets(dataset)

    def check(self) -> None:
        """Check that the files are those that were built, reading those that look changed.

        A file whose size and time are as when it was last read whole is not read again.
        Raises UsageError naming the first that is not what was built.
        """
        check_files(self.path, self.manifest)

    def verify(self) -> None:
        """Check that the files are those that were built, reading all of them whole.

        Raises UsageError naming the first that is not: the manifest's own digest says nothing
        about its files.
        """
        check_files(self.path, self.manifest, read_all=True)

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

    def longest(self, min_quality: int) -> int:
        """Tokens of the longest row of the quality or a better one; 0 if there is none."""
        longest = 0
        for entries in self.manifest["datasets"].values():
            for entry in entries.values():
                for quality, cell in entry["stock"].items():
                    if int(quality) >= min_quality:
                        longest = max(longest, cell[2])
        return longest

    def parts(self, bucket: Bucket) -> Iterator[Bucket]:
        """A bucket in parts, each of which lies in one row group of the index."""
        for start, end in itertools.pairwise(self._group_starts.tolist()):
            if start < bucket.end and end > bucket.start:
                yield replace(bucket, start=max(start, bucket.start), end=min(end, bucket.end))

    def column(self, name: str) -> Column:
        """A whole index column: numpy for numbers, Arrow for attributes of text and lists."""
        return self._cells(name, 0, int(self._group_starts[-1]))

    def slice(self, name: str, bucket: Bucket) -> Column:
        """A bucket's part of a column."""
        return self._cells(name, bucket.start, bucket.end)

    def _cells(self, name: str, start: int, end: int) -> Column:
        """Rows [start, end) of a column."""
        starts = self._group_starts
        first = min(int(np.searchsorted(starts, start, side="right")) - 1, len(starts) - 2)
        last = max(int(np.searchsorted(starts, end, side="left")), first + 1)
        pieces = []
        for group in range(first, last):
            begin = int(starts[group])
            cells = self._group(name, group)
            pieces.append(cells[max(0, start - begin) : max(0, end - begin)])
        if len(pieces) == 1:
            return pieces[0]
        if isinstance(pieces[0], np.ndarray):
            return np.concatenate(pieces)
        return pa.chunked_array(pieces).unify_dictionaries().combine_chunks()

    def _group(self, name: str, group: int) -> Column:
        """A column in one row group of the index."""
        with self._lock:
            known = self._groups.get(name)
            if known is None or known[0] != group:
                with self._reading(INDEX):
                    table = self._index.read_row_group(group, columns=[name], use_threads=False)
                    array = table[name].combine_chunks()
                    if isinstance(array, pa.ChunkedArray):
                        array = array.chunk(0)
                plain = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
                column = array.to_numpy(zero_copy_only=False) if plain else array
                self._groups[name] = known = (group, column)
            return known[1]

    @cached_property
    def _index(self) -> pq.ParquetFile:
        texts = []
        for name, kind in self.attributes.items():
            if kind == "text":
                texts.append(f"attribute:{name}")
        with self._reading(INDEX):
            return pq.ParquetFile(self.path / INDEX, read_dictionary=texts)

    @cached_property
    def _group_starts(self) -> npt.NDArray[np.int64]:
        """Where each row group of the index begins, and at last where it ends."""
        sizes = []
        with self._lock:
            metadata = self._index.metadata
            for group in range(metadata.num_row_groups):
                sizes.append(metadata.row_group(group).num_rows)
        return np.cumsum([0, *sizes])

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
        """Data set -> attribute -> its values among rows of the quality or a better one.

        At most 64 texts each; numbers as [least, greatest].
        """
        found: dict[str, dict[str, list[Attribute]]] = {}
        for dataset, values in self.manifest["values"].items():
            found[dataset] = values_from(values, self.attributes, min_quality)
        return found

    def rows(self, indices: npt.NDArray[np.int64]) -> pa.Table:
        """`id` and `messages` of the given rows, in the given order; no others are read."""
        with self._reading(ROWS):
            return read_texts(self.path / ROWS, indices)

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
    options = BuildOptions(
        model=model,
        max_length=max_length,
        trust_token_counts=trust_token_counts,
        licences=licences or {},
        template=template,
    )
    build(sources, out, options)
    return Pool.open(out)
