"""The rows that one bucket gives: two streams in key order, each up to a part of the quota.

A bucket is read in parts. What is in memory beside the rows that may be chosen is one part of each
column, and two marks for each row of the bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from mosaic.core.types.data import Focus, Mixture
from training.data.pool import Bucket, Column, Mask, Pool

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
MARGIN = 1.25
MIN_CANDIDATES = 256
TOPUP_CANDIDATES = 32
# What is kept of a row that may be chosen: where it is in the pool, and its columns of the index.
ROW = np.dtype(
    [
        ("position", np.int64),
        ("hash", np.uint64),
        ("n_tokens", np.int32),
        ("window", np.int16),
        ("windows", np.int16),
    ]
)
Row: TypeAlias = np.void
Rows: TypeAlias = npt.NDArray[np.void]
NO_ROWS: Rows = np.zeros(0, ROW)


@dataclass
class Selection:
    """What one bucket gives.

    `rows` are within its quota, those that the focus includes first; `focus` marks them.
    `next_rows` follow in key order and did not fit; `topup` are those of them that the last pass takes.
    """

    bucket: Bucket
    quota: int
    rows: Rows
    focus: Mask
    next_rows: Rows
    topup: Rows

    @property
    def all_rows(self) -> Rows:
        return np.concatenate([self.rows, self.topup])


def splitmix64(hashes: Keys, seed: int) -> Keys:
    """Order keys: the finaliser of SplitMix64 over hash plus seed times the golden gamma.

    Arithmetic wraps modulo 2^64.

    >>> splitmix64(np.array([0, 1, 2], np.uint64), seed=1).tolist()
    [6685036501382267578, 4754066425326119843, 3497101601492490161]
    """
    gamma = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    keys = hashes + np.uint64(gamma)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


def exact(weight: float) -> Fraction:
    """The decimal that a person wrote, as a fraction.

    >>> exact(0.1)
    Fraction(1, 10)
    """
    return Fraction(repr(float(weight)))


def tokens_of(rows: Rows) -> int:
    """Tokens of the rows together."""
    return int(rows["n_tokens"].sum(dtype=np.int64))


def kept(pool: Pool, bucket: Bucket, min_quality: int, focus: Focus | None) -> Mask:
    """Which rows of a bucket are good enough and not excluded."""
    keep = pool.slice("quality", bucket) >= min_quality
    if focus:
        for attribute, criterion in focus.exclude.items():
            keep &= ~pool.matches(attribute, criterion, bucket)
    return np.asarray(keep)


def included(pool: Pool, bucket: Bucket, focus: Focus) -> Mask:
    """Which rows of a bucket the focus prefers."""
    mask = np.zeros(bucket.end - bucket.start, dtype=bool)
    for attribute, criterion in focus.include.items():
        mask |= pool.matches(attribute, criterion, bucket)
    return mask


def select(pool: Pool, bucket: Bucket, quota: int, mixture: Mixture) -> Selection:
    """The rows of one bucket within its quota."""
    focus = mixture.focus.get(bucket.dataset)
    preferred, others = _streams(pool, bucket, mixture.min_quality, focus)
    passes = mixture.max_repeat
    if focus and focus.include:
        stock = preferred.tokens + others.tokens
        preferred.quota, others.quota = _stream_quotas(
            quota, exact(focus.share), stock, preferred.tokens, passes
        )
    else:
        others.quota = quota
    _find_candidates(pool, bucket, mixture.seed, [preferred, others])
    head, after_head = _taken(preferred, mixture.seed, passes)
    tail, after_tail = _taken(others, mixture.seed, passes)
    flags = np.zeros(len(head) + len(tail), dtype=bool)
    flags[: len(head)] = True
    return Selection(
        bucket=bucket,
        quota=quota,
        rows=np.concatenate([head, tail]),
        focus=flags,
        next_rows=np.concatenate([after_head, after_tail]),
        topup=NO_ROWS,
    )


@dataclass
class _Stream:
    """Rows of a bucket that are taken in key order: those that the focus includes, or the others.

    `marks` says for each part of the bucket which of its rows are in the stream. `candidates` are
    those of the least keys, in the order of the pool.
    """

    marks: list[Mask]
    rows: int = 0
    tokens: int = 0
    quota: int = 0
    candidates: Rows = field(default_factory=lambda: NO_ROWS)

    def add(self, mask: Mask, tokens: Column) -> None:
        """Count the next part of the bucket."""
        self.marks.append(mask)
        self.rows += int(np.count_nonzero(mask))
        self.tokens += int(tokens[mask].sum(dtype=np.int64))

    def is_enough(self) -> bool:
        """Whether the candidates hold the quota, the row that breaks it, and rows for the top-up."""
        return tokens_of(self.candidates) > self.quota and len(self.candidates) >= TOPUP_CANDIDATES


def _streams(
    pool: Pool, bucket: Bucket, min_quality: int, focus: Focus | None
) -> tuple[_Stream, _Stream]:
    """The rows of a bucket that the focus includes, and the others."""
    preferred, others = _Stream([]), _Stream([])
    for part in pool.parts(bucket):
        tokens = pool.slice("n_tokens", part)
        keep = kept(pool, part, min_quality, focus)
        wanted = np.zeros(len(keep), dtype=bool)
        if focus and focus.include:
            wanted = keep & included(pool, part, focus)
        preferred.add(wanted, tokens)
        others.add(keep & ~wanted, tokens)
    return preferred, others


def _stream_quotas(
    quota: int, share: Fraction, stock: int, inside: int, passes: int
) -> tuple[int, int]:
    """The parts of a quota for included rows and for the others.

    `inside` of the `stock` tokens are in included rows; each row may be taken `passes` times.

    >>> _stream_quotas(100, Fraction(1, 2), stock=400, inside=300, passes=1)  # 3/4 of the stock
    (75, 25)
    >>> _stream_quotas(100, Fraction(1, 2), stock=400, inside=30, passes=1)  # no more is there
    (30, 70)
    """
    in_stock = Fraction(inside, stock) if stock else Fraction(0)
    wanted = math.floor(quota * max(share, in_stock))
    first = min(wanted, inside * passes)
    second = min(quota - first, (stock - inside) * passes)
    first = min(quota - second, inside * passes)
    return first, second


def _find_candidates(pool: Pool, bucket: Bucket, seed: int, streams: Sequence[_Stream]) -> None:
    """Find the rows of each stream with a key below a threshold, so that only those are sorted.

    A threshold is widened until it leaves enough tokens.
    """
    fractions: list[tuple[_Stream, float]] = []
    for stream in streams:
        if stream.rows:
            expected = MARGIN * stream.quota / stream.tokens + MIN_CANDIDATES / stream.rows
            fractions.append((stream, min(1.0, expected)))
    while fractions:
        _read_candidates(pool, bucket, seed, fractions)
        wider = []
        for stream, fraction in fractions:
            if fraction < 1.0 and not stream.is_enough():
                wider.append((stream, min(1.0, 4 * fraction)))
        fractions = wider


def _read_candidates(
    pool: Pool, bucket: Bucket, seed: int, fractions: Sequence[tuple[_Stream, float]]
) -> None:
    """Set the candidates of each stream: its rows in the lowest fraction of all keys."""
    found: list[list[Rows]] = [[] for _ in fractions]
    for number, part in enumerate(pool.parts(bucket)):
        keys = splitmix64(pool.slice("hash", part), seed)
        for (stream, fraction), pieces in zip(fractions, found, strict=True):
            mask = stream.marks[number]
            if fraction < 1.0:
                mask = mask & (keys < np.uint64(int(fraction * 2**64)))
            pieces.append(_rows_of(pool, part, np.flatnonzero(mask)))
    for (stream, _), pieces in zip(fractions, found, strict=True):
        stream.candidates = np.concatenate(pieces)


def _rows_of(pool: Pool, part: Bucket, chosen: Ints) -> Rows:
    """Some rows of a part, given by their places in it."""
    rows = np.empty(len(chosen), ROW)
    rows["position"] = chosen + part.start
    for name in ("hash", "n_tokens", "window", "windows"):
        rows[name] = pool.slice(name, part)[chosen]
    return rows


def _taken(stream: _Stream, seed: int, passes: int) -> tuple[Rows, Rows]:
    """(rows taken, next rows) of one stream: key order, up to the first row that does not fit."""
    candidates = stream.candidates
    if len(candidates) == 0:
        return NO_ROWS, NO_ROWS
    order = candidates[np.argsort(splitmix64(candidates["hash"], seed), kind="stable")]
    sums = np.cumsum(order["n_tokens"], dtype=np.int64)
    if passes > 1 and int(sums[-1]) < stream.quota:
        order = np.tile(order, min(passes, -(-stream.quota // int(sums[-1]))))
        sums = np.cumsum(order["n_tokens"], dtype=np.int64)
    end = int(np.searchsorted(sums, stream.quota, side="right"))
    return order[:end], order[end : end + TOPUP_CANDIDATES]
