"""Which mixtures are worth a cheap look: those that the surrogate finds best."""

from __future__ import annotations

from collections.abc import Sequence

from agent.fidelity import (
    ExpertsConfig,
    FidelityConfig,
    group_shares,
    groups,
    looked_ratios,
)
from agent.planners.search import MIN_NEWS, Surrogate
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation


def mixtures_to_look_at(
    observation: Observation, settings: FidelityConfig, count: int
) -> list[ActionPlan]:
    """At most `count` mixtures that lie apart; fewer if the limits leave fewer.

    What experts are asked has the pools' own buckets, of which they say nothing else, and lies apart
    from what they were asked before.
    """
    if not count:
        return []
    plans: list[ActionPlan] = []
    if not isinstance(settings, ExpertsConfig):
        for weights in Surrogate(observation).best(count):
            plans.append(_look(dict(weights.ratios), weights.buckets))
        return plans
    grouped = groups(observation.objectives)
    known = [group_shares(look.plan.ratios, grouped) for look in observation.looks if look.plan]
    for weights in Surrogate(observation).searched():
        shares = group_shares(weights.ratios, grouped)
        if all(_apart(shares, other) for other in known):
            known.append(shares)
            ratios = looked_ratios(weights.ratios, grouped, observation.proportions)
            plans.append(_look(ratios, {}))
    return plans[:count]


def _apart(one: Sequence[float], other: Sequence[float]) -> bool:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) >= MIN_NEWS


def _look(ratios: dict[str, float], buckets: dict[str, dict[str, float]]) -> ActionPlan:
    return ActionPlan(rationale="A look.", ratios=ratios, bucket_weights=buckets)
