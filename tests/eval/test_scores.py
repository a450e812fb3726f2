import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from eval.objectives.safety import Safety
from eval.profile import build_profile, reliability
from eval.statistics import (
    NoiseEstimate,
    discoveries,
    paired_change,
    smallest_difference,
    summarise,
)
from mosaic.core.types.evaluation import Scored


def scored(values, slice_="complexity_1", prefix="p", **more):
    return [
        Scored(
            id=f"{prefix}{i}",
            status="ok",
            slice=slice_,
            weight=1,
            score=v,
            need=0,
            failed=v < 3,
            **more,
        )
        for i, v in enumerate(values)
    ]


def test_mean_and_interval_cover_the_mean():
    score = summarise(scored([1, 5, 3, 4, 2] * 10), seed=1)
    assert score.mean == 3
    assert score.low < 3 < score.high
    assert summarise(scored([1, 5, 3, 4, 2] * 10), seed=1) == score


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 1.4, 3.3, 5.0]), min_size=1, max_size=20))
def test_an_interval_holds_its_mean_and_stays_on_the_scale(values):
    score = summarise(scored(values), seed=1)
    assert 1 <= score.low <= score.mean <= score.high <= 5


def test_a_constant_sample_keeps_an_honest_interval():
    score = summarise(scored([5] * 10), seed=1)
    assert score.high == 5
    assert score.low == pytest.approx(5 - 4 * (1 - 0.025 ** (1 / 10)), abs=0.1)


@pytest.mark.parametrize(("passed", "of"), [(27, 30), (150, 300), (299, 300)])
def test_passes_and_failures_have_the_exact_interval_of_clopper_and_pearson(passed, of):
    score = summarise(scored([5] * passed + [1] * (of - passed)), seed=1)
    exact = binomtest(passed, of).proportion_ci(method="exact")
    # What is drawn at random is off by a fraction of the interval's width.
    width = 4 * (exact.high - exact.low)
    assert score.low == pytest.approx(1 + 4 * exact.low, abs=width / 25)
    assert score.high == pytest.approx(1 + 4 * exact.high, abs=width / 25)


def test_copies_of_one_prompt_tell_no_more_than_the_prompt():
    values = [1, 5, 3, 4, 2, 5] * 4
    alone = summarise(scored(values), seed=1)
    copies = []
    for number, value in enumerate(values):
        copies += scored([value] * 4, prefix=f"p{number}.", group=f"seed {number}")
    together = summarise(copies, seed=1)
    assert (together.n_scored, together.n_clusters, alone.n_clusters) == (96, 24, None)
    assert (together.mean, together.clusters, alone.clusters) == (alone.mean, 24, 24)
    assert together.low == pytest.approx(alone.low)
    assert together.high == pytest.approx(alone.high)
    assert summarise(scored(values * 4), seed=1).low > together.low + 0.1


def test_a_group_is_not_taken_for_a_prompt_of_the_same_name():
    items = [*scored([1, 5]), *scored([3, 4], prefix="q", group="p0")]
    assert summarise(items, seed=1).clusters == 3


def test_a_change_of_one_cluster_alone_is_no_evidence():
    before = scored([2] * 12)
    assert paired_change(before, scored([4] * 12), 0)[1] < 0.01
    before, after = scored([2] * 12, group="one"), scored([4] * 12, group="one")
    assert paired_change(before, after, 0) == (2.0, 1.0)


@pytest.mark.parametrize("luck", [0.0, 0.2])
def test_the_smallest_difference_is_shown_in_four_of_five_cases(luck):
    rng, noise = np.random.default_rng(3), NoiseEstimate(luck, 5)
    difference = smallest_difference(60, 1.0, noise)
    shown = 0
    for trial in range(300):
        # The scale ends at 5: steps of half a point keep the spread of one point within it.
        steps = rng.choice([-1.0, 1.0], 60) + difference + luck * rng.standard_normal()
        before = scored([3.0] * 60)
        after = [
            b.model_copy(update={"score": 3.0 + s}) for b, s in zip(before, steps, strict=True)
        ]
        shown += paired_change(before, after, trial, noise if luck else None)[1] <= 0.05
    assert 0.7 < shown / 300 < 0.9
    assert smallest_difference(0, 1.0, noise) == math.inf


def test_scores_without_groups_are_written_as_they_were():
    assert "n_clusters" not in summarise(scored([1, 5]), seed=1).json_data()
    assert "group" not in scored([1])[0].json_data()


def test_unscored_and_invalid_items_are_counted_and_not_averaged():
    items = [
        *scored([5, 5]),
        *scored([1], prefix="x", valid=0),
        Scored(id="u", status="unscored", reason="no", slice="complexity_1"),
    ]
    score = summarise(items, seed=1)
    assert (score.mean, score.n_scored, score.n_unscored, score.n_invalid) == (5, 2, 1, 1)
    assert summarise(items[2:], seed=1).mean is None


def test_interval_coverage_on_simulated_truth():
    rng = np.random.default_rng(0)
    covered = passed = 0
    for trial in range(400):
        values = rng.choice([1, 2, 3, 4, 5], size=60, p=[0.05, 0.05, 0.05, 0.05, 0.8])
        score = summarise(scored([float(v) for v in values]), seed=trial)
        covered += score.low <= 4.5 <= score.high
        passed += score.low > 4.5
    # 95 % and 2.5 %, and what 400 trials may be off.
    assert covered >= 0.93 * 400
    assert passed <= 0.04 * 400


def test_paired_change_finds_a_real_shift_and_no_imaginary_one():
    before = scored([1, 2, 1, 2] * 8)
    assert paired_change(before, scored([4, 5, 4, 5] * 8), 0)[1] < 0.01
    assert paired_change(before, before, 0) == (0.0, 1.0)
    assert paired_change(before, scored([3], prefix="other"), 0) is None


def test_false_discovery_control():
    assert discoveries([0.001, 0.8, None, 0.9]) == [True, False, False, False]


def test_profile_ranks_worst_first_and_marks_poor_coverage():
    items = [*scored([5] * 30), *scored([1] * 30, "complexity_2", "q")]
    items += [
        Scored(id=f"u{i}", status="unscored", reason="no", slice="complexity_3") for i in range(30)
    ]
    profile = build_profile(0, {"safety": items}, {"safety": Safety()}, None)
    assert [s.slice for s in profile.slices] == ["complexity_2", "complexity_1", "complexity_3"]
    assert [s.reliability for s in profile.slices] == ["high", "high", "unknown"]
    assert profile.slices[0].failure_rate == 1


def test_reliability_grades():
    assert [reliability(n, n) for n in (0, 14, 29, 30)] == ["unknown", "low", "medium", "high"]
    assert [reliability(90, 90, clusters=n) for n in (14, 29)] == ["low", "medium"]
    assert reliability(70, 100) == "unknown"
