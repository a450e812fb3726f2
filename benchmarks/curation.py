"""Curation: speed and memory on ten million rows, and tokens over budget in generated plans."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Rows, figure
from benchmarks.memory import peak_memory
from mosaic.core.types.base import JsonObject
from mosaic.core.types.data import Focus, Mixture, Range
from training.data.curate import curate
from training.data.pool import Pool
from training.data.pool_format import INDEX, MANIFEST, ROW_GROUP, VERSION

DATASETS, BUCKETS = ("guard", "benign", "tasks"), ("b1", "b2", "b3", "b4", "b5")
ROWS, QUICK_ROWS = 10_000_000, 500_000
MANY_ROWS = 100_000_000
PIECE = 1 << 20
TOKENS = 1_000_000
NEEDED = (
    "hash",
    "n_tokens",
    "quality",
    "window",
    "attribute:topic",
    "attribute:tags",
    "attribute:size",
)


def synthetic_pool(folder: Path, rows: int) -> None:
    """Write the index of a pool: 3 data sets of 5 buckets, four attributes, one of them a list.

    Rows are made in pieces that repeat in all but their hash, so that any number takes no memory.
    """
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    pieces = [_piece(generator, min(PIECE, rows)) for _ in range(4)]
    datasets: JsonObject = {dataset: {} for dataset in DATASETS}
    cells = list(itertools.product(DATASETS, BUCKETS))
    bounds = np.linspace(0, rows, len(cells) + 1).astype(int).tolist()
    numbers = itertools.count()
    with pq.ParquetWriter(folder / INDEX, pieces[0].schema, compression="zstd") as writer:
        for (dataset, bucket), (start, end) in zip(cells, itertools.pairwise(bounds), strict=True):
            stock: dict[str, list[int]] = {}
            for at in range(start, end, PIECE):
                piece = pieces[next(numbers) % len(pieces)].slice(0, min(PIECE, end - at))
                low, high = ((place - start) / (end - start) for place in (at, at + len(piece)))
                piece = piece.set_column(0, "hash", _hashes(generator, low, high, len(piece)))
                writer.write_table(piece, row_group_size=ROW_GROUP)
                _add_stock(stock, piece["quality"].to_numpy(), piece["n_tokens"].to_numpy())
            datasets[dataset][bucket] = {"start": start, "end": end, "stock": stock}
    manifest = {
        "version": VERSION,
        "rows": rows,
        "digest": "synthetic",
        "tokenizer": None,
        "max_length": 4096,
        "too_long": 0,
        "attributes": {"level": "text", "size": "number", "tags": "list", "topic": "text"},
        "values": {},
        "datasets": datasets,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _piece(generator: np.random.Generator, rows: int) -> pa.Table:
    """Some rows of an index; their hashes are still to be set."""
    tokens = np.clip(generator.lognormal(6, 0.7, rows), 8, 4096).astype(np.int32)
    tags = _labels(generator, "tag", 50, 2 * rows)
    places = pa.array(np.arange(rows + 1) * 2, pa.int32())
    return pa.table(
        {
            "hash": pa.array(np.zeros(rows, np.uint64)),
            "n_tokens": pa.array(tokens),
            "quality": pa.array(generator.integers(1, 6, rows).astype(np.int8)),
            "window": pa.array(np.zeros(rows, np.int16)),
            "windows": pa.array(np.ones(rows, np.int16)),
            "attribute:level": _labels(generator, "level", 5, rows),
            "attribute:size": pa.array(generator.integers(0, 100, rows).astype(float)),
            "attribute:tags": pa.ListArray.from_arrays(places, tags),
            "attribute:topic": _labels(generator, "topic", 30, rows),
        }
    )


def _hashes(generator: np.random.Generator, low: float, high: float, rows: int) -> pa.Array:
    """Sorted hashes between two parts of their range."""
    drawn = generator.integers(int(low * 2**64), int(high * 2**64), rows, np.uint64)
    return pa.array(np.sort(drawn))


def _labels(generator: np.random.Generator, name: str, count: int, rows: int) -> pa.Array:
    """A column of text: one of `count` labels in each row."""
    codes = pa.array(generator.integers(0, count, rows).astype(np.int32))
    labels = pa.array([f"{name}{number}" for number in range(count)])
    return pa.DictionaryArray.from_arrays(codes, labels).cast(pa.string())


def _add_stock(stock: dict[str, list[int]], quality: np.ndarray, tokens: np.ndarray) -> None:
    """Count rows, tokens and the longest row of some rows, by quality."""
    for value in range(1, 6):
        chosen = tokens[quality == value]
        rows, total, longest = stock.get(str(value), [0, 0, 0])
        longest = max(longest, int(chosen.max(initial=0)))
        stock[str(value)] = [rows + len(chosen), total + int(chosen.sum()), longest]


def plan() -> Mixture:
    """A mixture that uses every kind of attribute."""
    weights = {d: dict.fromkeys(BUCKETS, 0.2) for d in DATASETS}
    focus = {
        "guard": Focus(
            include={"topic": ["topic3", "topic4"], "tags": ["tag7"]},
            exclude={"size": Range(min=90)},
            share=0.5,
        ),
        "tasks": Focus(
            include={"tags": ["tag1", "tag2"]}, exclude={"topic": ["topic9"]}, share=0.3
        ),
    }
    return Mixture(
        ratios={"guard": 0.5, "benign": 0.2, "tasks": 0.3},
        bucket_weights=weights,
        focus=focus,
        budget=TOKENS,
        seed=1,
    )


MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.curation import measure
print(json.dumps(measure(Path(sys.argv[1]))))
"""


