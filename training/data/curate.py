"""From a mixture to the rows of a training set: exact quotas, seeded order, focus, top-up. No loop over rows.

Every row has an order key: the stored 64-bit hash of its id mixed with the seed by fixed integer arithmetic, ties by
id. A bucket's quota is the floor of its exact share of the budget. A bucket has two streams in key order, rows that
the focus includes and the others; each is taken up to the first row that does not fit its part of the quota. The
included part is `share`, or the included rows' part of the stock where that is more; what one stream cannot use goes
to the other. So a larger budget takes a superset of a smaller one, and buckets do not disturb each other. A last pass
may spend what is left of the budget on rows that still fit (`topup`), of the buckets that lack most of their quota first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mosaic.core.errors import UsageError
from mosaic.core.types.data import (
    BucketReport,
    Criterion,
    CurationReport,
    DatasetReport,
    Focus,
    Mixture,
    Range,
)
from mosaic.core.types.plans import Violation
from training.data.pool import Bucket, Mask, Pool, is_number

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
MARGIN = 1.25
MIN_CANDIDATES = 256
TOPUP_CANDIDATES = 32
ORDER_SALT = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class Curated:
    """Rows in training order: positions in the pool, and for each whether it was topped up or included by focus."""

    indices: Ints
    topup: Mask
    focus: Mask
    bucket: npt.NDArray[np.int32]
    buckets: list[Bucket]
    report: CurationReport

    def part(self, places: Sequence[int]) -> Curated:
        """The rows at these places of the training order; `report` stays that of the whole."""
        chosen = np.array(places, np.int64)
        return replace(
            self,
            indices=self.indices[chosen],
            topup=self.topup[chosen],
            focus=self.focus[chosen],
            bucket=self.bucket[chosen],
        )


@dataclass
class _Taken:
    """What one bucket gave: `rest` are the next rows in key order that did not fit."""

    bucket: Bucket
    quota: int
    rows: Ints
    focus: Mask
    rest: Ints


def mix(hashes: Keys, seed: int) -> Keys:
    """Order keys: the finaliser of SplitMix64 over hash plus seed times the golden gamma. Wraps modulo 2^64."""
    gamma = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64
    keys = hashes + np.uint64(gamma)
    keys ^= keys >> np.uint64(30)
    keys *= np.uint64(0xBF58476D1CE4E5B9)
    keys ^= keys >> np.uint64(27)
    keys *= np.uint64(0x94D049BB133111EB)
    keys ^= keys >> np.uint64(31)
    return keys


def exact(weight: float) -> Fraction:
    """The decimal that a person wrote, as a fraction: 0.1 is one tenth."""
    return Fraction(repr(float(weight)))


def quotas(pool: Pool, mixture: Mixture) -> dict[str, dict[str, int]]:
    """Tokens per data set and bucket: the floor of each exact share, so that the sum never exceeds the budget.

    Weights may sum to 1 within 1e-6; shares are taken of their exact sum, which hides nothing larger. A data set
    without bucket weights is spread in proportion to its stock after the quality filter; where that leaves nothing, to all
    of its stock, so that what is short shows.
    """
    out: dict[str, dict[str, int]] = {}
    stock, unfiltered = pool.stock(mixture.min_quality), pool.stock()
    total = sum(exact(w) for w in mixture.ratios.values())
    for dataset, ratio in mixture.ratios.items():
        weights = mixture.bucket_weights.get(dataset)
        shares = (
            {b: exact(w) for b, w in weights.items()}
            if weights
            else {b: Fraction(s.tokens) for b, s in stock[dataset].items()}
        )
        if not any(shares.values()):
            shares = {b: Fraction(s.tokens) for b, s in unfiltered[dataset].items()}
        whole = sum(shares.values())
        part = mixture.budget * exact(ratio) / total
        out[dataset] = {b: math.floor(part * s / whole) for b, s in shares.items()}
    return out


def check_mixture(pool: Pool, mixture: Mixture) -> list[Violation]:
    """Names the pool does not have, and focus that matches no row after quality filter and exclusion."""
    found: list[Violation] = []
    for field in ("ratios", "bucket_weights", "focus"):
        for dataset in getattr(mixture, field):
            if dataset not in pool.datasets:
                limit = pool.datasets
                found.append(
                    Violation(
                        path=f"{field}.{dataset}",
                        rule="unknown_dataset",
                        value=dataset,
                        limit=limit,
                    )
                )
    for dataset, weights in mixture.bucket_weights.items():
        known = list(pool.buckets(dataset)) if dataset in pool.datasets else []
        for bucket in weights:
            if known and bucket not in known:
                path = f"bucket_weights.{dataset}.{bucket}"
                found.append(Violation(path=path, rule="unknown_bucket", value=bucket, limit=known))
    for dataset, focus in mixture.focus.items():
        if dataset in pool.datasets:
            found += _check_focus(pool, dataset, focus, mixture.min_quality)
    return found


def _check_focus(pool: Pool, dataset: str, focus: Focus, min_quality: int) -> list[Violation]:
    found = []
    for side in ("include", "exclude"):
        for attribute in getattr(focus, side):
            if attribute not in pool.attributes:
                path = f"focus.{dataset}.{side}.{attribute}"
                limit = sorted(pool.attributes)
                found.append(
                    Violation(path=path, rule="unknown_attribute", value=attribute, limit=limit)
                )
            elif not fits_kind(getattr(focus, side)[attribute], kind := pool.attributes[attribute]):
                path = f"focus.{dataset}.{side}.{attribute}"
                hint = (
                    "give numbers, or min and max" if kind == "number" else "give a list of values"
                )
                found.append(
                    Violation(
                        path=path, rule="criterion_kind", value=attribute, limit=kind, hint=hint
                    )
                )
    if found or not focus.include:
        return found
    for bucket in pool.buckets(dataset).values():
        keep = _kept(pool, bucket, min_quality, focus)
        if bool((keep & _included(pool, bucket, focus)).any()):
            return []
    hint = f"no row of quality {min_quality} or better that is not excluded has any of these values"
    path = f"focus.{dataset}.include"
    return [
        Violation(
            path=path,
            rule="focus_matches_nothing",
            value=list(focus.include),
            limit="at least 1 row",
            hint=hint,
        )
    ]


def fits_kind(criterion: Criterion, kind: str) -> bool:
    """Whether a criterion can match anything of an attribute's kind: ranges and numbers only match numbers."""
    if isinstance(criterion, Range):
        return kind == "number"
    return kind != "number" or all(is_number(value) for value in criterion)


