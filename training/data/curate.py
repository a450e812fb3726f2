"""From a mixture to the rows of a training set: exact quotas, seeded order, focus, top-up.

Rows are never looped over. Every row has an order key: the stored 64-bit hash of its id, mixed
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
    CurationReport,
    DatasetReport,
    Mixture,
)
from mosaic.core.types.plans import ActionPlan, Limits
from training.data.mixture_checks import check_mixture
from training.data.pool import Bucket, Mask, Pool
from training.data.selection import (
    NO_ROWS,
    ROW,
    Ints,
    Row,
    Rows,
    Selection,
    exact,
    select,
    splitmix64,
    tokens_of,
)

ORDER_SALT = 0x5851F42D4C957F2D


@dataclass(frozen=True)
class Curated:
    """Rows in training order.

    `rows` is what the index says of each (`ROW`). For each row, `topup` and `focus` say whether it
    was topped up or included by focus, and `bucket` is its place in `buckets`.
    """

    rows: Rows
    topup: Mask
    focus: Mask
    bucket: npt.NDArray[np.int32]
    buckets: list[Bucket]
    report: CurationReport

    @property
    def indices(self) -> Ints:
        """The rows' positions in the pool."""
        return self.rows["position"]

    @property
    def n_tokens(self) -> npt.NDArray[np.int32]:
        """The rows' tokens."""
        return self.rows["n_tokens"]

    def part(self, places: Sequence[int]) -> Curated:
        """The rows at these places of the training order; `report` stays that of the whole."""
        chosen = np.array(places, np.int64)
        return replace(
            self,
            rows=self.rows[chosen],
            topup=self.topup[chosen],
            focus=self.focus[chosen],
            bucket=self.bucket[chosen],
        )


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
                selections.append(select(pool, buckets[name], quota, mixture))
    if mixture.topup:
        _top_up(selections, mixture.budget)
    report = _report(selections, quota_of)
    return _ordered(mixture.seed, selections, report)


def _top_up(selections: list[Selection], budget: int) -> None:
    """Spend what is left of the budget on the next rows of the planned buckets, while they fit.

    Each row comes from the bucket that lacks most of its quota, so that no bucket gets more than a
    row above what was asked while another one can still give. A few dozen rows per bucket are
    looked at, whatever the pool's size.
    """
    used = _joined([selection.rows for selection in selections])
    lacks = [selection.quota - tokens_of(selection.rows) for selection in selections]
    spare = budget - tokens_of(used)
    candidates: list[list[Row]] = []
    for selection in selections:
        unused = ~np.isin(selection.next_rows["position"], used["position"])
        candidates.append(list(selection.next_rows[unused]))
    extra: list[list[Row]] = [[] for _ in selections]
    open_ = set(range(len(selections)))
    while open_:
        neediest = max(open_, key=lambda number: (lacks[number], -number))
        fitting = (at for at, row in enumerate(candidates[neediest]) if row["n_tokens"] <= spare)
        place = next(fitting, None)
        if place is None:
            open_.remove(neediest)  # `spare` only falls: nothing of this bucket will fit any more
            continue
        row = candidates[neediest].pop(place)
        extra[neediest].append(row)
        lacks[neediest] -= int(row["n_tokens"])
        spare -= int(row["n_tokens"])
    for selection, rows in zip(selections, extra, strict=True):
        selection.topup = np.array(rows, ROW)


def _report(selections: list[Selection], quota_of: dict[str, dict[str, int]]) -> CurationReport:
    """What was asked of each bucket, and what it gave."""
    given = {(s.bucket.dataset, s.bucket.name): s for s in selections}
    datasets: dict[str, DatasetReport] = {}
    for dataset, per_bucket in quota_of.items():
        buckets = {}
        for name, quota in per_bucket.items():
            selection = given.get((dataset, name))
            rows = selection.all_rows if selection else NO_ROWS
            selected = tokens_of(rows)
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


def _ordered(seed: int, selections: list[Selection], report: CurationReport) -> Curated:
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
    positions = rows["position"]
    shuffle = splitmix64(rows["hash"] ^ np.uint64(ORDER_SALT), seed)
    order = np.lexsort((positions, _repeats(positions), rows["window"], shuffle))
    rows = rows[order]
    content = hashlib.sha256()
    content.update(rows["hash"].astype("<u8").tobytes())
    content.update(rows["window"].astype("<i4").tobytes())
    return Curated(
        rows=rows,
        topup=topup[order],
        focus=focus[order],
        bucket=owner[order].astype(np.int32),
        buckets=[selection.bucket for selection in selections],
        report=report.model_copy(update={"digest": content.hexdigest()}),
    )


def _placed(selections: list[Selection]) -> Iterator[tuple[Selection, int]]:
    """Each selection, and where its rows begin when all are put one after the other."""
    start = 0
    for selection in selections:
        yield selection, start
        start += len(selection.rows) + len(selection.topup)


def _joined(parts: list[Rows]) -> Rows:
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
    rows = curated.rows
    datasets = np.array([bucket.dataset for bucket in curated.buckets], dtype=object)
    names = np.array([bucket.name for bucket in curated.buckets], dtype=object)
    table = pa.table(
        {
            "id": texts["id"],
            "dataset": pa.array(datasets[curated.bucket].tolist(), pa.string()),
            "bucket": pa.array(names[curated.bucket].tolist(), pa.string()),
            "messages": texts["messages"],
            "n_tokens": pa.array(rows["n_tokens"]),
            "window": pa.array(rows["window"]),
            "windows": pa.array(rows["windows"]),
            "weight": pa.array(1.0 / rows["windows"]),
            "topup": pa.array(curated.topup),
            "focus": pa.array(curated.focus),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part, compression="zstd")
    part.replace(path)
