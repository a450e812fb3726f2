"""What a plan may not do. Pure: a plan and an observation go in, violations come out.

Nothing is repaired or renormalised here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agent.methods import differ_in_weights_only, mixture_tokens, shares_of
from agent.weights import Cell, bucket_weights, distance, plan_distance, plan_shares, share_of
from mosaic.core.types.base import SUM_TOLERANCE
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.runs import Observation, each_trial
from training.data.curate import mixture_of
from training.data.mixture_checks import check_mixture, left_after_exclusion
from training.data.pool import Pool

LOW_RELIABILITY = ("unknown", "low")
UNMEASURED = "unmeasured"
# A weight that rises by less than this is not counted as acting upon its slice.
MIN_RISE = 0.01
# What binary fractions add to a distance that stands exactly at its limit.
ROUNDING = 1e-9


def check_plan(
    plan: ActionPlan, observation: Observation, pool: Pool, siblings: Sequence[ActionPlan] = ()
) -> list[Violation]:
    """Every reason why a plan may not run now. An empty list lets it pass.

    `siblings` are plans of the same round that it must differ from.
    """
    violations = _check_names(plan, observation)
    if violations:
        return violations
    violations += _check_methods(plan, observation)
    violations += _check_budget(observation)
    tokens = mixture_tokens(plan, observation.methods, observation.budget_per_round)
    left = {}
    if tokens:
        mixture = mixture_of(plan, tokens, observation.seed, observation.limits)
        violations += check_mixture(pool, mixture)
        left = {} if violations else left_after_exclusion(pool, mixture)
    violations += check_amounts(plan, observation, left)
    violations += _check_repeats(plan, observation)
    violations += _check_refused(plan, observation)
    violations += _check_siblings(plan, observation, siblings)
    return violations


def check_amounts(
    plan: ActionPlan,
    observation: Observation,
    left: Mapping[str, Mapping[str, int]] | None = None,
    held: Mapping[Cell, str] | None = None,
) -> list[Violation]:
    """What the weights of a plan break: stock, steps, reliability, floors.

    `left` has the tokens per data set and bucket that a focus does not exclude, for the data sets
    with such a focus. `held` are the observation's `unreliable_cells`, for who has them at hand.
    """
    if held is None:
        held = unreliable_cells(observation)
    return [
        *_check_stock(plan, observation, left or {}),
        *_check_steps(plan, observation),
        *_check_reliability(plan, observation, held),
        *_check_floors(plan, observation),
    ]


def unreliable_cells(observation: Observation) -> dict[Cell, str]:
    """Cells whose slice is not measured well, with why: `unknown`, `low` or `unmeasured`.

    `unmeasured` is a bucket that no prompt of its objective's suite falls into, though prompts fall
    into others of its data set. If a data set's buckets and an objective's slices share no name,
    the suites say nothing of its buckets, and a plan may weigh them as it likes. A bucket that one
    of several objectives measures well is reliable.
    """
    found: dict[Cell, str] = {}
    reliable: set[Cell] = set()
    for objective in observation.objectives:
        known = {s.slice: s.reliability for s in observation.profile.of(objective.name)}
        for dataset in objective.datasets:
            buckets = observation.bucket_proportions.get(dataset, {})
            if not known.keys() & buckets.keys():
                continue
            for bucket in buckets:
                reliability = known.get(bucket, UNMEASURED)
                if reliability in (*LOW_RELIABILITY, UNMEASURED):
                    found[dataset, bucket] = reliability
                else:
                    reliable.add((dataset, bucket))
    return {cell: why for cell, why in found.items() if cell not in reliable}


def refused_plans(observation: Observation) -> list[ActionPlan]:
    """Plans of this round that a person or a rule refused."""
    return [
        ActionPlan.model_validate(violation.value)
        for violation in observation.feedback
        if violation.rule == "rejected" and violation.value
    ]


# -- one function per rule -------------------------------------------------------------------------


def _check_names(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """Names of data sets, buckets and objectives that do not exist."""
    found = []

    def unknown(path: str, what: str, name: str, known: list[str]) -> None:
        found.append(Violation(path=path, rule=f"unknown_{what}", value=name, limit=known))

    datasets = sorted(observation.stock)
    for field in ("ratios", "bucket_weights", "focus"):
        for dataset in getattr(plan, field):
            if dataset not in observation.stock:
                unknown(f"{field}.{dataset}", "dataset", dataset, datasets)
    for dataset, weights in plan.bucket_weights.items():
        buckets = sorted(observation.bucket_proportions.get(dataset, {}))
        for bucket in weights:
            if dataset in observation.stock and bucket not in buckets:
                unknown(f"bucket_weights.{dataset}.{bucket}", "bucket", bucket, buckets)
    for objective in plan.expected:
        if objective not in observation.names:
            unknown(f"expected.{objective}", "objective", objective, observation.names)
    for slice_ in plan.practice_weights:
        if slice_ not in observation.practice:
            unknown(f"practice_weights.{slice_}", "practice", slice_, sorted(observation.practice))
    return found


def _check_methods(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """Methods that the config does not enable, and their step from the plan executed last."""
    enabled = list(observation.methods)
    found = []
    for method in plan.method_shares:
        if method not in enabled:
            path = f"method_shares.{method}"
            hint = "the config's `methods` enable these, or one, which then has all tokens"
            found.append(
                Violation(
                    path=path, rule="method_not_enabled", value=method, limit=enabled, hint=hint
                )
            )
    limit = observation.limits.max_method_step
    if found or limit is None or not observation.methods:
        return found
    before = shares_of(observation.last_plan, observation.methods)
    step = distance(shares_of(plan, observation.methods), before)
    if step > limit + ROUNDING:
        hint = "move the method shares less far from the last executed plan"
        found.append(
            Violation(
                path="method_shares", rule="step", value=round(step, 4), limit=limit, hint=hint
            )
        )
    return found


def _check_budget(observation: Observation) -> list[Violation]:
    """The round's cost against what is left of the total budget."""
    if observation.cost_of_candidates <= observation.budget_left:
        return []
    hint = "the total budget is used up; stop here or raise budget.tokens_total"
    limit, value = observation.budget_left, observation.cost_of_candidates
    return [Violation(path="ratios", rule="budget", value=value, limit=limit, hint=hint)]


