"""A pool: all rows one may train on, as columns. Opened by its manifest, read a bucket and a column at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mosaic.core.errors import UsageError
from mosaic.core.types.base import Attribute
from mosaic.core.types.data import Criterion, Range, Stock
from training.data.build import INDEX, MANIFEST, ROWS, VERSION, build, file_facts, text
from training.data.provenance import Origin

Mask = npt.NDArray[np.bool_]
MAX_VALUES = 64


@dataclass(frozen=True)
class Bucket:
    """Where a bucket lies in the columns."""

    dataset: str
    name: str
    start: int
    end: int


@dataclass
class Pool:
    """A pool folder. Columns are read when first asked for and kept for the pool's life."""

    path: Path
    manifest: dict[str, Any]
    _columns: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: Path) -> Pool:
        """UsageError where the folder holds no pool of this version."""
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
        missing = sorted({"digest", "max_length", "attributes", "datasets"} - set(manifest))
        if missing:
            raise UsageError(
                f"pool {path}: its {MANIFEST} lacks {', '.join(missing)}; build the pool again"
            )
        pool = cls(path, manifest)
        try:
            if not all(isinstance(manifest[name], dict) for name in ("attributes", "datasets")):
                raise TypeError("attributes or datasets is no object")
            pool.stats()
            if pool.max_length < 1 or not isinstance(manifest.get("files", {}), dict):
                raise ValueError("max_length or files")
            for dataset in pool.datasets:
                pool.buckets(dataset)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            detail = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise UsageError(
                f"pool {path}: its {MANIFEST} is damaged ({detail}); build the pool again"
            ) from None
        return pool

    def verify(self) -> None:
        """UsageError naming the first file that is not the one that was built. Reads all of them, so that only those
        ask who depend on the pool for long: the manifest's own digest says nothing of the files beside it."""
        files = self.manifest.get("files")
        if not files:
            raise UsageError(
                f"pool {self.path}: its {MANIFEST} holds no digests of its files, as an earlier release left it; "
                "build the pool again with `python -m mosaic pool build`"
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
                    f"pool {self.path}: {name} is not the file that was built (size or digest differ from {MANIFEST}); "
                    "restore it, or build the pool again"
                )

    @property
    def digest(self) -> str:
        """SHA-256 over the content of all rows."""
        return str(self.manifest["digest"])

    @property
    def max_length(self) -> int:
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
        """Where each data set came from and under which licence; empty for pools built before cards were kept."""
        return [Origin.model_validate(entry) for entry in self.manifest.get("origins", [])]

    def buckets(self, dataset: str) -> dict[str, Bucket]:
        entries = self.manifest["datasets"][dataset]
        return {name: Bucket(dataset, name, e["start"], e["end"]) for name, e in entries.items()}

    def stock(self, min_quality: int = 1) -> dict[str, dict[str, Stock]]:
        """Rows and tokens per data set and bucket at or above a quality."""
        out: dict[str, dict[str, Stock]] = {}
        for dataset, entries in self.manifest["datasets"].items():
            out[dataset] = {}
            for bucket, entry in entries.items():
                kept = [
                    cell for quality, cell in entry["stock"].items() if int(quality) >= min_quality
                ]
                out[dataset][bucket] = Stock(
                    rows=sum(c[0] for c in kept), tokens=sum(c[1] for c in kept)
                )
        return out

    def stats(self) -> dict[str, Any]:
        """Counts for a person: rows and tokens by data set, bucket and quality."""
        datasets = {}
        for dataset, entries in self.manifest["datasets"].items():
            buckets = {
                bucket: {
                    "rows": sum(c[0] for c in entry["stock"].values()),
                    "tokens": sum(c[1] for c in entry["stock"].values()),
                    "by_quality": {
                        q: {"rows": c[0], "tokens": c[1]} for q, c in sorted(entry["stock"].items())
                    },
                }
                for bucket, entry in entries.items()
            }
            totals = {key: sum(b[key] for b in buckets.values()) for key in ("rows", "tokens")}
            datasets[dataset] = {**totals, "buckets": buckets}
        totals = {key: sum(d[key] for d in datasets.values()) for key in ("rows", "tokens")}
        facts = {
            key: self.manifest[key] for key in ("digest", "max_length", "too_long", "attributes")
        }
        facts["turns_left_out"] = self.manifest.get(
            "turns_left_out", 0
        )  # not counted by releases before
        return {
            **totals,
            **facts,
            "origins": [o.json_data() for o in self.origins],
            "datasets": datasets,
        }

    def column(self, name: str) -> Any:
        """A whole index column: numpy for numbers, Arrow for attributes of text and lists."""
        if name not in self._columns:
            dictionary = (
                [name] if self.attributes.get(name.removeprefix("attribute:")) == "text" else None
            )
            with self._reading(INDEX):
                table = pq.read_table(
                    self.path / INDEX, columns=[name], read_dictionary=dictionary, use_threads=False
                )
            array = table[name].combine_chunks()
            if isinstance(array, pa.ChunkedArray):
                array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
            plain = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
            self._columns[name] = array.to_numpy(zero_copy_only=False) if plain else array
        return self._columns[name]

    def slice(self, name: str, bucket: Bucket) -> Any:
        return self.column(name)[bucket.start : bucket.end]

    def matches(self, attribute: str, criterion: Criterion, bucket: Bucket) -> Mask:
        """Which rows of a bucket meet a criterion; a row without the attribute meets none. The attribute must exist."""
        kind = self.attributes[attribute]
        values = self.slice(f"attribute:{attribute}", bucket)
        size = bucket.end - bucket.start
        if kind == "number":
            if isinstance(criterion, Range):
                low = -np.inf if criterion.min is None else criterion.min
                high = np.inf if criterion.max is None else criterion.max
                return (values >= low) & (values <= high)
            wanted = [float(v) for v in criterion if is_number(v)]
            return np.isin(values, wanted)
        if isinstance(criterion, Range):
            return np.zeros(size, dtype=bool)
        wanted_text = pa.array([text(v) for v in criterion], pa.string())
        if kind == "list":
            flat = pc.is_in(pc.list_flatten(values), value_set=wanted_text).to_numpy(
                zero_copy_only=False
            )
            parents = pc.list_parent_indices(values).to_numpy()
            mask = np.zeros(size, dtype=bool)
            mask[parents[flat]] = True
            return mask
        hit = pc.is_in(values.dictionary, value_set=wanted_text).to_numpy(zero_copy_only=False)
        codes = values.indices
        mask = np.append(hit, False)[pc.fill_null(codes, len(hit)).to_numpy(zero_copy_only=False)]
        return np.asarray(mask, dtype=bool)

    def attribute_values(self, min_quality: int = 1) -> dict[str, dict[str, list[Attribute]]]:
        """Data set -> attribute -> values among rows of the quality, at most 64 each; numbers as [least, greatest]."""
        out: dict[str, dict[str, list[Attribute]]] = {}
        for dataset in self.datasets:
            buckets = list(self.buckets(dataset).values())
            start, end = min(b.start for b in buckets), max(b.end for b in buckets)
            kept = self.column("quality")[start:end] >= min_quality
            out[dataset] = {}
            for name, kind in self.attributes.items():
                values = self.column(f"attribute:{name}")[start:end]
                if kind == "number":
                    known = values[kept & ~np.isnan(values)]
                    found: list[Attribute] = (
                        [float(known.min()), float(known.max())] if len(known) else []
                    )
                else:
                    chosen = values.filter(pa.array(kept))
                    flat = pc.list_flatten(chosen) if kind == "list" else chosen
                    found = sorted(v for v in pc.unique(flat).to_pylist() if v is not None)[
                        :MAX_VALUES
                    ]
                if found:
                    out[dataset][name] = found
        return out

    def rows(self, indices: npt.NDArray[np.int64]) -> pa.Table:
        """`id` and `messages` of the given rows, in the given order; reads only the row groups they lie in."""
        with self._reading(ROWS):
            file = pq.ParquetFile(self.path / ROWS)
            starts = np.cumsum(
                [0] + [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            )
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
        """UsageError where a file cannot be read."""
        try:
            yield
        except (OSError, pa.ArrowException, UnicodeDecodeError, KeyError) as error:
            raise UsageError(
                f"pool {self.path}: {name} cannot be read ({error}); build the pool again"
            ) from None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def build_pool(
    sources: Sequence[Path],
    out: Path,
    *,
    model: Path | None,
    max_length: int,
    trust_token_counts: bool = False,
    licences: Mapping[str, str] | None = None,
) -> Pool:
    """Make a pool folder from JSONL or Parquet files of rows and open it (see `training.data.build`)."""
    build(
        sources,
        out,
        model=model,
        max_length=max_length,
        trust_token_counts=trust_token_counts,
        licences=licences,
    )
    return Pool.open(out)
