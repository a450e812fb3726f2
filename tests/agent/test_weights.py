"""Weight vectors: exact sums, distances, steps, and what spreads within limited room."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.weights import (
    cell_shares,
    distance,
    fill,
    interpolate,
    normalize,
    plan_distance,
    plan_shares,
    step_toward,
    weights_of,
)
from mosaic.core.types.plans import ActionPlan

VECTORS = st.dictionaries(st.sampled_from("abcde"), st.floats(0, 9), min_size=1).filter(
    lambda weights: sum(weights.values()) > 1e-3
)


@given(VECTORS)
def test_normalized_weights_sum_to_exactly_one_in_millionths(weights):
    normalized = normalize(weights)
    assert sum(round(w * 10**6) for w in normalized.values()) == 10**6
    assert distance(normalized, normalize(normalized)) == 0


def test_weights_that_are_all_zero_cannot_be_normalized():
    with pytest.raises(ValueError, match="all zero"):
        normalize({"a": 0.0, "b": 0.0})


def test_distance_counts_missing_names():
    assert distance({"a": 1.0}, {"b": 1.0}) == 2
    assert distance({"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}) == 0


@given(VECTORS, VECTORS, st.floats(0.001, 2))
def test_a_step_toward_a_wish_stays_within_its_limit(start, wish, limit):
    start, wish = normalize(start), normalize(wish)
    moved = step_toward(start, wish, limit)
    assert distance(start, moved) <= limit
    if distance(start, wish) < limit - 0.001:
        assert distance(moved, wish) == 0


def test_a_weight_a_little_below_zero_counts_as_zero():
    assert interpolate({"a": 1.0}, {"a": 1.0, "b": -1e-9}, 1.0) == {"a": 1.0, "b": 0.0}


@given(VECTORS, st.dictionaries(st.sampled_from("abcde"), st.floats(0, 1)))
def test_nobody_is_filled_above_its_room_and_as_much_as_there_is_room_for_is_spread(weights, room):
    weights = normalize(weights)
    room = {name: room.get(name, 0.0) for name in weights}
    filled = fill(1.0, weights, room)
    assert all(filled[name] <= room[name] for name in weights)
    spread = math.fsum(filled.values())
    assert spread <= 1 + 1e-9
    assert spread == pytest.approx(min(1.0, math.fsum(room.values())), abs=1e-5)


def test_a_plan_without_bucket_weights_takes_the_pools_proportions():
    proportions = {"a": {"x": 0.25, "y": 0.75}, "b": {"x": 1.0}}
    plan = ActionPlan(rationale="r", ratios={"a": 1.0})
    assert plan_shares(plan, proportions) == {("a", "x"): 0.25, ("a", "y"): 0.75}
    weights = weights_of(plan, proportions)
    assert weights.ratios == {"a": 1.0, "b": 0.0}
    assert cell_shares(*weights)[("b", "x")] == 0
    own = plan.model_copy(update={"bucket_weights": {"a": {"x": 1.0}}})
    assert plan_distance(plan, own, proportions) == 1.5