def _check_stock(
    plan: ActionPlan, observation: Observation, left: Mapping[str, Mapping[str, int]]
) -> list[Violation]:
    """Tokens asked of each cell against the tokens it holds."""
    found, limits = [], observation.limits
    budget = mixture_tokens(plan, observation.methods, observation.budget_per_round)
    for dataset, ratio in plan.ratios.items():
        if ratio > 0 and dataset not in observation.bucket_proportions:
            hint = f"no row of {dataset} has quality {limits.min_quality} or better"
            found.append(
                Violation(path=f"ratios.{dataset}", rule="stock", value=ratio, limit=0, hint=hint)
            )
    for (dataset, bucket), share in plan_shares(plan, observation.bucket_proportions).items():
        stock = observation.stock[dataset].get(bucket)
        tokens = stock.tokens if stock else 0
        if dataset in left:
            tokens = left[dataset].get(bucket, 0)
        available = tokens * limits.max_repeat
        asked = math.floor(share * budget)
        if asked > available:
            path = f"bucket_weights.{dataset}.{bucket}"
            hint = f"the bucket holds {available} tokens of quality {limits.min_quality} or better"
            hint += " that the focus does not exclude" if dataset in left else ""
            found.append(
                Violation(path=path, rule="stock", value=asked, limit=available, hint=hint)
            )
    return found