def left_after_exclusion(pool: Pool, mixture: Mixture) -> dict[str, dict[str, int]]:
    """Tokens per bucket of the quality asked for that no exclusion removes, for the data sets that exclude anything."""
    return {
        dataset: {
            name: int(
                pool.slice("n_tokens", bucket)[
                    _kept(pool, bucket, mixture.min_quality, focus)
                ].sum()
            )
            for name, bucket in pool.buckets(dataset).items()
        }
        for dataset, focus in mixture.focus.items()
        if focus.exclude
    }


def _kept(pool: Pool, bucket: Bucket, min_quality: int, focus: Focus | None) -> Mask:
    keep = pool.slice("quality", bucket) >= min_quality
    for attribute, criterion in (focus.exclude if focus else {}).items():
        keep &= ~pool.matches(attribute, criterion, bucket)
    return np.asarray(keep)


def _included(pool: Pool, bucket: Bucket, focus: Focus) -> Mask:
    mask = np.zeros(bucket.end - bucket.start, dtype=bool)
    for attribute, criterion in focus.include.items():
        mask |= pool.matches(attribute, criterion, bucket)
    return mask


def curate(pool: Pool, mixture: Mixture) -> Curated:
    """Select rows. UsageError listing every name or focus that the pool cannot serve."""
    violations = check_mixture(pool, mixture)
    if violations:
        lines = "\n".join(
            f"  {v.path}: {v.rule} (value {v.value!r}; allowed: {v.limit}) {v.hint}"
            for v in violations
        )
        raise UsageError(f"the plan does not fit the pool {pool.path}:\n{lines}")
    taken = []
    for dataset, per_bucket in quotas(pool, mixture).items():
        buckets = pool.buckets(dataset)
        for name, quota in per_bucket.items():
            if quota > 0:
                taken.append(_take(pool, buckets[name], quota, mixture))
    tokens = pool.column("n_tokens")
    rows = [t.rows for t in taken]
    spare = mixture.budget - int(sum(int(tokens[r].sum()) for r in rows))
    extra = (
        _topup(pool, mixture, taken, spare)
        if mixture.topup
        else [np.zeros(0, np.int64) for _ in taken]
    )
    report = _report(pool, mixture, taken, extra)
    return _ordered(pool, mixture, taken, extra, report)


