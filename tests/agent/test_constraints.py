"""Every rule refuses what it should, by name and path, and lets the static plan pass."""

import pytest

from agent.constraints import check_plan
from agent.feasible import feasible_plan
from mosaic.core.types.data import Focus
from mosaic.core.types.evaluation import SliceProfile
from mosaic.core.types.plans import ActionPlan, Limits
from mosaic.core.types.runs import Round


def rules(plan, observation, pool):
    return {(v.rule, v.path) for v in check_plan(plan, observation, pool)}


def changed(observation, **changes):
    return observation.last_plan.model_copy(update=changes)


def test_the_last_plan_may_run_again(observe, small_pool):
    seen = observe()
    assert rules(seen.last_plan, seen, small_pool) == set()


def test_unknown_names(observe, small_pool):
    seen = observe()
    plan = changed(seen, ratios={"a": 0.5, "c": 0.5}, expected={"speed": 1.0})
    assert rules(plan, seen, small_pool) == {
        ("unknown_dataset", "ratios.c"),
        ("unknown_objective", "expected.speed"),
    }
    plan = changed(seen, bucket_weights={"a": {"x": 0.5, "w": 0.5}})
    assert rules(plan, seen, small_pool) == {("unknown_bucket", "bucket_weights.a.w")}


def test_steps(observe, small_pool):
    seen = observe(limits=Limits(max_ratio_step=0.2, max_bucket_step=0.2, min_quality=2))
    plan = changed(seen, ratios={"a": 0.8, "b": 0.2}, bucket_weights={"a": {"x": 1.0}})
    assert {("step", "ratios"), ("step", "bucket_weights.a")} <= rules(plan, seen, small_pool)


def test_stock_and_budget(observe, small_pool):
    seen = observe(
        limits=Limits(max_ratio_step=None, max_bucket_step=None, min_quality=5), budget_left=10
    )
    plan = changed(seen, ratios={"a": 1.0, "b": 0.0}, bucket_weights={"a": {"x": 1.0}})
    seen = seen.model_copy(update={"stock": small_pool.stock(5)})
    assert rules(plan, seen, small_pool) == {("budget", "ratios"), ("stock", "bucket_weights.a.x")}


@pytest.mark.parametrize("reliability", ["unknown", "low"])
def test_an_unreliable_slice_may_not_be_acted_upon(observe, small_pool, reliability):
    seen = observe()
    slices = [
        SliceProfile.model_validate({**s.json_data(), "reliability": reliability})
        if (s.objective, s.slice) == ("safety", "z")
        else s
        for s in seen.profile.slices
    ]
    seen = seen.model_copy(update={"profile": seen.profile.model_copy(update={"slices": slices})})
    plan = changed(
        seen, bucket_weights={**seen.bucket_proportions, "a": {"x": 0.2, "y": 0.2, "z": 0.6}}
    )
    assert rules(plan, seen, small_pool) == {("reliability", "bucket_weights.a.z")}
    legal = feasible_plan("r", plan.ratios, plan.bucket_weights, seen)
    assert rules(legal, seen, small_pool) == set()


def test_a_dominated_plan_is_not_tried_again(observe, small_pool, trial):
    seen = observe()
    measured = trial(seen.last_plan, seen.history[0].scores, seen.profile)
    past = Round(round=1, trials=[measured], dominated=True)
    seen = seen.model_copy(update={"history": [*seen.history, past]})
    assert rules(seen.last_plan, seen, small_pool) == {("near_repeat", "ratios")}


def test_below_its_floor_an_objective_keeps_its_share(observe, small_pool):
    seen = observe(below_floor=["safety"])
    assert rules(changed(seen, ratios={"a": 0.4, "b": 0.6}), seen, small_pool) == {
        ("floor", "ratios.a")
    }
    legal = feasible_plan("r", {"a": 0.3, "b": 0.7}, seen.bucket_proportions, seen)
    assert rules(legal, seen, small_pool) == set()


def test_focus_that_matches_nothing(observe, small_pool):
    seen = observe()
    plan = changed(seen, focus={"a": Focus(include={"topic": ["none"]})})
    assert rules(plan, seen, small_pool) == {("focus_matches_nothing", "focus.a.include")}


def test_what_a_focus_excludes_is_not_in_stock(observe, small_pool):
    seen = observe()
    everything = Focus(exclude={"topic": ["t0", "t1", "t2", "t3"]})
    found = check_plan(changed(seen, focus={"a": everything}), seen, small_pool)
    assert {(v.rule, v.path, v.limit) for v in found} == {
        ("stock", f"bucket_weights.a.{b}", 0) for b in "xyz"
    }
    assert (
        rules(changed(seen, focus={"a": Focus(exclude={"topic": ["t0"]})}), seen, small_pool)
        == set()
    )


def test_a_data_set_without_a_row_of_the_quality_has_no_stock(observe, small_pool):
    seen = observe()
    kept = {d: per for d, per in seen.bucket_proportions.items() if d != "b"}
    seen = seen.model_copy(update={"bucket_proportions": kept})
    assert ("stock", "ratios.b") in rules(changed(seen, bucket_weights={}), seen, small_pool)


def test_a_bucket_that_no_prompt_measures_may_not_be_acted_upon(observe, small_pool):
    seen = observe()
    slices = [s for s in seen.profile.slices if (s.objective, s.slice) != ("safety", "z")]
    seen = seen.model_copy(update={"profile": seen.profile.model_copy(update={"slices": slices})})
    plan = changed(
        seen, bucket_weights={**seen.bucket_proportions, "a": {"x": 0.2, "y": 0.2, "z": 0.6}}
    )
    assert rules(plan, seen, small_pool) == {("reliability", "bucket_weights.a.z")}


def test_bucket_weights_of_a_data_set_that_gets_nothing_move_in_steps_too(observe, small_pool):
    seen = observe(limits=Limits(max_ratio_step=None, max_bucket_step=0.2, min_quality=2))
    plan = changed(seen, ratios={"b": 1.0}, bucket_weights={"a": {"x": 1.0}})
    assert rules(plan, seen, small_pool) == {("step", "bucket_weights.a")}


def test_weights_that_do_not_sum_to_one_are_no_plan():
    for ratios in ({"a": 0.6, "b": 0.6}, {"a": float("nan"), "b": 1.0}, {"a": -0.5, "b": 1.5}, {}):
        with pytest.raises(ValueError, match=r"ratios|finite|sum"):
            ActionPlan(rationale="", ratios=ratios)
