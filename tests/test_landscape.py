"""The landscape's own arithmetic: mixtures that are mixtures, and what counts as many-sided."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.landscape import OWN, Point, around, by_hand, even, many_sided, need
from benchmarks.signal import _doubled
from benchmarks.world import Measured
from mosaic.app.config_file import load_config
from mosaic.core.types.evaluation import Score

BUCKETS = {
    "guard": {"complexity_1": 0.7, "complexity_2": 0.3},
    "benign": {"boundary_1": 0.6, "boundary_2": 0.4},
    "tasks": {"complexity_1": 0.9, "complexity_2": 0.1},
    "talk": {"story": 1.0},
    "lessons": {"complexity_2": 1.0},
}
POINT = Point({"guard": 0.1, "benign": 0.2, "tasks": 0.3, "talk": 0.3, "lessons": 0.1}, BUCKETS)


def measured(*means):
    names = tuple(OWN)[: len(means)]
    scores = {}
    for name, mean in zip(names, means, strict=True):
        scores[name] = Score(mean=mean, low=mean, high=mean, n_scored=9)
    slices = {"safety": [2.0, 1.0], "over_refusal": [5.0, 4.0], "instruction_following": [3.0, 3.0]}
    return Measured(scores, slices, names)


def cells(ratios, buckets):
    return {(d, b): ratios[d] * w for d, inside in buckets.items() for b, w in inside.items()}


@given(st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_a_point_near_another_is_a_mixture(seed, spread):
    point = around(np.random.default_rng(seed), POINT, spread)
    assert sum(point.ratios.values()) == pytest.approx(1)
    assert all(sum(inside.values()) == pytest.approx(1) for inside in point.buckets.values())


@pytest.mark.parametrize("cell", sorted(cells(POINT.ratios, BUCKETS)))
def test_a_doubled_bucket_has_twice_its_share_and_the_others_keep_their_proportions(cell):
    dataset, bucket = cell
    before = cells(POINT.ratios, BUCKETS)
    share = before[cell]
    after = cells(*_doubled(POINT.ratios, BUCKETS, dataset, bucket, share))
    assert after[cell] == pytest.approx(2 * share, abs=1e-5)
    rest = {other: after[other] / before[other] for other in before if other != cell}
    assert max(rest.values()) - min(rest.values()) < 1e-3


def test_the_mixture_by_hand_is_turned_to_hard_buckets_and_leaves_the_decoy_out():
    point = by_hand(POINT)
    assert sum(point.ratios.values()) == pytest.approx(1)
    assert point.ratios["lessons"] == 0
    assert point.buckets["guard"] == pytest.approx({"complexity_1": 1 / 3, "complexity_2": 2 / 3})
    assert point.buckets["talk"] == POINT.buckets["talk"]


def test_even_buckets_keep_the_shares_of_data_sets():
    point = even(POINT)
    assert point.ratios == POINT.ratios
    assert point.buckets["tasks"] == {"complexity_1": 0.5, "complexity_2": 0.5}


def test_need_gives_most_to_what_fails_and_is_hard_and_shares_it_with_the_decoy():
    class World:
        config = load_config("lab")

        def base(self):
            return measured(1.5, 4.5, 3.0)

    point = need(World(), POINT)
    # Needs of safety: (6 - 2) * 1 and (6 - 1) * 2.
    assert point.buckets["guard"]["complexity_2"] == pytest.approx(10 / 14, abs=1e-5)
    # Two data sets are declared for safety, and each gets half of its need of 14.
    needs = {"guard": 14 / 2, "lessons": 10 / 2, "benign": 5, "tasks": 9}
    assert point.ratios["lessons"] == pytest.approx(0.7 * 5 / sum(needs.values()), abs=1e-5)
    assert point.ratios["talk"] == pytest.approx(0.3)
    assert point.ratios["guard"] > point.ratios["benign"]


def test_a_landscape_that_one_share_ranks_is_not_many_sided():
    points = [Point({"guard": x, "talk": 1 - x}, BUCKETS) for x in (0.1, 0.2, 0.3, 0.4)]
    ranked = [measured(1 + x, 3.0, 3.0) for x in (1, 2, 3, 4)]
    correlation, kept = many_sided(points, ranked)
    assert (correlation["figure"], correlation["met"]) == (1, False)
    assert kept["figure"] == 1
    torn = [measured(1.0 + x, 5.0 - x, 3.0) for x in (0, 1, 2, 3)]
    assert many_sided(points, torn)[1]["figure"] == 4
