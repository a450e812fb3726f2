"""A few rows of a pool, by id or one of each bucket, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import xxhash

from mosaic.core.errors import UsageError
from training.data.pool import Pool
from training.models.chat_template import Chat


class ShownRow(TypedDict):
    """A row as it is shown. A long chat has one for each window."""

    id: str
    messages: Chat


def some_rows(pool: Pool, count: int) -> list[ShownRow]:
    """The first row of each bucket, `count` at most."""
    starts = []
    for dataset in pool.datasets:
        for bucket in pool.buckets(dataset).values():
            if bucket.end > bucket.start:
                starts.append(bucket.start)
    return _taken(pool, sorted(starts)[:count])


def named_rows(pool: Pool, ids: Sequence[str]) -> list[ShownRow]:
    """The rows with these ids, in the order of the pool.

    Raises UsageError for an id that no row has.
    """
    hashes = [xxhash.xxh3_64_intdigest(identifier.encode()) for identifier in ids]
    wanted = np.array(hashes, dtype=np.uint64)
    found: list[int] = []
    for dataset in pool.datasets:
        for bucket in pool.buckets(dataset).values():
            for part in pool.parts(bucket):
                hits = np.flatnonzero(np.isin(pool.slice("hash", part), wanted))
                found += (hits + part.start).tolist()
    rows = [row for row in _taken(pool, found) if row["id"] in set(ids)]
    missing = sorted(set(ids) - {row["id"] for row in rows})
    if missing:
        raise UsageError(
            f"pool {pool.path}: no row is called {', '.join(missing)}; "
            "`python -m mosaic pool show` without ids shows some"
        )
    return rows


def _taken(pool: Pool, positions: Sequence[int]) -> list[ShownRow]:
    table = pool.rows(np.array(positions, dtype=np.int64))
    shown: list[ShownRow] = []
    for row in table.select(["id", "messages"]).to_pylist():
        shown.append({"id": row["id"], "messages": row["messages"]})
    return shown
