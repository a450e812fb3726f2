"""How a plan spends a round's tokens over the methods of training. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation


def shares_of(plan: ActionPlan, default: Mapping[str, float]) -> dict[str, float]:
    """Method -> share of the round's tokens, in the order in which they run.

    `default` has every method that is enabled, the one that trains on the mixture first, and the
    shares of a plan that names none.
    """
    named = plan.method_shares or default
    return {method: named.get(method, 0.0) for method in default}


def mixture_tokens(plan: ActionPlan, default: Mapping[str, float], budget: int) -> int:
    """Tokens that the plan's mixture selects, of `budget` if its method had all of a round.

    >>> plan = ActionPlan(rationale="", ratios={"a": 1}, method_shares={"sft": 0.7, "dpo": 0.3})
    >>> mixture_tokens(plan, {"sft": 1.0, "dpo": 0.0}, 12_000)
    8400
    """
    if not default:
        return budget
    first, *_ = shares_of(plan, default).values()
    return part_of(first, budget)


def kept_mixture_tokens(observation: Observation) -> int:
    """Tokens that a mixture selects in a plan that leaves methods as the plan executed last has them."""
    budget = observation.budget_per_round
    return mixture_tokens(observation.last_plan, observation.methods, budget)


def differ_in_weights_only(
    plan: ActionPlan, other: ActionPlan, default: Mapping[str, float]
) -> bool:
    """Whether two plans agree in all that a distance of data sets and buckets does not see."""
    return (
        plan.focus == other.focus
        and shares_of(plan, default) == shares_of(other, default)
        and plan.practice_weights == other.practice_weights
    )


def with_methods_of(plan: ActionPlan, last: ActionPlan) -> ActionPlan:
    """A plan of a planner that knows no methods: what the plan executed last says of them stands."""
    if not (last.method_shares or last.practice_weights):
        return plan
    kept = {"method_shares": last.method_shares, "practice_weights": last.practice_weights}
    return plan.model_copy(update=kept)


def part_of(share: float, tokens: int) -> int:
    """So many of some tokens, rounded down but for the error of a sum of decimals.

    >>> part_of(0.7, 30)  # 0.7 * 30 is 20.999999999999996
    21
    """
    return math.floor(share * tokens + 1e-6)
