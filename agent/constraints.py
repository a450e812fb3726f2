"""What a plan may not do. Pure: a plan and an observation in, violations out; nothing is repaired or renormalised."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mosaic.core.types.base import SUM_TOLERANCE
from mosaic.core.types.data import Mixture
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation
from training.data.curate import check_mixture, left_after_exclusion
from training.data.pool import Pool

LOW_RELIABILITY = ("unknown", "low")
UNMEASURED = "unmeasured"
ACTED_UPON = 0.01


def distance(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """L1 distance of two weight vectors, 0-2; a missing name weighs 0."""
    return math.fsum(abs(a.get(name, 0.0) - b.get(name, 0.0)) for name in sorted({*a, *b}))


def bucket_weights(
    plan: ActionPlan, dataset: str, proportions: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The weights a plan gives a data set's buckets: its own, or the pool's proportions where it names none."""
    return dict(plan.bucket_weights.get(dataset) or proportions.get(dataset, {}))


def cells(
    plan: ActionPlan, proportions: Mapping[str, Mapping[str, float]]
) -> dict[tuple[str, str], float]:
    """The plan as one distribution over (data set, bucket)."""
    return {
        (dataset, bucket): ratio * weight
        for dataset, ratio in plan.ratios.items()
        for bucket, weight in bucket_weights(plan, dataset, proportions).items()
    }


def plan_distance(
    a: ActionPlan, b: ActionPlan, proportions: Mapping[str, Mapping[str, float]]
) -> float:
    """L1 distance of two plans over all (data set, bucket) cells, 0-2."""
    first, second = cells(a, proportions), cells(b, proportions)
    return math.fsum(abs(first.get(c, 0.0) - second.get(c, 0.0)) for c in sorted({*first, *second}))


def mixture_of(plan: ActionPlan, observation: Observation) -> Mixture:
    """The mixture that would execute a plan in this round."""
    return Mixture(
        ratios=plan.ratios,
        bucket_weights=plan.bucket_weights,
        focus=plan.focus,
        budget=observation.budget_per_round,
        seed=observation.seed,
        min_quality=observation.limits.min_quality,
        max_repeat=observation.limits.max_repeat,
    )


def check_plan(plan: ActionPlan, observation: Observation, pool: Pool) -> list[Violation]:
    """Every reason why a plan may not run now; an empty list lets it pass."""
    violations = _names(plan, observation)
    if violations:
        return violations
    mixture = mixture_of(plan, observation)
    violations += check_mixture(pool, mixture)
    violations += _budget(observation)
    violations += amounts(
        plan, observation, {} if violations else left_after_exclusion(pool, mixture)
    )
    violations += _repeats(plan, observation)
    violations += _refused(plan, observation)
    return violations


def amounts(
    plan: ActionPlan, observation: Observation, left: Mapping[str, Mapping[str, int]] | None = None
) -> list[Violation]:
    """What the weights of a plan break: stock, steps, reliability, floors.

    `left` are the tokens per data set and bucket that a focus does not exclude, where that is fewer than the stock.
    """
    return [
        *_stock(plan, observation, left or {}),
        *_steps(plan, observation),
        *_reliability(plan, observation),
        *_floors(plan, observation),
    ]


def _names(plan: ActionPlan, observation: Observation) -> list[Violation]:
    known = sorted(observation.stock)
    found = []
    for field in ("ratios", "bucket_weights", "focus"):
        for dataset in getattr(plan, field):
            if dataset not in observation.stock:
                found.append(
                    Violation(
                        path=f"{field}.{dataset}",
                        rule="unknown_dataset",
                        value=dataset,
                        limit=known,
                    )
                )
    for dataset, weights in plan.bucket_weights.items():
        buckets = sorted(observation.bucket_proportions.get(dataset, {}))
        for bucket in weights:
            if dataset in observation.stock and bucket not in buckets:
                path = f"bucket_weights.{dataset}.{bucket}"
                found.append(
                    Violation(path=path, rule="unknown_bucket", value=bucket, limit=buckets)
                )
    names = [o.name for o in observation.objectives]
    for objective in plan.expected:
        if objective not in names:
            path = f"expected.{objective}"
            found.append(
                Violation(path=path, rule="unknown_objective", value=objective, limit=names)
            )
    return found


def _budget(observation: Observation) -> list[Violation]:
    if observation.cost_per_round <= observation.budget_left:
        return []
    hint = "the total budget is used up; stop here or raise budget.tokens_total"
    limit, value = observation.budget_left, observation.cost_per_round
    return [Violation(path="ratios", rule="budget", value=value, limit=limit, hint=hint)]


def _stock(
    plan: ActionPlan, observation: Observation, left: Mapping[str, Mapping[str, int]]
) -> list[Violation]:
    found, limits = [], observation.limits
    for dataset, ratio in plan.ratios.items():
        if ratio > 0 and dataset not in observation.bucket_proportions:
            hint = f"no row of {dataset} has quality {limits.min_quality} or better"
            found.append(
                Violation(path=f"ratios.{dataset}", rule="stock", value=ratio, limit=0, hint=hint)
            )
    for (dataset, bucket), share in cells(plan, observation.bucket_proportions).items():
        stock = observation.stock[dataset].get(bucket)
        tokens = left[dataset].get(bucket, 0) if dataset in left else stock.tokens if stock else 0
        available = tokens * limits.max_repeat
        asked = math.floor(share * observation.budget_per_round)
        if asked > available:
            path = f"bucket_weights.{dataset}.{bucket}"
            hint = f"the bucket holds {available} tokens of quality {limits.min_quality} or better"
            hint += " that the focus does not exclude" if dataset in left else ""
            found.append(
                Violation(path=path, rule="stock", value=asked, limit=available, hint=hint)
            )
    return found