def measure(folder: Path) -> dict[str, float]:
    """In this process: seconds, CPU seconds and memory to curate, and to scan the needed columns.

    Nothing is in memory yet, so each of the runs has a process of its own.
    """
    before = peak_memory()
    started, cpu = time.monotonic(), time.process_time()
    curated = curate(Pool.open(folder), plan())
    out = {"curate": time.monotonic() - started, "cpu": time.process_time() - cpu}
    out["tokens"] = curated.report.total.selected
    out["memory"], out["grown"] = peak_memory(), peak_memory() - before
    started, cpu = time.monotonic(), time.process_time()
    file = pq.ParquetFile(folder / INDEX)
    for group in range(file.num_row_groups):
        file.read_row_group(group, columns=list(NEEDED), use_threads=False)
    out |= {"scan": time.monotonic() - started, "scan_cpu": time.process_time() - cpu}
    return out


def pandas_version(folder: Path) -> float:
    """Seconds of the obvious way: load, filter, shuffle, take by cumulative tokens per bucket."""
    started = time.monotonic()
    frame = pq.read_table(folder / INDEX, columns=["n_tokens", "quality"]).to_pandas()
    manifest = json.loads((folder / MANIFEST).read_text())
    for dataset, ratio in plan().ratios.items():
        for entry in manifest["datasets"][dataset].values():
            part = frame.iloc[entry["start"] : entry["end"]]
            part = part[part.quality >= 4].sample(frac=1, random_state=1)
            part[part.n_tokens.cumsum() <= TOKENS * ratio / len(BUCKETS)]
    return time.monotonic() - started


def interleave_version(folder: Path, out: Path) -> float:
    """Seconds of `datasets.interleave_datasets` and `to_parquet` over the same index."""
    from datasets import Dataset, interleave_datasets

    table = pq.read_table(folder / INDEX, columns=["n_tokens", "quality"])
    manifest = json.loads((folder / MANIFEST).read_text())
    started = time.monotonic()
    parts = []
    for dataset in DATASETS:
        entries = manifest["datasets"][dataset].values()
        first = min(entry["start"] for entry in entries)
        last = max(entry["end"] for entry in entries)
        parts.append(Dataset(table.slice(first, last - first)))
    interleave_datasets(parts, probabilities=[0.5, 0.2, 0.3], seed=1).to_parquet(str(out))
    return time.monotonic() - started


def curation(quick: bool) -> Rows:
    """Speed against a scan of the same columns, rows per CPU second, and peak memory.

    Two common ways to do something like it stand beside that.
    """
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        synthetic_pool(pool, rows)
        runs = []
        for _ in range(3):
            runs.append(_measured(pool))
        median = sorted(runs, key=lambda run: run["curate"] / run["scan"])[1]
        figures = [
            figure(
                "time of curation over time to scan its columns",
                median["curate"] / median["scan"],
                "x",
                at_most=3,
            ),
            figure("pool rows per CPU second", rows / median["cpu"], "rows/s", at_least=5_000_000),
            figure("peak memory", median["memory"], "GB", at_most=3),
            figure("memory of curation", median["grown"] * 1024**3 / rows, "B a row", at_most=20),
            figure("tokens selected of 1,000,000", median["tokens"], "tokens"),
            figure("seconds of curation", median["curate"], "s"),
            figure(
                "seconds of the pandas version (no focus, no exclusion)", pandas_version(pool), "s"
            ),
        ]
        small = Path(folder) / "small"
        synthetic_pool(small, QUICK_ROWS)
        seconds = interleave_version(small, Path(folder) / "out.parquet")
        figures.append(
            figure(
                f"seconds of interleave_datasets + to_parquet on {QUICK_ROWS:,} rows", seconds, "s"
            )
        )
        return figures


def _measured(pool: Path) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(pool)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def large_index(quick: bool) -> Rows:
    """Curation from an index of 100 million rows, without texts."""
    rows = ROWS if quick else MANY_ROWS
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool"
        synthetic_pool(pool, rows)
        found = _measured(pool)
    return [
        figure(f"seconds to curate from {rows:,} rows", found["curate"], "s", at_most=60),
        figure("CPU seconds", found["cpu"], "s"),
        figure("CPU seconds over a scan of the columns", found["cpu"] / found["scan_cpu"], "x"),
        figure("memory of curation", found["grown"] * 1024**3 / rows, "B a row", at_most=20),
    ]


def budget(quick: bool) -> Rows:
    """Generated plans on a small pool: tokens over budget, over all of them."""
    trials = 500 if quick else 10_000
    rng = random.Random(0)
    over = 0
    with tempfile.TemporaryDirectory() as folder:
        synthetic_pool(Path(folder) / "pool", 3000)
        pool = Pool.open(Path(folder) / "pool")
        for _ in range(trials):
            first = rng.random()
            second = rng.random() * (1 - first)
            ratios = {"guard": first, "benign": second, "tasks": 1 - first - second}
            raw = [rng.random() for _ in BUCKETS]
            weights, focus = {}, {}
            if rng.random() < 0.5:
                shares = [weight / sum(raw) for weight in raw]
                weights["guard"] = dict(zip(BUCKETS, shares, strict=True))
            if rng.random() < 0.5:
                focus["tasks"] = Focus(include={"tags": ["tag1"]}, share=rng.random())
            mixture = Mixture(
                ratios=ratios,
                bucket_weights=weights,
                focus=focus,
                budget=rng.randrange(1, 500_000),
                seed=rng.randrange(1000),
                min_quality=rng.randint(1, 5),
                max_repeat=rng.randint(1, 3),
            )
            curated = curate(pool, mixture)
            spent = int(curated.n_tokens.sum())
            over += max(0, spent - mixture.budget) + abs(spent - curated.report.total.selected)
    return [figure(f"tokens over budget in {trials:,} plans", over, "tokens", at_most=0)]
