"""Every planner proposes legal plans, by construction, and leaves a trace; the profile planner acts on what fails."""

import pytest

from agent.constraints import check_plan
from agent.planners.baselines import RandomPlanner, StaticPlanner
from agent.planners.profile import ProfilePlanner
from agent.planners.space import normal, toward
from mosaic.types import Limits
from tools.toolbox import Toolbox


def toolbox(seen, pool):
    return Toolbox(
        seen, lambda *wanted: [{"label": {}, "score": 1.0, "failed": True}], lambda p: check_plan(p, seen, pool)
    )


@pytest.mark.parametrize("planner", [StaticPlanner(), RandomPlanner(), RandomPlanner(3.0), ProfilePlanner()])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limits", [{}, {"max_ratio_step": 0.1, "max_bucket_step": 0.15}])
def test_plans_are_legal_by_construction(observe, small_pool, planner, seed, limits):
    seen = observe(seed=seed, limits=Limits(min_quality=2, **limits), below_floor=["safety"])
    box = toolbox(seen, small_pool)
    plan = planner.propose(seen, box)
    assert check_plan(plan, seen, small_pool) == []
    assert box.trace()
    assert plan == planner.propose(seen, toolbox(seen, small_pool))


def settled(plan):
    return sum(ratio * plan.bucket_weights[d]["x"] for d, ratio in plan.ratios.items())


def test_the_profile_planner_moves_tokens_from_settled_slices_to_failing_ones(observe, small_pool):
    seen = observe()
    box = toolbox(seen, small_pool)
    plan = ProfilePlanner().propose(seen, box)
    assert settled(plan) < 0.8 * settled(seen.last_plan)
    assert sum(plan.expected.values()) > 0
    tools = [c["tool"] for c in box.trace() if "tool" in c]
    assert {"past_rounds", "diagnose_slice", "show_examples", "pool_stock", "check_plan"} == set(tools)


def test_normal_sums_exactly_and_toward_respects_the_limit():
    weights = normal({"a": 1, "b": 1, "c": 1})
    assert sum(round(w * 10**6) for w in weights.values()) == 10**6
    moved = toward({"a": 1.0}, {"b": 1.0}, 0.5)
    assert abs(moved["b"] * 2 - 0.5) < 1e-3
