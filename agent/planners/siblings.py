"""Several plans of one round that differ, for planners that know one: draws around it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agent.constraints import differ
from agent.feasible import feasible_plan
from agent.weights import perturb
from mosaic.core.errors import UsageError
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

# Standard deviation of a log-ratio in draws around a plan, and how many are tried for each sibling.
SPREAD, TRIES = 0.4, 30


def with_siblings(
    kind: str,
    first: ActionPlan,
    n: int,
    draw: Callable[[], ActionPlan],
    observation: Observation,
    toolbox: Toolbox,
) -> list[ActionPlan]:
    """`first` and the first n - 1 draws that break no limit and differ from all plans before them.

    Raises UsageError if too few draws do: the limits leave no room.
    """
    plans = [first]
    for _ in range(TRIES * (n - 1)):
        if len(plans) == n:
            break
        drawn = draw()
        apart = all(differ(drawn, plan, observation) for plan in plans)
        if apart and not toolbox.violations(drawn):
            plans.append(drawn)
    if len(plans) < n:
        raise UsageError(
            f"planner {kind}: the limits leave {len(plans)} plans that differ, not {n}; "
            "ask for fewer, or widen limits.max_ratio_step or limits.max_bucket_step"
        )
    return plans


def spread_around(
    kind: str, first: ActionPlan, n: int, observation: Observation, toolbox: Toolbox
) -> list[ActionPlan]:
    """`first` and n - 1 log-normal draws around its weights, moved back inside the limits.

    The draws depend on seed, round and place alone. Raises what `with_siblings` raises.
    """
    generator = np.random.default_rng([observation.seed, observation.round, 23])

    def draw() -> ActionPlan:
        ratios = perturb(first.ratios, SPREAD, generator)
        buckets = {}
        for dataset, weights in sorted(first.bucket_weights.items()):
            buckets[dataset] = perturb(weights, SPREAD, generator)
        rationale = f"A draw around the first plan of the round. {first.rationale}"[:8000]
        return feasible_plan(rationale, ratios, buckets, observation)

    plans = with_siblings(kind, first, n, draw, observation, toolbox)
    if n > 1:
        toolbox.conclude(f"{n - 1} draws around it with spread {SPREAD} in log-ratios")
    return plans
