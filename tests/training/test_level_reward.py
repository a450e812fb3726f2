"""The mapping from class probabilities to a reward: its properties, on probabilities of any size."""

import math
from statistics import fmean, pvariance

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mosaic.core.errors import UsageError
from training.methods.level_reward import LEAST_DEVIATION, RewardScale, measure, reward

# Heads of different sizes side by side.
CLASSES = {"safety": [1, 3, 4, 5], "over_refusal": [1, 5], "brevity": [1, 2, 3, 4, 5]}


@st.composite
def answers(draw, classes=CLASSES):
    """The probabilities of one answer under each head."""
    made = {}
    for objective, levels in classes.items():
        weights = [draw(st.floats(0.01, 1)) for _ in levels]
        made[objective] = {c: w / sum(weights) for c, w in zip(levels, weights, strict=True)}
    return made


REFERENCES = st.lists(answers(), min_size=3, max_size=8)
WISHES = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(levels) for name, levels in CLASSES.items()}
)


def told_apart(scale: RewardScale, wish):
    """Whether every requested level has a spread worth dividing by."""
    return all(scale.levels[o][level].deviation > 1e-3 for o, level in wish.items())


@given(REFERENCES, answers(), answers(), WISHES)
def test_a_head_that_is_not_asked_for_has_no_effect(references, answer, other, wish):
    scale = measure(references)
    changed = {o: (answer if o in wish else other)[o] for o in CLASSES}
    assert reward(changed, wish, scale) == reward(answer, wish, scale)
    assert reward(answer, {}, scale) == 0


@given(REFERENCES, answers(), WISHES, st.data())
def test_the_reward_rises_with_every_requested_probability(references, answer, wish, data):
    scale = measure(references)
    assume(wish)
    assume(told_apart(scale, wish))
    objective = data.draw(st.sampled_from(sorted(wish)))
    more = {o: dict(levels) for o, levels in answer.items()}
    more[objective][wish[objective]] += 0.01
    assert reward(more, wish, scale) > reward(answer, wish, scale)


@given(REFERENCES, answers(), WISHES)
def test_the_order_of_heads_and_of_wishes_does_not_matter(references, answer, wish):
    turned = [dict(reversed(one.items())) for one in references]
    wished = dict(reversed(wish.items()))
    left = reward(answer, wish, measure(references))
    assert reward(answer, wished, measure(turned)) == pytest.approx(left, abs=1e-9)


@given(REFERENCES, answers(), st.sampled_from([1, 5]))
def test_with_twice_the_heads_a_term_counts_half(references, answer, level):
    def doubled(one):
        return one | {f"other_{o}": levels for o, levels in one.items()}

    once = reward(answer, {"over_refusal": level}, measure(references))
    halved = reward(
        doubled(answer), {"over_refusal": level}, measure([doubled(r) for r in references])
    )
    assert halved == pytest.approx(once / 2, abs=1e-9)


@given(
    st.lists(answers({"safety": [1, 3, 5]}), min_size=3, max_size=12), st.sampled_from([1, 3, 5])
)
def test_over_the_reference_answers_one_level_has_mean_0_and_variance_1(references, level):
    scale = measure(references)
    assume(told_apart(scale, {"safety": level}))
    rewards = [reward(answer, {"safety": level}, scale) for answer in references]
    assert fmean(rewards) == pytest.approx(0, abs=1e-6)
    assert pvariance(rewards) == pytest.approx(1, abs=1e-6)


@given(
    st.lists(answers({"refuses": [1, 5]}), min_size=3, max_size=8),
    answers({"refuses": [1, 5]}),
    answers({"refuses": [1, 5]}),
)
def test_opposite_wishes_on_a_head_of_two_classes_order_answers_oppositely(references, one, other):
    scale = measure(references)
    assume(told_apart(scale, {"refuses": 1}))
    assume(not math.isclose(one["refuses"][1], other["refuses"][1], abs_tol=1e-6))
    low = reward(one, {"refuses": 1}, scale) - reward(other, {"refuses": 1}, scale)
    high = reward(one, {"refuses": 5}, scale) - reward(other, {"refuses": 5}, scale)
    assert low * high < 0


def test_a_level_that_all_reference_answers_share_earns_nothing_and_is_named():
    references = [{"safety": {1: 0.25, 3: 0.25, 5: 0.5}}, {"safety": {1: 0.0, 3: 0.25, 5: 0.75}}]
    scale = measure(references)
    assert scale.levels["safety"][3].deviation < LEAST_DEVIATION
    assert scale.flat() == [("safety", 3)]
    assert reward({"safety": {1: 0.0, 3: 1.0, 5: 0.0}}, {"safety": 3}, scale) == 0
    assert reward(references[1], {"safety": 5}, scale) == pytest.approx(1)


def test_a_level_or_an_objective_that_the_model_does_not_tell_is_refused():
    scale = measure([{"safety": {1: 0.1, 5: 0.9}}])
    answer = {"safety": {1: 0.5, 5: 0.5}}
    with pytest.raises(UsageError, match=r"level 3 is absent.*\[1, 5\]"):
        reward(answer, {"safety": 3}, scale)
    with pytest.raises(UsageError, match="no head for 'brevity'"):
        reward(answer, {"brevity": 1}, scale)


def test_an_answer_counts_for_the_heads_that_it_was_read_by():
    scale = measure([{"safety": {1: 0.1, 5: 0.9}}, {"brevity": {1: 0.5, 2: 0.5}}])
    assert scale.answers == {"safety": 1, "brevity": 1}
    assert scale.levels["safety"][5].mean == 0.9


def test_no_reference_answer_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="no reference answer"):
        measure([])


def test_a_scale_is_written_and_read_back_as_it_was():
    scale = measure([{"safety": {1: 0.1, 5: 0.9}}, {"safety": {1: 1 / 3, 5: 2 / 3}}])
    assert RewardScale.model_validate_json(scale.model_dump_json()) == scale
