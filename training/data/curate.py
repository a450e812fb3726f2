"""From a mixture to the rows of a training set: exact quotas, seeded order, focus, top-up.

There is no loop over rows. Every row has an order key: the stored 64-bit hash of its id, mixed
with the seed by fixed integer arithmetic, ties by id.

A bucket's quota is the floor of its exact share of the budget. A bucket has two streams in key
order, the rows that the focus includes and the others. Each is taken up to the first row that does
not fit its part of the quota. The included part is `share`, or the included rows' part of the
stock if that is more. What one stream cannot use goes to the other. So a larger budget takes a
superset of a smaller one, and buckets do not disturb each other.

A last pass (`topup`) may spend what is left of the budget on rows that still fit, starting with
the buckets that lack most of their quota.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

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
from mosaic.core.types.plans import ActionPlan, Limits, Violation
from training.data.pool import Bucket, Column, Mask, Pool
from training.data.pool_format import is_number

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
MARGIN = 1.25
MIN_CANDIDATES = 256
TOPUP_CANDIDATES = 32
ORDER_SALT = 0x5851F42D4C957F2D
NO_ROWS: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Curated:
    """Rows in training order.

    `indices` are positions in the pool. For each row, `topup` and `focus` say whether it was topped
    up or included by focus, and `bucket` is its place in `buckets`.
    """

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
class _Selection:
    """What one bucket gives, as positions in the pool.

    `rows` are within its quota, those that the focus includes first; `focus` marks them.
    `next_rows` follow in key order and did not fit; `topup` are those of them that the last pass takes.
    """

    bucket: Bucket
    quota: int
    rows: Ints
    focus: Mask
    next_rows: Ints
    topup: Ints

    @property
    def all_rows(self) -> Ints:
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


def mixture_of(plan: ActionPlan, budget: int, seed: int, limits: Limits) -> Mixture:
    """The mixture that executes a plan: its shares and focus, so many tokens, the limits' quality."""
    return Mixture(
        ratios=plan.ratios,
        bucket_weights=plan.bucket_weights,
        focus=plan.focus,
        budget=budget,
        seed=seed,
        min_quality=limits.min_quality,
        max_repeat=limits.max_repeat,
    )


def quotas(pool: Pool, mixture: Mixture) -> dict[str, dict[str, int]]:
    """Tokens per data set and bucket: the floor of each exact share.

    The sum never exceeds the budget: 1,000 tokens in thirds are 333 + 333 + 333. Weights may sum to
    1 within 1e-6; shares are taken of their exact sum, which hides nothing larger.

    A data set without bucket weights is spread in proportion to its stock after the quality
    filter. If that leaves nothing, it is spread over all of its stock, so that what is short shows.
    """
    per_dataset: dict[str, dict[str, int]] = {}
    stock, unfiltered = pool.stock(mixture.min_quality), pool.stock()
    total = sum(exact(weight) for weight in mixture.ratios.values())
    for dataset, ratio in mixture.ratios.items():
        weights = mixture.bucket_weights.get(dataset)
        if weights:
            shares = {bucket: exact(weight) for bucket, weight in weights.items()}
        else:
            shares = {b: Fraction(s.tokens) for b, s in stock[dataset].items()}
        if not any(shares.values()):
            shares = {b: Fraction(s.tokens) for b, s in unfiltered[dataset].items()}
        whole = sum(shares.values())
        part = mixture.budget * exact(ratio) / total
        per_dataset[dataset] = {b: math.floor(part * s / whole) for b, s in shares.items()}
    return per_dataset