def _take(pool: Pool, bucket: Bucket, quota: int, mixture: Mixture) -> _Taken:
    focus = mixture.focus.get(bucket.dataset)
    tokens = pool.slice("n_tokens", bucket)
    keep = _kept(pool, bucket, mixture.min_quality, focus)
    keys = mix(pool.slice("hash", bucket), mixture.seed)
    empty = np.zeros(0, np.int64)
    if focus and focus.include:
        included = keep & _included(pool, bucket, focus)
        others = keep & ~included
        stock, inside = int(tokens[keep].sum()), int(tokens[included].sum())
        share = max(exact(focus.share), Fraction(inside, stock) if stock else Fraction(0))
        wanted = math.floor(quota * share)
        capacity = mixture.max_repeat
        first = min(wanted, inside * capacity)
        second = min(quota - first, (stock - inside) * capacity)
        first = min(quota - second, inside * capacity)
        head, head_rest = _stream(keys, tokens, included, first, capacity)
        tail, tail_rest = _stream(keys, tokens, others, second, capacity)
    else:
        head, head_rest = empty, empty
        tail, tail_rest = _stream(keys, tokens, keep, quota, mixture.max_repeat)
    rows = np.concatenate([head, tail]) + bucket.start
    flags = np.zeros(len(rows), dtype=bool)
    flags[: len(head)] = True
    return _Taken(bucket, quota, rows, flags, np.concatenate([head_rest, tail_rest]) + bucket.start)


