import numpy as np
import pytest

from eval.objectives.safety import Safety
from eval.profile import build_profile, reliability
from eval.statistics import discoveries, paired_change, summarise
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


def test_a_constant_sample_keeps_an_honest_interval():
    score = summarise(scored([5] * 10), seed=1)
    assert score.high == 5
    assert score.low == pytest.approx(5 - 4 * (1 - 0.025 ** (1 / 10)))


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
    hits = 0
    for trial in range(200):
        values = rng.choice([1, 2, 3, 4, 5], size=60, p=[0.3, 0.1, 0.1, 0.2, 0.3])
        score = summarise(scored([float(v) for v in values]), seed=trial)
        hits += score.low <= 3.1 <= score.high
    assert hits >= 180


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
    assert [reliability(n, n) for n in (0, 9, 29, 30)] == ["unknown", "low", "medium", "high"]
    assert reliability(70, 100) == "unknown"
