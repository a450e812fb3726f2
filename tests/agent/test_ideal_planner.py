"""IDEAL as a planner: it moves by influence, keeps the whole, and stops where nothing matters."""

import pytest

from agent.constraints import check_plan
from agent.planners.ideal import IdealPlanner
from agent.weights import plan_shares
from mosaic.core.errors import UsageError
from mosaic.core.types.influence import SteeringPrompts
from mosaic.core.types.plans import Limits
from tests.agent.conftest import influence
from tools.planning.schemas import definitions
from tools.planning.toolbox import Toolbox
from training.influence.ideal import settled

FREE = Limits(min_quality=2, max_ratio_step=None, max_bucket_step=None)


def toolbox(seen, pool):
    return Toolbox(seen, lambda *wanted: [], lambda plan: check_plan(plan, seen, pool))


@pytest.fixture
def moved(observe, small_pool):
    """Bucket -> its share over the share before, for a planner and an influence."""

    def plan(planner, **changes):
        seen = observe(limits=FREE, budget_per_round=100, cost_per_round=100, **changes)
        (proposed,) = planner.propose(seen, toolbox(seen, small_pool))
        before = plan_shares(seen.last_plan, seen.bucket_proportions)
        after = plan_shares(proposed, seen.bucket_proportions)
        assert sum(after.values()) == pytest.approx(1)
        return {cell: after[cell] / before[cell] for cell in before}

    return plan


@pytest.mark.parametrize("step", [0.15, 0.3])
def test_the_bucket_that_matters_most_moves_by_the_step_before_the_whole_is_scaled(moved, step):
    found = moved(IdealPlanner(step, "buckets"), influence=influence((0.3, 0.0, 0.0)))
    # Buckets without an effect keep their size, so they show what all were scaled by.
    scale = found["a", "y"]
    assert found["b", "z"] == pytest.approx(scale, rel=1e-3)
    assert max(found["a", "x"], found["b", "x"]) / scale == pytest.approx(1 + step, rel=1e-3)


def test_what_helps_grows_and_what_harms_shrinks(moved):
    found = moved(IdealPlanner(domains="buckets"), influence=influence((0.3, 0.1, -0.2)))
    for dataset in "ab":
        assert found[dataset, "x"] > found[dataset, "y"] > found[dataset, "z"]
        assert found[dataset, "z"] < 1


def test_domains_can_be_data_sets_whose_buckets_keep_their_weights(moved):
    lopsided = influence()
    buckets = []
    for bucket in lopsided.buckets:
        sign = 1 if bucket.dataset == "a" else -1
        effect = bucket.mean.model_copy(update={"value": 0.2 * sign})
        buckets.append(bucket.model_copy(update={"mean": effect}))
    found = moved(
        IdealPlanner(0.3, "datasets"), influence=lopsided.model_copy(update={"buckets": buckets})
    )
    for dataset in "ab":
        ratios = [found[dataset, bucket] for bucket in "xyz"]
        assert max(ratios) == pytest.approx(min(ratios), rel=1e-3)
    assert found["a", "x"] > 1 > found["b", "x"]


def test_nothing_is_moved_if_no_bucket_can_be_told_to_matter(moved, observe, small_pool):
    noise = influence((0.3, 0.1, -0.2), error=0.2)
    assert settled(noise)
    assert not settled(influence())
    for ratio in moved(IdealPlanner(), influence=noise).values():
        assert ratio == pytest.approx(1, rel=1e-3)
    seen = observe(influence=noise)
    (plan,) = IdealPlanner().propose(seen, toolbox(seen, small_pool))
    assert "nothing is moved" in plan.rationale


def test_a_bucket_without_an_estimate_keeps_its_size(moved):
    known = influence((0.0, 0.0, -0.2))
    kept = [b for b in known.buckets if (b.dataset, b.bucket) != ("a", "x")]
    found = moved(
        IdealPlanner(domains="buckets"), influence=known.model_copy(update={"buckets": kept})
    )
    assert found["a", "x"] == pytest.approx(found["a", "y"], rel=1e-3)


def test_an_objective_without_influence_has_no_say_and_is_named(observe, small_pool):
    known = influence()
    prompts = {**known.prompts, "safety": SteeringPrompts(used=0)}
    seen = observe(influence=known.model_copy(update={"prompts": prompts}))
    (plan,) = IdealPlanner().propose(seen, toolbox(seen, small_pool))
    assert "mean steering loss of all but safety:" in plan.rationale
    seen = observe()
    (plan,) = IdealPlanner().propose(seen, toolbox(seen, small_pool))
    assert "mean steering loss:" in plan.rationale


def test_without_an_estimate_it_says_what_to_do(observe, small_pool):
    seen = observe(influence=None)
    with pytest.raises(UsageError, match=r"add `influence: \{\}`"):
        IdealPlanner().propose(seen, toolbox(seen, small_pool))


def test_the_tool_reads_and_is_offered_only_where_there_is_something_to_read(observe, small_pool):
    seen = observe()
    box = toolbox(seen, small_pool)
    answer = box.call("estimate_influence", {"dataset": "a"})
    assert answer["x"]["safety"] == {"effect": 0.3, "standard_error": 0.02, "clear": True}
    assert set(answer["x"]) == {"share", "safety", "over_refusal", "all"}
    assert box.trace()[0]["tool"] == "estimate_influence"
    with pytest.raises(UsageError, match=r"known: \['a', 'b'\]"):
        box.call("estimate_influence", {"dataset": "c"})
    names = [tool["function"]["name"] for tool in definitions(seen)]
    assert "estimate_influence" in names
    bare = observe(influence=None)
    names = [tool["function"]["name"] for tool in definitions(bare)]
    assert "estimate_influence" not in names
    with pytest.raises(UsageError, match="estimates no influence"):
        toolbox(bare, small_pool).call("estimate_influence", {"dataset": "a"})


def test_an_observation_without_influence_is_written_as_before(observe):
    assert "influence" not in observe(influence=None).json_data()
    seen = observe()
    assert type(seen).model_validate(seen.json_data()) == seen
