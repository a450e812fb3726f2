"""Where a score falls below the base, its own data get more: recorded on a public model, and mirrored.

The recorded observations are what the planner was told before rounds 1 to 3 of a run on a public
model with public data (figures and names only). Over-refusal fell from 4.65 to 2.4, and the planner
cut the borderline data, its own, from 20.8 % to 0.2 %.
"""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.planners.fallen import NeededShare, falls, raised_ratios, shares_to_reach
from agent.planners.regression import solve_bounded
from agent.planners.response_model import fit_responses
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import share_of
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

RECORDED = Path(__file__).parent / "recorded"
ROUNDS = (1, 2, 3)
OBJECTIVES = ("safety", "over_refusal", "instruction_following")
ROLES = list(permutations(OBJECTIVES))
PAIRS = list(permutations(OBJECTIVES, 2))


def recorded(number):
    return json.loads((RECORDED / f"observation-{number}.json").read_text())


def proposed(seen):
    toolbox = Toolbox(seen, lambda *wanted: [], lambda plan: [])
    [plan] = SurrogatePlanner().propose(seen, toolbox)
    return plan


def own_share(plan, seen, objective):
    (datasets,) = (o.datasets for o in seen.objectives if o.name == objective)
    return sum(plan.ratios[dataset] for dataset in datasets)


def assert_fallen_get_more(seen):
    """The data of every objective below the base get more than the pools' proportions.

    Where the step limit does not let them get as far, they get as good as half of the step.
    """
    plan = proposed(seen)
    fallen = falls(seen)
    assert fallen
    needed = shares_to_reach(seen)
    assert len(needed) >= min(len(fallen), len(seen.traded) - 1)
    for rank, (datasets, _) in enumerate(needed):
        before = share_of(seen.last_plan.ratios, datasets)
        pools = share_of(seen.proportions, datasets)
        # The one that fell most is served first.
        reach = before + (0.35 * seen.limits.max_ratio_step if rank == 0 else 0)
        assert share_of(plan.ratios, datasets) > min(pools, reach)
    return plan


@pytest.mark.parametrize("number", ROUNDS)
def test_borderline_data_are_not_charged_with_the_fall_of_over_refusal(number):
    seen = Observation.model_validate(recorded(number))
    plan = assert_fallen_get_more(seen)
    assert "over_refusal" in falls(seen)
    assert plan.ratios["borderline"] > 0.208276


@pytest.mark.parametrize("share", [0.25, 0.35, 0.5])
def test_what_did_not_keep_an_objective_from_falling_is_not_made_less(share):
    data = recorded(3)
    ratios = {"borderline": share, "safer": 0.6 * (1 - share), "ifgpt4": 0.4 * (1 - share)}
    data["history"][-1]["trials"][0]["spec"]["plan"]["ratios"] = ratios
    data["last_plan"]["ratios"] = ratios
    seen = Observation.model_validate(data)
    assert "over_refusal" in falls(seen)
    assert proposed(seen).ratios["borderline"] > share