def check_mixture(pool: Pool, mixture: Mixture) -> list[Violation]:
    """Names that the pool does not have, and focus that matches no row.

    A row must pass the quality filter and the exclusions to be matched.
    """
    found: list[Violation] = []
    for field in ("ratios", "bucket_weights", "focus"):
        for dataset in getattr(mixture, field):
            if dataset not in pool.datasets:
                path = f"{field}.{dataset}"
                limit = pool.datasets
                found.append(
                    Violation(path=path, rule="unknown_dataset", value=dataset, limit=limit)
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
    """What is wrong with one data set's focus."""
    found = []
    for side, criteria in (("include", focus.include), ("exclude", focus.exclude)):
        for attribute, criterion in criteria.items():
            path = f"focus.{dataset}.{side}.{attribute}"
            kind = pool.attributes.get(attribute)
            if kind is None:
                limit = sorted(pool.attributes)
                found.append(
                    Violation(path=path, rule="unknown_attribute", value=attribute, limit=limit)
                )
            elif not fits_kind(criterion, kind):
                hint = "give a list of values"
                if kind == "number":
                    hint = "give numbers, or min and max"
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
    return [
        Violation(
            path=f"focus.{dataset}.include",
            rule="focus_matches_nothing",
            value=list(focus.include),
            limit="at least 1 row",
            hint=f"no row of quality {min_quality} or better that is not excluded has any of these "
            "values",
        )
    ]


def fits_kind(criterion: Criterion, kind: str) -> bool:
    """Whether a criterion can match anything of an attribute's kind.

    Ranges and numbers only match numbers.
    """
    if isinstance(criterion, Range):
        return kind == "number"
    return kind != "number" or all(is_number(value) for value in criterion)


def left_after_exclusion(pool: Pool, mixture: Mixture) -> dict[str, dict[str, int]]:
    """Tokens per bucket, of the quality asked for, that no exclusion removes.

    Only for the data sets that exclude anything.
    """
    left: dict[str, dict[str, int]] = {}
    for dataset, focus in mixture.focus.items():
        if not focus.exclude:
            continue
        left[dataset] = {}
        for name, bucket in pool.buckets(dataset).items():
            keep = _kept(pool, bucket, mixture.min_quality, focus)
            left[dataset][name] = int(pool.slice("n_tokens", bucket)[keep].sum())
    return left


def _kept(pool: Pool, bucket: Bucket, min_quality: int, focus: Focus | None) -> Mask:
    """Which rows of a bucket are good enough and not excluded."""
    keep = pool.slice("quality", bucket) >= min_quality
    if focus:
        for attribute, criterion in focus.exclude.items():
            keep &= ~pool.matches(attribute, criterion, bucket)
    return np.asarray(keep)


def _included(pool: Pool, bucket: Bucket, focus: Focus) -> Mask:
    """Which rows of a bucket the focus prefers."""
    mask = np.zeros(bucket.end - bucket.start, dtype=bool)
    for attribute, criterion in focus.include.items():
        mask |= pool.matches(attribute, criterion, bucket)
    return mask


def curate(pool: Pool, mixture: Mixture) -> Curated:
    """Select rows. Raises UsageError listing every name or focus that the pool cannot serve."""
    violations = check_mixture(pool, mixture)
    if violations:
        lines = []
        for v in violations:
            lines.append(f"  {v.path}: {v.rule} (value {v.value!r}; allowed: {v.limit}) {v.hint}")
        raise UsageError(f"the plan does not fit the pool {pool.path}:\n" + "\n".join(lines))
    quota_of = quotas(pool, mixture)
    selections = []
    for dataset, per_bucket in quota_of.items():
        buckets = pool.buckets(dataset)
        for name, quota in per_bucket.items():
            if quota > 0:
                selections.append(_select(pool, buckets[name], quota, mixture))
    if mixture.topup:
        _top_up(pool.column("n_tokens"), selections, mixture.budget)
    report = _report(pool.column("n_tokens"), selections, quota_of)
    return _ordered(pool, mixture.seed, selections, report)


def _select(pool: Pool, bucket: Bucket, quota: int, mixture: Mixture) -> _Selection:
    """The rows of one bucket within its quota."""
    focus = mixture.focus.get(bucket.dataset)
    tokens = pool.slice("n_tokens", bucket)
    keep = _kept(pool, bucket, mixture.min_quality, focus)
    keys = splitmix64(pool.slice("hash", bucket), mixture.seed)
    passes = mixture.max_repeat
    if focus and focus.include:
        included = keep & _included(pool, bucket, focus)
        others = keep & ~included
        stock, inside = int(tokens[keep].sum()), int(tokens[included].sum())
        first, second = _stream_quotas(quota, exact(focus.share), stock, inside, passes)
        head, after_head = _stream(keys, tokens, included, first, passes)
        tail, after_tail = _stream(keys, tokens, others, second, passes)
    else:
        head, after_head = NO_ROWS, NO_ROWS
        tail, after_tail = _stream(keys, tokens, keep, quota, passes)
    rows = np.concatenate([head, tail]) + bucket.start
    flags = np.zeros(len(rows), dtype=bool)
    flags[: len(head)] = True
    next_rows = np.concatenate([after_head, after_tail]) + bucket.start
    return _Selection(bucket, quota, rows, flags, next_rows, NO_ROWS)


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


def _stream(keys: Keys, tokens: Column, mask: Mask, quota: int, passes: int) -> tuple[Ints, Ints]:
    """(rows taken, next rows) of one stream: key order, up to the first row that does not fit.

    Only rows with a key below a threshold are sorted. The threshold is widened until it holds
    enough tokens.
    """
    positions = np.flatnonzero(mask)
    if len(positions) == 0:
        return NO_ROWS, NO_ROWS
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
    following = order[end : end + TOPUP_CANDIDATES]
    return positions[order[:end]], positions[following]


def _top_up(tokens: Column, selections: list[_Selection], budget: int) -> None:
    """Spend what is left of the budget on the next rows of the planned buckets, while they fit.

    Each row comes from the bucket that lacks most of its quota, so that no bucket gets more than a
    row above what was asked while another one can still give. A few dozen rows per bucket are
    looked at, whatever the pool's size.
    """
    used = _joined([selection.rows for selection in selections])
    lacks = [selection.quota - int(tokens[selection.rows].sum()) for selection in selections]
    spare = budget - int(tokens[used].sum())
    candidates: list[list[int]] = []
    for selection in selections:
        unused = ~np.isin(selection.next_rows, used)
        candidates.append(selection.next_rows[unused].tolist())
    extra: list[list[int]] = [[] for _ in selections]
    open_ = set(range(len(selections)))
    while open_:
        neediest = max(open_, key=lambda number: (lacks[number], -number))
        row = next((r for r in candidates[neediest] if tokens[r] <= spare), None)
        if row is None:
            open_.remove(neediest)  # `spare` only falls: nothing of this bucket will fit any more
            continue
        candidates[neediest].remove(row)
        extra[neediest].append(row)
        lacks[neediest] -= int(tokens[row])
        spare -= int(tokens[row])
    for selection, rows in zip(selections, extra, strict=True):
        selection.topup = np.array(rows, np.int64)


def _report(
    tokens: Column, selections: list[_Selection], quota_of: dict[str, dict[str, int]]
) -> CurationReport:
    """What was asked of each bucket, and what it gave."""
    given = {(s.bucket.dataset, s.bucket.name): s for s in selections}
    datasets: dict[str, DatasetReport] = {}
    for dataset, per_bucket in quota_of.items():
        buckets = {}
        for name, quota in per_bucket.items():
            selection = given.get((dataset, name))
            rows = selection.all_rows if selection else NO_ROWS
            selected = int(tokens[rows].sum())
            buckets[name] = BucketReport(
                requested=quota,
                selected=selected,
                short=max(0, quota - selected),
                rows=len(rows),
                focus_rows=int(selection.focus.sum()) if selection else 0,
            )
        datasets[dataset] = DatasetReport(**_sums(list(buckets.values())), buckets=buckets)
    total = BucketReport(**_sums(list(datasets.values())))
    return CurationReport(datasets=datasets, total=total, digest="")


def _sums(parts: Sequence[BucketReport]) -> dict[str, int]:
    """Each count, summed over buckets or data sets."""
    totals = dict.fromkeys(BucketReport.model_fields, 0)
    for part in parts:
        for name in totals:
            totals[name] += getattr(part, name)
    return totals


def _ordered(
    pool: Pool, seed: int, selections: list[_Selection], report: CurationReport
) -> Curated:
    """All rows in one seeded order over data sets, and the digest of that order."""
    rows = _joined([selection.all_rows for selection in selections])
    topup = np.zeros(len(rows), bool)
    focus = np.zeros(len(rows), bool)
    owner = np.zeros(len(rows), np.int64)
    for number, (selection, start) in enumerate(_placed(selections)):
        within = start + len(selection.rows)
        end = within + len(selection.topup)
        topup[within:end] = True
        focus[start:within] = selection.focus
        owner[start:end] = number
    hashes = pool.column("hash")[rows]
    window = pool.column("window")[rows]
    shuffle = splitmix64(hashes ^ np.uint64(ORDER_SALT), seed)
    order = np.lexsort((rows, _repeats(rows), window, shuffle))
    content = hashlib.sha256()
    content.update(hashes[order].astype("<u8").tobytes())
    content.update(window[order].astype("<i4").tobytes())
    return Curated(
        indices=rows[order],
        topup=topup[order],
        focus=focus[order],
        bucket=owner[order].astype(np.int32),
        buckets=[selection.bucket for selection in selections],
        report=report.model_copy(update={"digest": content.hexdigest()}),
    )


def _placed(selections: list[_Selection]) -> Iterator[tuple[_Selection, int]]:
    """Each selection, and where its rows begin when all are put one after the other."""
    start = 0
    for selection in selections:
        yield selection, start
        start += len(selection.rows) + len(selection.topup)


def _joined(parts: list[Ints]) -> Ints:
    """The parts one after the other."""
    return np.concatenate(parts) if parts else NO_ROWS


def _repeats(rows: Ints) -> Ints:
    """Which repetition of its row each entry is, counted from 0.

    >>> _repeats(np.array([7, 4, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.r_[True, ordered[1:] != ordered[:-1]] if len(rows) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), 0))
    repeats = np.empty(len(rows), np.int64)
    repeats[order] = np.arange(len(rows)) - first
    return repeats


def write_training_set(pool: Pool, curated: Curated, path: Path) -> None:
    """Write Parquet in training order.

    Columns: id, dataset, bucket, messages, n_tokens, window, windows, weight, topup, focus.
    `weight` is one over the number of windows of the row's chat.
    """
    texts = pool.rows(curated.indices)
    windows = pool.column("windows")[curated.indices]
    datasets = np.array([bucket.dataset for bucket in curated.buckets], dtype=object)
    names = np.array([bucket.name for bucket in curated.buckets], dtype=object)
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
