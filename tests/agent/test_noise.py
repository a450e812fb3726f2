"""What trainings do by luck is learnt from the calibration, and drawn toward what is usual."""

import math

import pytest

from agent.noise import SLICE_NOISE, SLICE_NOISE_REPEATS, mean_noise, slice_noise
from eval.statistics import NoiseEstimate, paired_change
from mosaic.core.types.evaluation import Scored
from tests.agent.conftest import MEANS, profile


@pytest.fixture
def repeats(trial):
    """Repeats of one mixture, each with the means of safety's three slices."""

    def make(*means):
        trials = []
        for three in means:
            trials.append(trial(None, {}, profile({**MEANS, "safety": three})))
        return trials

    return make


def test_slice_noise_averages_the_variances_of_slices_and_draws_them_toward_the_usual(repeats):
    found = slice_noise(repeats((3.0, 2.0, 4.0), (3.4, 2.2, 4.0), (3.2, 2.1, 4.0)), MEANS)
    measured = (0.2**2 + 0.1**2 + 0) / 3
    total = SLICE_NOISE_REPEATS * SLICE_NOISE**2 + 2 * measured
    expected = math.sqrt(total / (SLICE_NOISE_REPEATS + 2))
    assert found["safety"].deviation == pytest.approx(expected)
    assert found["safety"].freedom == SLICE_NOISE_REPEATS + 2
    assert found["over_refusal"].deviation < SLICE_NOISE


@pytest.mark.parametrize("count", [0, 1])
def test_without_a_repeat_the_usual_noise_is_all_that_is_known(repeats, count):
    usual = NoiseEstimate(SLICE_NOISE, SLICE_NOISE_REPEATS)
    assert slice_noise(repeats(*[(3.0, 2.0, 4.0)] * count), ["safety"]) == {"safety": usual}


def test_an_estimate_is_surer_the_more_repeats_it_has(observe):
    calibration = observe().calibration
    widths = []
    for count in (1, 3, 20):
        trials = calibration.trials * count
        estimate = mean_noise(calibration.model_copy(update={"trials": trials}), "safety")
        low, high = estimate.interval()
        assert low < estimate.deviation < high
        widths.append(high / low)
    assert widths == sorted(widths, reverse=True)


def test_the_luck_of_trainings_makes_a_change_less_believable():
    before = [Scored(id=str(i), status="ok", score=3) for i in range(40)]
    after = [item.model_copy(update={"score": 3.5 + i % 2 / 4}) for i, item in enumerate(before)]
    p_values = [
        paired_change(before, after, 0, noise)[1]
        for noise in (None, NoiseEstimate(0.1, 5), NoiseEstimate(0.4, 5))
    ]
    assert p_values == sorted(p_values)
    assert p_values[0] < 0.01
    assert p_values[2] > 0.1
