"""Which answers make a pair: reward consistency against brute force and against its known limits."""

import itertools
import math

import numpy as np
import pytest

from mosaic.core.types.runs import DpoRecipe
from training.data.practice_order import practice_order
from training.data.preferences import (
    Answers,
    candidates,
    choose_pair,
    consistent,
    expected_pairs,
    gap_of,
    is_sufficient,
    opposed,
    spreads,
    yields,
)

GENERATOR = np.random.default_rng(20261129)


def draws(count=200, n=6, k=3, levels=None):
    """Rewards of `count` prompts: continuous, or tied in whole levels."""
    for _ in range(count):
        rewards = GENERATOR.normal(size=(n, k))
        yield np.round(rewards * levels) if levels else rewards


def chosen(rewards, names=None, spread=None, **recipe):
    rule = DpoRecipe(**recipe)
    answers = Answers(names or tuple(f"o{i}" for i in range(rewards.shape[1])), rewards)
    found = choose_pair(answers, candidates(answers, rule), spread or spreads([answers]), rule)
    return None if found is None else (found.chosen, found.rejected)


# -- the relation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_filter_is_brute_force_over_all_ordered_pairs(levels, margin):
    for rewards in draws(levels=levels):
        expected = []
        for one, other in itertools.product(range(len(rewards)), repeat=2):
            if all(rewards[one, k] - rewards[other, k] > margin for k in range(rewards.shape[1])):
                expected.append((one, other))
        assert sorted(consistent(rewards, margin)) == expected


def test_the_relation_is_irreflexive_asymmetric_and_transitive():
    seen = 0
    for rewards in draws(n=8, k=2, levels=1):
        pairs = set(consistent(rewards))
        assert all((other, one) not in pairs for one, other in pairs)
        assert all(one != other for one, other in pairs)
        for (a, b), (c, d) in itertools.product(pairs, repeat=2):
            if b == c:
                seen += 1
                assert (a, d) in pairs
    assert seen > 100


def test_monotone_transforms_and_constants_of_a_prompt_change_no_pair():
    for rewards in draws():
        bent = np.column_stack([np.exp(rewards[:, 0]), rewards[:, 1] ** 3, 7 * rewards[:, 2] + 5])
        assert consistent(bent) == consistent(rewards)


def test_z_scores_take_out_a_scale_that_would_choose_another_pair():
    changed = 0
    for rewards in draws(n=8, k=2):
        scaled = rewards * np.array([10.0, 1.0])
        assert chosen(scaled) == chosen(rewards)
        raw = {"o0": 1.0, "o1": 1.0}
        changed += chosen(scaled, spread=raw) != chosen(rewards, spread=raw)
    assert changed > 10


def test_another_objective_never_adds_pairs_and_opposed_ones_leave_none():
    for rewards in draws():
        fewer = set(consistent(rewards))
        assert fewer <= set(consistent(rewards[:, :2]))
        twice = np.column_stack([rewards[:, 0], 2 * rewards[:, 0] + 1])
        assert consistent(twice) == consistent(rewards[:, :1])
        against = np.column_stack([rewards[:, 0], -rewards[:, 0]])
        assert consistent(against) == []


@pytest.mark.parametrize(
    ("n", "k", "pairs"), [(8, 2, 14.0), (8, 3, 7.0), (8, 5, 1.75), (16, 15, 0.0073)]
)
def test_independent_rewards_agree_as_often_as_coins(n, k, pairs):
    assert expected_pairs(n, k) == pytest.approx(pairs, rel=0.01)
    count = 3000
    found = sum(len(consistent(r)) for r in draws(count, n, k)) / count
    spread = math.sqrt(max(pairs, 0.01) * (1 + pairs) / count)
    assert found == pytest.approx(pairs, abs=6 * spread)


@pytest.mark.parametrize("gap", ["sum", "minimum"])
def test_the_pair_taken_is_pareto_maximal_against_pareto_minimal(gap):
    taken = 0
    for rewards in draws(n=8, k=2):
        pair = chosen(rewards, gap=gap)
        if pair is None:
            continue
        taken += 1
        pairs = consistent(rewards)
        assert not any(other == pair[0] for _, other in pairs)
        assert not any(one == pair[1] for one, _ in pairs)
    assert taken > 150


def test_gap_rules_differ_and_an_objective_without_spread_has_no_gap():
    differences = np.array([4.0, 1.0])
    assert gap_of(differences, np.array([2.0, 1.0]), "sum") == 3.0
    assert gap_of(differences, np.array([2.0, 1.0]), "minimum") == 1.0
    assert gap_of(differences, np.array([2.0, 0.0]), "sum") == 2.0


# -- what a small step does ------------------------------------------------------------------------


