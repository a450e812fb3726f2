import itertools

import numpy as np
import pytest

from agent.pareto import (
    archive,
    choose,
    dominates,
    expected_shortfall,
    floors_broken,
    hypervolume,
    verdict,
)
from mosaic.core.types.evaluation import Difference, FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, ObjectiveSpec
from mosaic.core.types.runs import Round, Trial, TrialSpec

NAMES = ["s", "o"]


def score(mean, half=0.1, n=40, clusters=None):
    return Score(
        mean=mean,
        low=None if mean is None else mean - half,
        high=None if mean is None else mean + half,
        n_scored=n,
        n_clusters=clusters,
    )


NOISE = {"s": 0.3, "o": 0.3}


def rounds(*points, accepted=True):
    made = []
    for number, point in enumerate(points, start=1):
        spec = TrialSpec(base="base", seed=number)
        trial = Trial(
            id=spec.id,
            spec=spec,
            scores={n: {"selection": score(x)} for n, x in zip(NAMES, point, strict=True)},
            profile=FailureProfile(round=number, slices=[]),
        )
        made.append(Round(round=number, trials=[trial], accepted=accepted))
    return made


def test_a_gain_within_the_noise_costs_nobody_a_place():
    made = rounds((3.0, 3.0), (3.05, 3.0), (4.0, 3.0))
    assert archive(made[:2], NAMES, {"s": 0.1, "o": 0.1}) == [1, 2]
    assert archive(made, NAMES, {"s": 0.1, "o": 0.1}) == [3]


def test_a_round_that_is_archived_for_a_sibling_is_not_chosen():
    made = [
        round_.model_copy(update={"dominated": round_.round == 1})
        for round_ in rounds((4.0, 1.0), (4.5, 1.0))
    ]
    goals = [ObjectiveSpec(name=name, datasets=["d"]) for name in NAMES]
    assert choose(made, [1, 2], goals, NOISE) == 2


def test_the_archive_does_not_depend_on_order_and_is_never_empty():
    points = np.random.default_rng(0).uniform(1, 5, (6, 2)).tolist()
    made = rounds(*points)
    noise = {"s": 0.3, "o": 0.2}
    expected = sorted(archive(made, NAMES, noise))
    assert expected
    for order in itertools.permutations(made):
        assert sorted(archive(list(order), NAMES, noise)) == expected
    for a, b in itertools.permutations(expected, 2):
        assert not dominates(points[a - 1], points[b - 1], [0.3, 0.2])


def test_hypervolume_is_a_share_of_the_scale():
    assert hypervolume([]) == 0
    assert hypervolume([[5, 5, 5]]) == pytest.approx(1)
    assert hypervolume([[3, 3, 3]]) == pytest.approx(1 / 8)
    assert hypervolume([[3, 3], [2, 5], [1, 5]]) == pytest.approx((4 + 2) / 16)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4, 5, 6])
def test_hypervolume_equals_a_count_of_all_boxes(dimensions):
    """By inclusion and exclusion: what two points both dominate is the box up to their minimum."""
    random = np.random.default_rng(dimensions)
    for size in (1, 2, 3, 5, 8):
        points = random.uniform(0.8, 5, (size, dimensions)).round(1)
        exact = 0.0
        for count in range(1, size + 1):
            for chosen in itertools.combinations(points, count):
                sides = np.clip((np.min(chosen, axis=0) - 1) / 4, 0, None)
                exact -= (-1) ** count * np.prod(sides)
        assert hypervolume(points.tolist()) == pytest.approx(exact, abs=1e-12)


def test_floors_are_held_on_the_lower_bound():
    objectives = [
        ObjectiveSpec(name="s", datasets=["a"], floor=2.95),
        ObjectiveSpec(name="o", datasets=["b"]),
    ]
    made = rounds((3.0, 3.0), (3.2, 3.0))
    assert [verdict(r, objectives, NOISE)[0] for r in made] == [False, True]
    assert floors_broken(made[0].trial, objectives, NOISE) == ["s"]
    unscored = rounds((None, 3.0))[0]
    assert verdict(unscored, objectives, NOISE) == (False, "not scored: s")


@pytest.mark.parametrize(
    ("n", "clusters", "holds"), [(14, None, False), (15, None, True), (40, 14, False)]
)
def test_no_floor_holds_on_fewer_than_fifteen_clusters(n, clusters, holds):
    objectives = [ObjectiveSpec(name="s", datasets=["a"], floor=2.0)]
    made = rounds((4.0, 3.0))[0]
    scores = {"s": {"selection": score(4.0, n=n, clusters=clusters)}}
    trial = made.trial.model_copy(update={"scores": scores})
    made = made.model_copy(update={"trials": [trial]})
    accepted, reason = verdict(made, objectives, NOISE)
    assert accepted == holds
    assert holds or reason == "too few independent prompts scored for a floor: s 14 of 15"