def _check_steps(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """Distances from the plan executed last."""
    limits, last = observation.limits, observation.last_plan
    found = []

    def check(path: str, what: str, step: float, limit: float) -> None:
        if step > limit + ROUNDING:
            hint = f"move the {what} less far from the last executed plan"
            found.append(
                Violation(path=path, rule="step", value=round(step, 4), limit=limit, hint=hint)
            )

    if limits.max_ratio_step is not None:
        check("ratios", "ratios", distance(plan.ratios, last.ratios), limits.max_ratio_step)
    if limits.max_bucket_step is not None:
        for dataset in sorted({*plan.ratios, *plan.bucket_weights}):
            before = bucket_weights(last, dataset, observation.bucket_proportions)
            after = bucket_weights(plan, dataset, observation.bucket_proportions)
            step = distance(after, before)
            check(f"bucket_weights.{dataset}", "bucket weights", step, limits.max_bucket_step)
    return found


def _check_reliability(
    plan: ActionPlan, observation: Observation, held: Mapping[Cell, str]
) -> list[Violation]:
    """A slice that is not measured well may not be acted upon.

    Its bucket's weight in its data set may fall, but not rise by 0.01 or more.
    """
    found = []
    last, proportions = observation.last_plan, observation.bucket_proportions
    for (dataset, bucket), reliability in held.items():
        after = bucket_weights(plan, dataset, proportions).get(bucket, 0.0)
        limit = bucket_weights(last, dataset, proportions).get(bucket, 0.0)
        if after > limit + MIN_RISE:
            path = f"bucket_weights.{dataset}.{bucket}"
            hint = f"the slice {bucket} has {reliability} reliability: leave it"
            if reliability == UNMEASURED:
                hint = f"no prompt measures {bucket}: leave it"
            value, rounded = round(after, 4), round(limit, 4)
            found.append(
                Violation(path=path, rule="reliability", value=value, limit=rounded, hint=hint)
            )
    return found


def _check_floors(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """Below its floor, an objective's data sets together may not get less than they had.

    What they get is their ratio of the tokens that the mixture has of the round.
    """
    found = []
    last = observation.last_plan
    had, has = (_mixture_share(one, observation) for one in (last, plan))
    for objective in observation.objectives:
        if objective.name not in observation.below_floor or not objective.datasets:
            continue
        before = had * share_of(last.ratios, objective.datasets)
        after = has * share_of(plan.ratios, objective.datasets)
        # Weights are written in millionths, so that sums of a few may differ by some of them.
        if after < before - 10 * SUM_TOLERANCE:
            path = f"ratios.{objective.datasets[0]}"
            hint = (
                f"{objective.name} is below its floor, {objective.floor}:"
                " the share of its data sets may not fall"
            )
            value, limit = round(after, 4), round(before, 4)
            found.append(Violation(path=path, rule="floor", value=value, limit=limit, hint=hint))
    return found


def _mixture_share(plan: ActionPlan, observation: Observation) -> float:
    """The share of a round's tokens that a plan's mixture has, 0-1."""
    if not observation.methods:
        return 1.0
    return next(iter(shares_of(plan, observation.methods).values()))


def _check_repeats(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """Plans too near to one that was tried and is dominated."""
    found = []
    for past in each_trial(observation.history):
        if past.plan is None or not past.dominated:
            continue
        # Cells lie at least as far apart as their data sets do: most are told apart by these alone.
        if distance(plan.ratios, past.plan.ratios) > observation.limits.near_repeat + ROUNDING:
            continue
        if not differ_in_weights_only(plan, past.plan, observation.methods):
            continue
        step = plan_distance(plan, past.plan, observation.bucket_proportions)
        if step < observation.limits.near_repeat:
            hint = f"round {past.round} tried this and is dominated; move further away from it"
            value, limit = round(step, 4), observation.limits.near_repeat
            found.append(
                Violation(path="ratios", rule="near_repeat", value=value, limit=limit, hint=hint)
            )
    return found


def _check_refused(plan: ActionPlan, observation: Observation) -> list[Violation]:
    """A plan that a person or a rule refused in this round is not asked for again."""
    for refused in refused_plans(observation):
        step = plan_distance(plan, refused, observation.bucket_proportions)
        alike = differ_in_weights_only(plan, refused, observation.methods)
        if alike and step < observation.limits.near_repeat:
            hint = "a plan as good as this one was refused in this round; propose another"
            value, limit = round(step, 4), observation.limits.near_repeat
            return [
                Violation(path="plan", rule="refused_before", value=value, limit=limit, hint=hint)
            ]
    return []


def differ(plan: ActionPlan, other: ActionPlan, observation: Observation) -> bool:
    """Whether two plans of a round are far enough apart to be worth a trial each."""
    if not differ_in_weights_only(plan, other, observation.methods):
        return True
    step = plan_distance(plan, other, observation.bucket_proportions)
    return step > ROUNDING and step >= observation.limits.near_repeat


def _check_siblings(
    plan: ActionPlan, observation: Observation, siblings: Sequence[ActionPlan]
) -> list[Violation]:
    """A plan too near to another one of its own round would measure the same twice."""
    for number, sibling in enumerate(siblings, 1):
        if not differ(plan, sibling, observation):
            step = plan_distance(plan, sibling, observation.bucket_proportions)
            value, limit = round(step, 4), observation.limits.near_repeat
            hint = f"plan {number} of this round tries this already; move further away from it"
            return [
                Violation(path="ratios", rule="near_repeat", value=value, limit=limit, hint=hint)
            ]
    return []
