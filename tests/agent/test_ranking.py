"""The archive is ranked as the result is chosen, and says how probably each round is the best."""

import numpy as np
import pytest

from agent.pareto import choose, dominates
from agent.ranking import chances_of_best, ranked
from eval.statistics import NoiseEstimate
from mosaic.core.types.plans import ObjectiveSpec
from tests.agent.test_pareto import NAMES, rounds


def specs(target=None, names=NAMES):
    return [ObjectiveSpec(name=name, datasets=["d"], target=target) for name in names]


def noise(deviation, names=NAMES, freedom=1000):
    return dict.fromkeys(names, NoiseEstimate(deviation, freedom))


def calibrated(deviation, names=NAMES):
    return dict.fromkeys(names, deviation)


@pytest.mark.parametrize("target", [None, 4.0])
def test_the_first_is_the_chosen_and_the_probabilities_are_those_of_one_event(target):
    points = np.random.default_rng(1).uniform(2, 5, (6, 2)).tolist()
    made, objectives = rounds(*points), specs(target)
    kept = [1, 2, 4, 5, 6]
    found = ranked(made, kept, objectives, noise(0.2), calibrated(0.2))
    assert found[0].round == choose(made, kept, objectives, dict.fromkeys(NAMES, 0.2))
    assert sorted(one.round for one in found) == kept
    assert sum(one.best for one in found) == pytest.approx(1)
    merits = [(-one.shortfall, one.volume) for one in found]
    assert merits == sorted(merits, reverse=True)


def test_rounds_within_the_noise_share_the_probability_and_distant_ones_do_not():
    made = rounds((3.0, 3.0), (3.0, 3.0), (4.0, 4.0))
    near = {
        one.round: one.best for one in ranked(made, [1, 2], specs(), noise(0.2), calibrated(0.2))
    }
    assert near[1] == pytest.approx(0.5, abs=0.05)
    far = {
        one.round: one.best for one in ranked(made, [1, 2, 3], specs(), noise(0.1), calibrated(0.1))
    }
    assert far[3] > 0.99
    assert ranked(made, [], specs(), noise(0.1), calibrated(0.1)) == []


def test_a_round_that_misses_its_targets_is_seldom_the_best_however_large_its_volume():
    made = rounds((5.0, 3.5), (4.2, 4.2))
    first, second = ranked(made, [1, 2], specs(4.0), noise(0.1), calibrated(0.1))
    assert (first.round, second.round) == (2, 1)
    assert second.volume > first.volume - 0.1
    assert second.best < 0.05


@pytest.mark.parametrize("count", [1, 6])
def test_the_probability_of_being_best_is_how_often_the_first_is(count):
    """Truths lie all over the scale, so that what is measured says all that is known of them."""
    names = [f"o{i}" for i in range(count)]
    objectives, believed = specs(names=names), noise(0.3, names)
    generator = np.random.default_rng(2)
    said = right = 0.0
    for _ in range(300):
        truth = generator.uniform(1.5, 4.5, (5, count))
        measured = np.clip(truth + 0.3 * generator.standard_normal(truth.shape), 1, 5)
        chances = chances_of_best(measured, objectives, believed)
        first = int(chances.argmax())
        said += float(chances[first])
        right += first == int(((truth - 1) / 4).prod(axis=1).argmax())
    assert said / 300 == pytest.approx(right / 300, abs=0.07)


def test_where_six_objectives_keep_nearly_all_rounds_the_ranking_tells_them_apart():
    names = [f"o{i}" for i in range(6)]
    generator = np.random.default_rng(5)
    kept, first = [], []
    for _ in range(20):
        points = np.clip(generator.normal(3.5, 0.5, (5, 6)), 1, 5)
        for point in points:
            kept.append(not any(dominates(other, point, [0.2] * 6) for other in points))
        first.append(chances_of_best(points, specs(names=names), noise(0.2, names)).max())
    assert np.mean(kept) > 0.9
    assert np.mean(first) > 0.6


def test_the_order_is_that_of_the_choice_also_where_more_noise_is_believed_and_has_no_base():
    made = rounds((4.0, 4.0), (5.0, 3.98))
    objectives = specs(4.0)
    found = ranked(made, [0, 1, 2], objectives, noise(0.45), calibrated(0.01))
    assert [one.round for one in found] == [1, 2]
    assert choose(made, [1, 2], objectives, calibrated(0.01)) == 1
