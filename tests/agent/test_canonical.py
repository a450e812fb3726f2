"""What a planner proposes hangs on figures, not on what objectives, data sets and buckets are called."""

import json
from pathlib import Path

import numpy as np
import pytest

from agent.planners.baselines import NeedPlanner
from agent.planners.search import Surrogate
from agent.planners.surrogate import SurrogatePlanner
from mosaic.core.types.data import BucketReport, CurationReport, DatasetReport
from mosaic.core.types.influence import Effect
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox

RECORDED = Path(__file__).parent / "recorded"
# The order of names is turned around, and some end in digits.
OTHER = {
    "safety": "zeta_7",
    "over_refusal": "middle",
    "instruction_following": "alpha",
    "safer": "tower_3",
    "borderline": "a",
    "ifgpt4": "b_9",
}


def renamed(data, names):
    """The same figures under other names, with mappings in the order of the new names."""
    if isinstance(data, dict):
        changed = {names.get(key, key): renamed(value, names) for key, value in data.items()}
        return dict(sorted(changed.items()))
    if isinstance(data, list):
        return [renamed(value, names) for value in data]
    return names.get(data, data) if isinstance(data, str) else data


def proposed(planner, seen):
    [plan] = planner.propose(seen, Toolbox(seen, lambda *wanted: [], lambda plan: []))
    return plan


def assert_same_weights(planner, data, names):
    plan = proposed(planner, Observation.model_validate(data))
    other = proposed(planner, Observation.model_validate(renamed(data, names)))
    for dataset, ratio in plan.ratios.items():
        assert other.ratios[names[dataset]] == pytest.approx(ratio, abs=1e-9)
        weights = other.bucket_weights[names[dataset]]
        for bucket, weight in plan.bucket_weights[dataset].items():
            assert weights[names.get(bucket, bucket)] == pytest.approx(weight, abs=1e-9)


@pytest.mark.parametrize("number", [1, 3])
def test_a_renamed_observation_gives_the_same_weights(number):
    data = json.loads((RECORDED / f"observation-{number}.json").read_text())
    buckets = {bucket for per in data["bucket_proportions"].values() for bucket in per}
    slices = {one["slice"] for one in data["profile"]["slices"]}
    numbers = range(len(buckets | slices), 0, -1)
    names = OTHER | {b: f"n_{i}" for i, b in zip(numbers, sorted(buckets | slices), strict=True)}
    assert_same_weights(SurrogatePlanner(), data, names)


def test_buckets_that_look_alike_until_a_tool_tells_them_apart_keep_their_weights(observe):
    seen = observe()
    names = {
        "a": "z",
        "b": "y",
        "x": "w_5",
        "y": "v_9",
        "z": "u_1",
        "safety": "over",
        "over_refusal": "s",
    }
    data = seen.json_data()
    assert_same_weights(SurrogatePlanner(), data, names)


def test_influence_has_the_same_weight_under_other_names(observe):
    draws = np.random.default_rng(3)
    seen = observe()
    buckets = []
    for one in seen.influence.buckets:
        effects = {}
        for name in one.effects:
            effects[name] = Effect(value=float(draws.normal()), standard_error=0.1)
        buckets.append(one.model_copy(update={"effects": effects}))
    told = seen.influence.model_copy(update={"buckets": buckets})
    seen = seen.model_copy(update={"influence": told})
    assert len(Surrogate(seen).influence_weights) == 2
    without = proposed(SurrogatePlanner(), seen.model_copy(update={"influence": None}))
    assert proposed(SurrogatePlanner(), seen).ratios != without.ratios
    names = {"a": "z", "b": "y", "x": "w_5", "y": "v_9", "z": "u_1"}
    objectives = {"safety": "over", "over_refusal": "s"}
    assert_same_weights(SurrogatePlanner(), seen.json_data(), names | objectives)


def test_need_asks_the_suites_how_hard_a_slice_is_and_not_its_name(observe):
    seen = observe()
    slices = [one.model_copy(update={"slice": one.slice}) for one in seen.profile.slices]
    light = proposed(NeedPlanner(), seen)
    heavy = [one.model_copy(update={"weight": 5.0 if one.slice == "x" else 1.0}) for one in slices]
    changed = seen.model_copy(update={"profile": seen.profile.model_copy(update={"slices": heavy})})
    assert (
        proposed(NeedPlanner(), changed).bucket_weights["a"]["x"] > light.bucket_weights["a"]["x"]
    )


def test_what_was_delivered_counts_and_not_what_was_asked(observe):
    seen = observe()
    (repeat,) = seen.calibration.trials
    plan = repeat.plan
    datasets = {}
    for dataset, weights in seen.bucket_proportions.items():
        buckets = {}
        for bucket, weight in weights.items():
            asked = int(1000 * plan.ratios[dataset] * weight)
            given = 0 if (dataset, bucket) == ("a", "z") else asked
            buckets[bucket] = BucketReport(requested=asked, selected=given)
        datasets[dataset] = DatasetReport(buckets=buckets)
    report = CurationReport(datasets=datasets, total=BucketReport(), digest="d")
    spec = repeat.spec.model_copy(update={"tokens": 1000})
    told = repeat.model_copy(update={"curation": report, "spec": spec})
    plain = repeat.model_copy(update={"spec": spec})

    def plan_after(trial):
        calibration = seen.calibration.model_copy(update={"trials": [trial]})
        return proposed(SurrogatePlanner(), seen.model_copy(update={"calibration": calibration}))

    assert plan_after(told).bucket_weights != plan_after(plain).bucket_weights
