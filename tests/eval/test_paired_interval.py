"""The interval of a paired difference holds its mean and pairs prompts by their ids."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import paired_interval
from mosaic.core.types.evaluation import Scored

SCORES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=40)


def scored(values):
    return [Scored(id=str(i), status="ok", score=value) for i, value in enumerate(values)]


@settings(deadline=None)
@given(SCORES)
def test_the_mean_is_that_of_the_differences_and_lies_in_the_interval(pairs):
    gain = paired_interval(scored(a for a, _ in pairs), scored(b for _, b in pairs), 1)
    assert abs(gain.mean - sum(b - a for a, b in pairs) / len(pairs)) < 1e-9
    assert gain.low - 1e-9 <= gain.mean <= gain.high + 1e-9


@settings(deadline=None)
@given(SCORES)
def test_prompts_are_paired_by_id_whatever_their_order(pairs):
    before, after = scored(a for a, _ in pairs), scored(b for _, b in pairs)
    assert paired_interval(before[::-1], after, 1) == paired_interval(before, after, 1)


def test_a_prompt_scored_once_only_does_not_count():
    before, after = scored([1, 2, 3]), scored([2, 3, 5])
    lost = Scored(id="2", status="unscored", reason="lost")
    assert paired_interval([*before[:2], lost], after, 1).mean == 1
    assert paired_interval([], after, 1) is None


def test_equal_differences_do_not_make_an_interval_without_width():
    before = scored([3] * 40)
    gain = paired_interval(before, before, 1)
    assert gain.mean == 0
    assert gain.low < -0.2
    assert gain.high > 0.2
    assert gain.low == pytest.approx(-4 * (1 - 0.025 ** (1 / 40)), abs=0.05)


def test_the_differences_of_a_cluster_count_once():
    before, after = scored([3] * 40), scored([3, 4] * 20)
    grouped = [item.model_copy(update={"group": f"g{i // 8}"}) for i, item in enumerate(after)]
    alone, together = paired_interval(before, after, 1), paired_interval(before, grouped, 1)
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)