def _stream(keys: Keys, tokens: Any, mask: Mask, quota: int, passes: int) -> tuple[Ints, Ints]:
    """(rows taken, next rows) of one stream: key order, up to the first row that does not fit.

    Only rows whose key lies below a threshold are sorted; the threshold is widened until it holds enough tokens.
    """
    positions = np.flatnonzero(mask)
    if len(positions) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    stream_keys, stream_tokens = keys[positions], tokens[positions]
    stock = int(stream_tokens.sum())
    fraction = min(1.0, MARGIN * quota / stock + MIN_CANDIDATES / len(positions))
    chosen = np.arange(len(positions))
    while fraction < 1.0:
        below = np.flatnonzero(stream_keys < np.uint64(int(fraction * 2**64)))
        if int(stream_tokens[below].sum()) > quota and len(below) >= TOPUP_CANDIDATES:
            chosen = below
            break
        fraction *= 4
    order = chosen[np.argsort(stream_keys[chosen], kind="stable")]
    sums = np.cumsum(stream_tokens[order], dtype=np.int64)
    if passes > 1 and int(sums[-1]) < quota:
        order = np.tile(order, min(passes, -(-quota // int(sums[-1]))))
        sums = np.cumsum(stream_tokens[order], dtype=np.int64)
    end = int(np.searchsorted(sums, quota, side="right"))
    rest = order[end : end + TOPUP_CANDIDATES]
    return positions[order[:end]], positions[rest]


def _topup(pool: Pool, mixture: Mixture, taken: list[_Taken], spare: int) -> list[Ints]:
    """Spend what is left on the next rows of the planned buckets while they fit: each from the bucket that lacks most of
    its quota, so that no bucket gets more than a row above what was asked while another one can still give."""
    tokens = pool.column("n_tokens")
    used = np.concatenate([t.rows for t in taken]) if taken else np.zeros(0, np.int64)
    rests = [
        t.rest[~np.isin(t.rest, used)].tolist() for t in taken
    ]  # a few dozen each, whatever the pool's size
    lacks = [t.quota - int(tokens[t.rows].sum()) for t in taken]
    extra: list[list[int]] = [[] for _ in taken]
    open_ = set(range(len(taken)))
    while open_:
        i = max(open_, key=lambda n: (lacks[n], -n))
        row = next((r for r in rests[i] if tokens[r] <= spare), None)
        if row is None:
            open_.remove(i)  # `spare` only falls: nothing of this bucket will fit any more
            continue
        rests[i].remove(row)
        extra[i].append(row)
        lacks[i] -= int(tokens[row])
        spare -= int(tokens[row])
    return [np.array(rows, np.int64) for rows in extra]


def _report(pool: Pool, mixture: Mixture, taken: list[_Taken], extra: list[Ints]) -> CurationReport:
    tokens = pool.column("n_tokens")
    given = {(t.bucket.dataset, t.bucket.name): (t, e) for t, e in zip(taken, extra, strict=True)}
    datasets: dict[str, DatasetReport] = {}
    for dataset, per_bucket in quotas(pool, mixture).items():
        buckets = {}
        for name, quota in per_bucket.items():
            t, more = given.get((dataset, name), (None, np.zeros(0, np.int64)))
            rows = np.concatenate([t.rows, more]) if t is not None else more
            selected = int(tokens[rows].sum())
            flags = int(t.focus.sum()) if t is not None else 0
            short = max(0, quota - selected)
            buckets[name] = BucketReport(
                requested=quota, selected=selected, short=short, rows=len(rows), focus_rows=flags
            )
        datasets[dataset] = DatasetReport(**_sums(list(buckets.values())), buckets=buckets)
    return CurationReport(
        datasets=datasets, total=BucketReport(**_sums(list(datasets.values()))), digest=""
    )


def _sums(parts: list[Any]) -> dict[str, int]:
    return {name: sum(getattr(p, name) for p in parts) for name in BucketReport.model_fields}


def _ordered(
    pool: Pool, mixture: Mixture, taken: list[_Taken], extra: list[Ints], report: CurationReport
) -> Curated:
    """All rows in one seeded order over data sets, and the digest of that order."""
    rows = np.concatenate(
        [np.concatenate([t.rows, e]) for t, e in zip(taken, extra, strict=True)]
        or [np.zeros(0, np.int64)]
    )
    topup = np.concatenate(
        [
            np.r_[np.zeros(len(t.rows), bool), np.ones(len(e), bool)]
            for t, e in zip(taken, extra, strict=True)
        ]
        or [np.zeros(0, bool)]
    )
    focus = np.concatenate(
        [np.r_[t.focus, np.zeros(len(e), bool)] for t, e in zip(taken, extra, strict=True)]
        or [np.zeros(0, bool)]
    )
    owner = np.repeat(
        np.arange(len(taken)), [len(t.rows) + len(e) for t, e in zip(taken, extra, strict=True)]
    )
    hashes = pool.column("hash")[rows]
    window = pool.column("window")[rows]
    shuffle = mix(hashes ^ np.uint64(ORDER_SALT), mixture.seed)
    order = np.lexsort((rows, _repeats(rows), window, shuffle))
    content = hashlib.sha256()
    content.update(hashes[order].astype("<u8").tobytes())
    content.update(window[order].astype("<i4").tobytes())
    return Curated(
        indices=rows[order],
        topup=topup[order],
        focus=focus[order],
        bucket=owner[order].astype(np.int32),
        buckets=[t.bucket for t in taken],
        report=report.model_copy(update={"digest": content.hexdigest()}),
    )


def _repeats(rows: Ints) -> Ints:
    """Which repetition of its row each entry is, counted from 0."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]] if len(rows) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    out = np.empty(len(rows), np.int64)
    out[order] = np.arange(len(rows)) - first
    return out


def write_training_set(pool: Pool, curated: Curated, path: Path) -> None:
    """Parquet in training order: id, dataset, bucket, messages, n_tokens, window, windows, weight, topup, focus.

    `weight` is one over the number of windows of the row's chat.
    """
    texts = pool.rows(curated.indices)
    windows = pool.column("windows")[curated.indices]
    datasets = np.array([b.dataset for b in curated.buckets], dtype=object)
    names = np.array([b.name for b in curated.buckets], dtype=object)
    table = pa.table(
        {
            "id": texts["id"],
            "dataset": pa.array(datasets[curated.bucket].tolist(), pa.string()),
            "bucket": pa.array(names[curated.bucket].tolist(), pa.string()),
            "messages": texts["messages"],
            "n_tokens": pa.array(pool.column("n_tokens")[curated.indices]),
            "window": pa.array(pool.column("window")[curated.indices]),
            "windows": pa.array(windows),
            "weight": pa.array(1.0 / windows),
            "topup": pa.array(curated.topup),
            "focus": pa.array(curated.focus),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)
