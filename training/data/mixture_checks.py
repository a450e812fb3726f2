"""What of a mixture a pool cannot serve, and what its exclusions leave."""

from __future__ import annotations

from mosaic.core.types.data import Criterion, Focus, Mixture, Range
from mosaic.core.types.plans import Violation
from training.data.pool import Pool
from training.data.pool_format import is_number
from training.data.selection import included, kept


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
        for part in pool.parts(bucket):
            keep = kept(pool, part, min_quality, focus)
            if bool((keep & included(pool, part, focus)).any()):
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
            left[dataset][name] = 0
            for part in pool.parts(bucket):
                keep = kept(pool, part, mixture.min_quality, focus)
                left[dataset][name] += int(pool.slice("n_tokens", part)[keep].sum())
    return left
