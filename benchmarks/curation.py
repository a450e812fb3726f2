"""Curation: speed and memory on ten million rows, and tokens over budget in generated plans."""

from __future__ import annotations

import itertools
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.figures import Rows, figure
from mosaic.core.types.base import JsonObject
from mosaic.core.types.data import Focus, Mixture, Range
from training.data.curate import curate
from training.data.pool import Pool
from training.data.pool_format import INDEX, MANIFEST, ROW_GROUP, VERSION

DATASETS, BUCKETS = ("guard", "benign", "tasks"), ("b1", "b2", "b3", "b4", "b5")
ROWS, QUICK_ROWS = 10_000_000, 500_000
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
    """Write the index of a pool: 3 data sets of 5 buckets, four attributes, one of them a list."""
    generator = np.random.default_rng(0)
    cells = len(DATASETS) * len(BUCKETS)
    bounds = np.linspace(0, rows, cells + 1).astype(int)
    quality = generator.integers(1, 6, rows).astype(np.int8)
    tokens = np.clip(generator.lognormal(6, 0.7, rows), 8, 4096).astype(np.int32)
    topics = _labels(generator, "topic", 30, rows)
    levels = _labels(generator, "level", 5, rows)
    tags = _labels(generator, "tag", 50, 2 * rows)
    hashes = []
    for start, end in itertools.pairwise(bounds):
        hashes.append(np.sort(generator.integers(0, 2**64, end - start, dtype=np.uint64)))
    table = pa.table(
        {
            "hash": pa.array(np.concatenate(hashes)),
            "n_tokens": pa.array(tokens),
            "quality": pa.array(quality),
            "window": pa.array(np.zeros(rows, np.int16)),
            "windows": pa.array(np.ones(rows, np.int16)),
            "attribute:level": levels,
            "attribute:size": pa.array(generator.integers(0, 100, rows).astype(float)),
            "attribute:tags": pa.ListArray.from_arrays(
                pa.array(np.arange(rows + 1) * 2, pa.int32()), tags
            ),
            "attribute:topic": topics,
        }
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / INDEX, compression="zstd", row_group_size=ROW_GROUP)
    datasets: JsonObject = {dataset: {} for dataset in DATASETS}
    for number, (dataset, bucket) in enumerate(itertools.product(DATASETS, BUCKETS)):
        start, end = int(bounds[number]), int(bounds[number + 1])
        stock = _stock(quality[start:end], tokens[start:end])
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


def _labels(generator: np.random.Generator, name: str, count: int, rows: int) -> pa.Array:
    """A column of text: one of `count` labels in each row."""
    codes = pa.array(generator.integers(0, count, rows).astype(np.int32))
    labels = pa.array([f"{name}{number}" for number in range(count)])
    return pa.DictionaryArray.from_arrays(codes, labels).cast(pa.string())


def _stock(quality: np.ndarray, tokens: np.ndarray) -> dict[str, list[int]]:
    """Rows, tokens and the longest row of a bucket for each quality."""
    stock = {}
    for value in range(1, 6):
        chosen = quality == value
        longest = int(tokens[chosen].max(initial=0))
        stock[str(value)] = [int(chosen.sum()), int(tokens[chosen].sum()), longest]
    return stock


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
    """In this process: seconds to scan the needed columns, then seconds and CPU seconds to curate.

    Nothing is in memory yet, so each of the runs has a process of its own.
    """
    started = time.monotonic()
    for name in NEEDED:
        pq.read_table(folder / INDEX, columns=[name], use_threads=False)
    scan = time.monotonic() - started
    started, cpu = time.monotonic(), time.process_time()
    curated = curate(Pool.open(folder), plan())
    out = {"scan": scan, "curate": time.monotonic() - started, "cpu": time.process_time() - cpu}
    out["tokens"] = curated.report.total.selected
    out["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
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
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, str(pool)],
                capture_output=True,
                text=True,
                check=True,
            )
            runs.append(json.loads(done.stdout))
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