def _steps(plan: ActionPlan, observation: Observation) -> list[Violation]:
    limits, last = observation.limits, observation.last_plan
    found = []
    if limits.max_ratio_step is not None:
        step = distance(plan.ratios, last.ratios)
        if step > limits.max_ratio_step + 1e-9:
            hint = "move the ratios less far from the last executed plan"
            value, limit = round(step, 4), limits.max_ratio_step
            found.append(Violation(path="ratios", rule="step", value=value, limit=limit, hint=hint))
    if limits.max_bucket_step is not None:
        for dataset in sorted({*plan.ratios, *plan.bucket_weights}):
            before = bucket_weights(last, dataset, observation.bucket_proportions)
            after = bucket_weights(plan, dataset, observation.bucket_proportions)
            step = distance(after, before)
            if step > limits.max_bucket_step + 1e-9:
                hint = "move the bucket weights less far from the last executed plan"
                path, value = f"bucket_weights.{dataset}", round(step, 4)
                found.append(
                    Violation(
                        path=path, rule="step", value=value, limit=limits.max_bucket_step, hint=hint
                    )
                )
    return found


def unreliable(observation: Observation) -> dict[tuple[str, str], str]:
    """(data set, bucket) whose slice is of unknown or low reliability, or in no suite of its objective: which of these."""
    found = {}
    for objective in observation.objectives:
        known = {s.slice: s.reliability for s in observation.profile.of(objective.name)}
        for dataset in objective.datasets:
            for bucket in observation.bucket_proportions.get(dataset, {}):
                reliability = known.get(bucket, UNMEASURED)
                if reliability in (*LOW_RELIABILITY, UNMEASURED):
                    found[dataset, bucket] = reliability
    return found


def _reliability(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """A slice that is not known well may not be acted upon: its bucket's weight in its data set may not rise."""
    found = []
    for (dataset, bucket), reliability in unreliable(observation).items():
        after = bucket_weights(plan, dataset, observation.bucket_proportions).get(bucket, 0.0)
        limit = bucket_weights(observation.last_plan, dataset, observation.bucket_proportions).get(
            bucket, 0.0
        )
        if after > limit + ACTED_UPON:
            path = f"bucket_weights.{dataset}.{bucket}"
            hint = f"the slice {bucket} has {reliability} reliability: leave it"
            if reliability == UNMEASURED:
                hint = f"no prompt measures {bucket}: leave it"
            value, rounded = round(after, 4), round(limit, 4)
            found.append(
                Violation(path=path, rule="reliability", value=value, limit=rounded, hint=hint)
            )
    return found


def _repeats(plan: ActionPlan, observation: Observation) -> list[Violation]:
    found = []
    for past in observation.history:
        if past.plan is None or not past.dominated or plan.focus != past.plan.focus:
            continue
        step = plan_distance(plan, past.plan, observation.bucket_proportions)
        if step < observation.limits.near_repeat:
            hint = f"round {past.round} tried this and is dominated; move further away from it"
            value, limit = round(step, 4), observation.limits.near_repeat
            found.append(
                Violation(path="ratios", rule="near_repeat", value=value, limit=limit, hint=hint)
            )
    return found


def _floors(plan: ActionPlan, observation: Observation) -> list[Violation]:
    found = []
    for objective in observation.objectives:
        if objective.name not in observation.below_floor or not objective.datasets:
            continue
        before = math.fsum(observation.last_plan.ratios.get(d, 0.0) for d in objective.datasets)
        after = math.fsum(plan.ratios.get(d, 0.0) for d in objective.datasets)
        # Weights are written in millionths.
        if after < before - 10 * SUM_TOLERANCE:
            path = f"ratios.{objective.datasets[0]}"
            hint = f"{objective.name} is below its floor {objective.floor}: the share of its data sets may not fall"
            value, limit = round(after, 4), round(before, 4)
            found.append(Violation(path=path, rule="floor", value=value, limit=limit, hint=hint))
    return found


def _refused(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """A plan that a person or a rule refused in this round is not asked for again."""
    for before in refused_plans(observation):
        step = plan_distance(plan, before, observation.bucket_proportions)
        if plan.focus == before.focus and step < observation.limits.near_repeat:
            hint = "a plan as good as this one was refused in this round; propose another"
            value, limit = round(step, 4), observation.limits.near_repeat
            return [
                Violation(path="plan", rule="refused_before", value=value, limit=limit, hint=hint)
            ]
    return []


def refused_plans(observation: Observation) -> list[ActionPlan]:
    """Plans of this round that a person or a rule refused."""
    return [
        ActionPlan.model_validate(v.value)
        for v in observation.feedback
        if v.rule == "rejected" and v.value
    ]