def against_base(round_, mean, half, clusters=40):
    change = Difference(mean=mean, low=mean - half, high=mean + half, clusters=clusters)
    plan = ActionPlan(rationale="", ratios={"a": 1.0})
    spec = round_.trial.spec.model_copy(update={"plan": plan})
    changes = {"spec": spec, "against_base": {"s": change}}
    return round_.model_copy(update={"trials": [round_.trial.model_copy(update=changes)]})


@pytest.mark.parametrize(
    ("mean", "half", "clusters", "accepted", "reason"),
    [
        (0.0, 0.2, 40, True, "all floors held"),
        (-0.2, 0.09, 40, True, "all floors held; s fell by 0.20 from the base"),
        (
            -0.2,
            0.2,
            40,
            False,
            "below the floor on the lower bound: s -0.40 < -0.30 against the base",
        ),
        (
            -1.0,
            0.2,
            40,
            False,
            "below the floor on the lower bound: s -1.20 < -0.30 against the base; "
            "s fell by 1.00 from the base",
        ),
        (
            0.5,
            0.1,
            14,
            False,
            "too few independent prompts scored for a floor: s 14 of 15 with the base",
        ),
    ],
)
def test_the_floor_base_is_held_by_the_paired_difference(mean, half, clusters, accepted, reason):
    objectives = [ObjectiveSpec(name="s", datasets=["a"], floor="base")]
    made = against_base(rounds((3.0, 3.0))[0], mean, half, clusters)
    assert verdict(made, objectives, NOISE) == (accepted, reason)
    assert floors_broken(made.trial, objectives, NOISE) == ([] if accepted else ["s"])


def test_the_base_holds_its_own_floor_and_a_trial_that_was_not_compared_does_not():
    objectives = [ObjectiveSpec(name="s", datasets=["a"], floor="base")]
    base = rounds((3.0, 3.0))[0]
    assert verdict(base, objectives, NOISE)[0]
    lost = against_base(base, 0.0, 0.1)
    trial = lost.trial.model_copy(update={"against_base": {}})
    accepted, reason = verdict(lost.model_copy(update={"trials": [trial]}), objectives, NOISE)
    assert not accepted
    assert reason.endswith("s not compared with the base")


def test_a_fall_is_named_without_a_floor_too():
    objectives = [ObjectiveSpec(name="s", datasets=["a"])]
    made = against_base(rounds((3.0, 3.0))[0], -0.4, 0.6)
    expected = (True, "all objectives scored; s fell by 0.40 from the base")
    assert verdict(made, objectives, NOISE) == expected


def test_the_choice_takes_targets_first_and_volume_second():
    objectives = [
        ObjectiveSpec(name="s", datasets=[], target=4.0),
        ObjectiveSpec(name="o", datasets=[], target=4.0),
    ]
    made = rounds((5.0, 3.0), (4.0, 4.0), (4.1, 4.2))
    assert choose(made, [1, 2, 3], objectives, {}) == 3
    assert choose(made, [1, 2], objectives, {}) == 2
    assert choose(made, [], objectives, {}) is None


def test_where_an_objective_is_noisy_the_choice_keeps_its_distance_from_the_target():
    objectives = [
        ObjectiveSpec(name="s", datasets=[], target=4.0),
        ObjectiveSpec(name="o", datasets=[], target=3.0),
    ]
    made = rounds((4.1, 4.9), (4.6, 4.0), (4.6, 4.1))
    assert choose(made, [1, 2, 3], objectives, {"s": 0.02, "o": 0.02}) == 1
    assert choose(made, [1, 2, 3], objectives, {"s": 0.4, "o": 0.02}) == 3
    # Without targets nothing but the volume counts.
    untold = [o.model_copy(update={"target": None}) for o in objectives]
    assert choose(made, [1, 2, 3], untold, {"s": 0.4, "o": 0.02}) == 1


@pytest.mark.parametrize("below", [-3.0, -0.2, 0.0, 0.2, 3.0])
@pytest.mark.parametrize("noise", [0.01, 0.3, 1.0])
def test_the_expected_shortfall_is_the_mean_over_noise(below, noise):
    draws = below + noise * np.random.default_rng(1).standard_normal(400_000)
    assert expected_shortfall(below, noise) == pytest.approx(np.maximum(0, draws).mean(), abs=0.005)