def step_of_dpo(logits, rewards, one, other, rate=1e-5):
    """Change of every mean reward by one small step of DPO on a softmax over a few answers."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    gradient = np.zeros(len(p))
    gradient[one] += 1.0
    gradient[other] -= 1.0  # the gradient of log p(one) - log p(other); the normaliser cancels
    moved = np.exp(logits + rate * gradient)
    moved /= moved.sum()
    return p, (moved @ rewards - p @ rewards) / rate


def test_a_small_step_moves_each_mean_as_the_formula_says():
    for rewards in draws(n=5, k=2):
        logits = GENERATOR.normal(size=5)
        p, change = step_of_dpo(logits, rewards, 0, 1)
        mean = p @ rewards
        expected = p[0] * (rewards[0] - mean) - p[1] * (rewards[1] - mean)
        assert change == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_two_answers_are_safe_more_are_not_and_the_sufficient_condition_is():
    logits = np.zeros(2)
    for rewards in draws(n=2, k=3):
        pairs = consistent(rewards)
        for one, other in pairs:
            assert (step_of_dpo(logits, rewards, one, other)[1] > 0).all()
    fell = safe = 0
    for rewards in draws(n=6, k=2):
        # Each answer is drawn as often as it is likely, so that the drawn mean is the policy's.
        counts = GENERATOR.integers(1, 12, size=6)
        drawn = np.repeat(rewards, counts, axis=0)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        for one, other in consistent(rewards):
            change = step_of_dpo(np.log(counts), rewards, one, other)[1]
            fell += bool((change < 0).any())
            if is_sufficient(drawn, first[one], first[other]):
                safe += 1
                assert (change > 0).all()
    assert fell > 20
    assert safe > 100


def test_pairs_of_one_objective_lower_an_opposed_one():
    for rewards in draws(n=4, k=1):
        both = np.column_stack([rewards, -rewards])
        one, other = chosen(both, rule="objective", objective="o0")
        assert one == int(rewards[:, 0].argmax())
        if is_sufficient(rewards, one, other):
            change = step_of_dpo(np.zeros(4), both, one, other)[1]
            assert change[0] > 0 > change[1]


@pytest.mark.parametrize("matched", [True, False])
def test_a_consistent_pair_never_turns_the_gradient_with_matched_scales(matched):
    """The lemma of reward consistency, both ways, for a margin method on tabular policies.

    The weight of the gradient with the other objective, less that without, has the sign of the
    other objective's gap - if both have the scale b/w. With plain DPO's b for the one without, it
    must be able to fail: else this test would show nothing.
    """
    beta, weight = 0.1, 0.3
    wrong = 0
    for _ in range(2000):
        ratio = GENERATOR.normal(scale=5)
        other_gap = GENERATOR.normal(scale=3)
        scale = beta / weight
        alone = scale if matched else beta
        without = -alone / (1 + math.exp(alone * ratio))
        both = -scale / (1 + math.exp(scale * ratio - (1 - weight) / weight * other_gap))
        product = without * (both - without)
        wrong += (product >= 0) != (other_gap >= 0)
    assert (wrong == 0) == matched


def test_margins_beyond_the_noise_make_the_filter_precise():
    precision = []
    for margin in (0.0, 0.5, 1.0, 2.0):
        right = kept = 0
        for truth in draws(300, n=6, k=2):
            noisy = truth + GENERATOR.normal(scale=0.5, size=truth.shape)
            true = set(consistent(truth))
            pairs = consistent(noisy, margin)
            kept += len(pairs)
            right += sum(pair in true for pair in pairs)
        precision.append(right / kept)
    assert precision == sorted(precision)
    assert precision[-1] > precision[0] + 0.05


# -- rules, yield, order ---------------------------------------------------------------------------


def test_each_rule_takes_its_own_pair():
    rewards = np.array([[5.0, 2.0], [1.0, 3.0], [3.0, 4.0], [2.0, 1.0]])
    names = ("a", "b")
    assert chosen(rewards, names) == (2, 3)  # (0, 3) agrees too; its gap is smaller by b's spread
    assert chosen(rewards, names, rule="objective", objective="a") == (0, 1)
    assert chosen(rewards, names, rule="objective", objective="b") == (2, 3)
    assert chosen(rewards, names, rule="objective", objective="c") is None
    assert chosen(rewards, names, rule="weighted") == (2, 3)
    assert chosen(rewards, names, margin=3.5) is None
    assert chosen(np.ones((4, 2)), names) is None


def test_yields_are_told_by_pair_of_objectives():
    agree = Answers(("a", "b"), np.array([[1.0, 1.0], [2.0, 2.0]]))
    differ = Answers(("b", "a"), np.array([[1.0, 2.0], [2.0, 1.0]]))
    alone = Answers(("c",), np.array([[1.0], [2.0]]))
    empty = Answers(("a", "b"), np.zeros((0, 2)))
    (found,) = yields([agree, differ, alone, empty])
    assert (found.objectives, found.prompts, found.consistent) == (("a", "b"), 3, 1)
    assert opposed([("a", "b"), ("c",)]) == [("a", "c"), ("b", "c")]
    assert spreads([agree, differ, empty])["a"] == pytest.approx(0.5)


def test_every_beginning_of_the_order_keeps_the_weights():
    slices = ["a"] * 40 + ["b"] * 30 + ["c"] * 30
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    order = practice_order(slices, weights, seed=3)
    assert sorted(order) == list(range(100))
    for length in (10, 20, 50):
        for name, weight in weights.items():
            part = sum(slices[number] == name for number in order[:length])
            assert abs(part - weight * length) <= 1
    assert practice_order(slices, weights, 3) == order != practice_order(slices, weights, 4)
    only = practice_order(slices, {"b": 1.0}, 3)
    assert {slices[number] for number in only} == {"b"}
    own = practice_order(slices, {}, 3)[:10]
    assert sum(slices[number] == "a" for number in own) == 4