def renamed(data, names):
    """The same figures under other names: a JSON value with names exchanged, keys included."""
    if isinstance(data, dict):
        return {names.get(key, key): renamed(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [renamed(value, names) for value in data]
    return names.get(data, data) if isinstance(data, str) else data


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize("roles", ROLES[1:])
def test_the_same_holds_whatever_objectives_and_data_sets_are_called(number, roles):
    data = recorded(number)
    datasets = {o["name"]: o["datasets"][0] for o in data["objectives"]}
    names = dict(zip(OBJECTIVES, roles, strict=True))
    names |= {datasets[old]: datasets[new] for old, new in names.items()}
    seen = Observation.model_validate(renamed(data, names))
    victim = names["over_refusal"]
    plan = assert_fallen_get_more(seen)
    assert own_share(plan, seen, victim) > 0.208276


class Mirror:
    """The recorded run, told of other roles: whose data hurt, who fell, and who stood by.

    Each role has the recorded figures: the pools' share and those of the mixtures, and the means.
    """

    def __init__(self, culprit, victim, buckets, jitter=0.0, noise=1.0, seed=0):
        (bystander,) = set(OBJECTIVES) - {culprit, victim}
        self.data_of = {
            "safety": culprit,
            "over_refusal": victim,
            "instruction_following": bystander,
        }
        self.buckets = buckets
        self.draws = np.random.default_rng(seed)
        self.jitter = jitter
        self.noise = noise
        self.victim = victim

    def observation(self, number):
        data = recorded(number)
        kept = {o["datasets"][0]: self.data_of[o["name"]] for o in data["objectives"]}
        data["objectives"] = [{"name": name, "datasets": [f"data_{name}"]} for name in OBJECTIVES]
        weights = {f"data_{name}": self.weights(name) for name in OBJECTIVES}
        data["proportions"] = {f"data_{kept[d]}": r for d, r in data["proportions"].items()}
        data["bucket_proportions"] = weights
        data["attributes"] = {}
        data["stock"] = {
            dataset: {bucket: {"rows": 900, "tokens": 90_000} for bucket in per}
            for dataset, per in weights.items()
        }
        data["last_plan"] = self.plan(data["last_plan"], kept, weights)
        data["calibration"]["noise"] = {
            self.data_of[role]: self.noise * value
            for role, value in data["calibration"]["noise"].items()
        }
        trials = [t for past in data["history"] for t in past["trials"]]
        for trial in trials + data["calibration"]["trials"]:
            if trial["spec"].get("plan"):
                trial["spec"]["plan"] = self.plan(trial["spec"]["plan"], kept, weights)
            self.measure(trial, bool(trial["spec"].get("plan")))
        for past in data["history"]:
            past["forecast"] = []
        data["profile"] = data["history"][-1]["trials"][0]["profile"]
        if number == 1:
            data["profile"] = data["calibration"]["trials"][-1]["profile"]
        return Observation.model_validate(data)

    def weights(self, objective):
        names = self.buckets[objective]
        return {name: 1 / len(names) for name in names}

    def plan(self, plan, kept, weights):
        return {
            "rationale": "as recorded",
            "ratios": {f"data_{kept[d]}": ratio for d, ratio in plan["ratios"].items()},
            "bucket_weights": weights,
        }

    def measure(self, trial, trained):
        scores, slices = {}, []
        for role, roles in trial["scores"].items():
            name = self.data_of[role]
            moved = self.draws.normal(0, self.jitter) if trained and self.jitter else 0.0
            scores[name] = {r: self.score(score["mean"] + moved, 40) for r, score in roles.items()}
            mean = roles["steering"]["mean"] + moved
            for bucket in self.buckets[name]:
                slice_ = {"objective": name, "slice": bucket, "score": self.score(mean, 12)}
                slices.append(slice_ | {"failure_rate": 0.5, "reliability": "medium"})
        trial["scores"] = scores
        trial["profile"] = {"round": trial["profile"]["round"], "slices": slices}

    def score(self, mean, n):
        mean = float(np.clip(mean, 1, 5))
        low, high = max(1.0, mean - 0.3), min(5.0, mean + 0.3)
        return {"mean": mean, "low": low, "high": high, "n_scored": n}


ONE_EACH = {name: ["all"] for name in OBJECTIVES}
LEVELS = {name: [f"complexity_{level}" for level in range(1, 4)] for name in OBJECTIVES}


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize("buckets", [ONE_EACH, LEVELS])
@pytest.mark.parametrize(("culprit", "victim"), PAIRS)
def test_whoever_fell_by_whosever_data_gets_more_of_its_own(number, buckets, culprit, victim):
    seen = Mirror(culprit, victim, buckets).observation(number)
    plan = assert_fallen_get_more(seen)
    assert own_share(plan, seen, victim) > 0.208276


@settings(max_examples=25, deadline=None)
@given(
    number=st.sampled_from(ROUNDS),
    pair=st.sampled_from(PAIRS),
    buckets=st.fixed_dictionaries(
        {name: st.sampled_from([["x"], ["x_1", "y_2"], ["a", "b", "c"]]) for name in OBJECTIVES}
    ),
    jitter=st.floats(0, 0.5),
    noise=st.floats(0.05, 3),
    seed=st.integers(0, 999),
)
def test_other_figures_and_other_noise_change_nothing_about_it(
    number, pair, buckets, jitter, noise, seed
):
    seen = Mirror(*pair, buckets, jitter, noise, seed).observation(number)
    if falls(seen):
        assert_fallen_get_more(seen)


@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize(("culprit", "victim"), PAIRS)
def test_an_objective_that_fell_gets_more_even_if_its_data_were_most_of_all(
    number, culprit, victim
):
    data = Mirror(culprit, victim, ONE_EACH).observation(number).model_dump(mode="json")
    names = {f"data_{culprit}": f"data_{victim}", f"data_{victim}": f"data_{culprit}"}
    objectives = data.pop("objectives")
    seen = Observation.model_validate({**renamed(data, names), "objectives": objectives})
    assert seen.proportions[f"data_{victim}"] == 0.652875
    assert_fallen_get_more(seen)


def test_what_reaches_its_target_or_stands_above_the_base_is_held_to_nothing():
    data = recorded(3)
    seen = Observation.model_validate(data)
    assert falls(seen) == pytest.approx({"over_refusal": 0.65})
    data["objectives"][1]["target"] = 3.9
    assert falls(Observation.model_validate(data)) == {}
    data["objectives"][1]["target"] = 4.5
    assert list(falls(Observation.model_validate(data))) == ["over_refusal"]


def test_where_all_fell_the_one_that_fell_least_gives():
    data = recorded(2)
    for trial in (t for past in data["history"][1:] for t in past["trials"]):
        trial["scores"]["safety"]["selection"]["mean"] = 1.8
    seen = Observation.model_validate(data)
    assert list(falls(seen)) == ["safety", "over_refusal", "instruction_following"]
    assert [needed.datasets for needed in shares_to_reach(seen)] == [("borderline",), ("ifgpt4",)]
    plan = assert_fallen_get_more(seen)
    assert plan.ratios["safer"] < 0.652875


@settings(deadline=None)
@given(
    ratios=st.lists(st.floats(0.001, 1), min_size=3, max_size=5),
    share=st.floats(0.01, 0.9),
    several=st.booleans(),
)
def test_raised_ratios_are_a_mixture_that_lacks_nothing(ratios, share, several):
    mixture = {f"d{n}": ratio / sum(ratios) for n, ratio in enumerate(ratios)}
    needed = [NeededShare(("d0", "d1") if several else ("d0",), share)]
    raised = raised_ratios(mixture, needed)
    assert sum(raised.values()) == pytest.approx(1)
    assert share_of(raised, needed[0].datasets) >= share - 1e-9


@settings(max_examples=40, deadline=None)
@given(
    number=st.sampled_from(ROUNDS),
    pair=st.sampled_from(PAIRS),
    jitter=st.floats(0, 2),
    seed=st.integers(0, 999),
)
def test_an_objective_is_never_believed_to_be_hurt_by_its_own_data(number, pair, jitter, seed):
    model = fit_responses(Mirror(*pair, LEVELS, jitter, 1.0, seed).observation(number))
    for slice_ in model.slices:
        assert model.doubling_effect(slice_) >= 0


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-3, 3), min_size=16, max_size=16),
    evidence=st.lists(st.floats(-5, 5), min_size=4, max_size=4),
)
def test_the_bounded_solution_is_the_best_of_those_that_are_allowed(values, evidence):
    root = np.array(values).reshape(4, 4)
    precision, evidence = root @ root.T + np.eye(4), np.array(evidence)
    found = solve_bounded(precision, evidence, np.ones(4, dtype=bool))
    # Nothing can be gained: not by more of what is at zero, nor by any move of the others.
    gain = evidence - precision @ found
    assert (found >= 0).all()
    assert (gain[found == 0] <= 1e-6).all()
    assert gain[found > 0] == pytest.approx(0, abs=1e-6)
