"""A model that plans beside the surrogate: it may take its suggestions, and leave them in a few rounds only."""

import json
import math

import pytest

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.llm import LlmPlanner
from agent.planners.search import Surrogate
from agent.planners.surrogate import SurrogatePlanner
from agent.planners.toolbox import SurrogateTools
from agent.planners.track_record import known_before, track_record
from eval.chat.client import ChatConfig, ChatModel
from mosaic.core.errors import BoundaryError, UsageError
from mosaic.core.types.evaluation import FailureProfile, Score, SliceProfile
from mosaic.core.types.plans import ActionPlan, Forecast
from mosaic.core.types.runs import Round
from mosaic.lab.server import ScriptedServer
from tools.planning.toolbox import Toolbox


def toolbox(seen, pool):
    fitted = SurrogateTools(seen)
    return Toolbox(
        seen,
        lambda *wanted: [],
        lambda plan: check_plan(plan, seen, pool),
        fitted.predict,
        fitted.suggest,
    )


def planner(server, **changes):
    chat = ChatConfig(base_url=server.url, timeout_seconds=5)
    config = LlmPlannerConfig(chat=chat, **changes)
    return LlmPlanner(config, ChatModel(chat, sleep=lambda seconds: None))


def call(name, arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }


def takes_the_first_suggestion(request):
    answers = [m for m in request["messages"] if m["role"] == "tool"]
    if not answers:
        return call("suggest", {"n": 1, "bounds": []})
    [best] = json.loads(answers[0]["content"])
    changes = {name: told["change"] for name, told in best["selection"].items()}
    plan = {"rationale": "As suggested.", **best, "expected": changes}
    del plan["selection"]
    return call("submit_plan", plan)


def submits(plan):
    weights = {"ratios": plan.ratios, "bucket_weights": plan.bucket_weights}
    expected = dict.fromkeys(("safety", "over_refusal"), 0.1)
    submitted = {"rationale": "My own way.", **weights, "expected": expected}
    return lambda request: call("submit_plan", submitted)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_model_that_takes_the_first_suggestion_equals_the_profile_planner(
    observe, small_pool, seed
):
    seen = observe(seed=seed)
    [own] = SurrogatePlanner().propose(seen, toolbox(seen, small_pool))
    with ScriptedServer(script=takes_the_first_suggestion) as server:
        [plan] = planner(server).propose(seen, toolbox(seen, small_pool))
    assert plan.ratios == pytest.approx(own.ratios, abs=1e-9)
    for dataset, weights in own.bucket_weights.items():
        assert plan.bucket_weights[dataset] == pytest.approx(weights, abs=1e-9)
    assert plan.expected == pytest.approx(own.expected)
    assert not plan.explores


def clearly_worse(seen, small_pool):
    """A legal plan that the surrogate predicts clearly worse than its best."""
    surrogate = Surrogate(seen)
    last = seen.last_plan
    found = []
    for share in (0.21, 0.79):
        buckets = {d: {"x": 0.8, "y": 0.1, "z": 0.1} for d in last.ratios}
        ratios = {"a": share, "b": 1 - share}
        plan = last.model_copy(update={"ratios": ratios, "bucket_weights": buckets})
        if not check_plan(plan, seen, small_pool):
            found.append(plan)
    plan = max(found, key=lambda one: surrogate.lag(one).mean)
    assert surrogate.lag(plan).clear
    return plan


# Shares of data set a, and of its buckets and those of b, of three rounds that were measured.
TRIED = ((0.4, (0.3, 0.3, 0.4)), (0.6, (0.2, 0.4, 0.4)), (0.5, (0.5, 0.3, 0.2)))


@pytest.fixture
def known(observe, trial):
    """An observation whose three rounds say that each slice answers to its own bucket."""

    def measured(plan):
        slices, scores = [], {}
        for dataset, objective in (("a", "safety"), ("b", "over_refusal")):
            means = []
            for bucket in "xyz":
                share = plan.ratios[dataset] * plan.bucket_weights[dataset][bucket]
                means.append(min(5.0, max(1.0, 3.5 + math.log(6 * share))))
                slices.append(profile_of(objective, bucket, means[-1]))
            scores[objective] = {"selection": score(sum(means) / 3)}
        return scores, FailureProfile(round=0, slices=slices)

    def make(explored=0):
        seen = observe()
        rounds = list(seen.history)
        for number, (share, weights) in enumerate(TRIED, start=1):
            buckets = dict(zip("xyz", weights, strict=True))
            plan = ActionPlan(
                rationale="Tried.",
                ratios={"a": share, "b": 1 - share},
                bucket_weights={"a": buckets, "b": buckets},
                explores=number <= explored,
            )
            scores, profile = measured(plan)
            done = trial(plan, scores, profile)
            spec = done.spec.model_copy(update={"tokens": 400})
            forecast = [Forecast(objective="safety", expected=3.0, actual=0.0)]
            done = done.model_copy(update={"spec": spec})
            rounds.append(
                Round(round=number, trials=[done], accepted=True, planner="llm", forecast=forecast)
            )
        scores, profile = measured(seen.last_plan)
        repeat = trial(seen.last_plan, scores, profile)
        calibration = seen.calibration.model_copy(update={"trials": [repeat]})
        return observe(history=rounds, round=4, calibration=calibration, profile=profile)

    return make


def score(mean):
    return Score(mean=mean, low=mean - 0.2, high=mean + 0.2, n_scored=40)


def profile_of(objective, bucket, mean):
    return SliceProfile(objective=objective, slice=bucket, score=score(mean), reliability="high")


def test_a_plan_that_is_clearly_worse_runs_marked_until_the_share_is_used(known, small_pool):
    plan = clearly_worse(known(), small_pool)
    for explored, allowed in ((0, True), (1, True), (2, False)):
        seen = known(explored)
        box = toolbox(seen, small_pool)
        with ScriptedServer(script=submits(plan)) as server:
            if allowed:
                [submitted] = planner(server).propose(seen, box)
                assert submitted.explores
            else:
                with pytest.raises(BoundaryError, match="explore: 3 where 2 is allowed"):
                    planner(server).propose(seen, box)


def test_later_prompts_say_what_was_expected_and_who_was_right(known, small_pool):
    seen = known()
    scored = track_record(seen)
    assert [one.round for one in scored] == [1, 2, 3]
    assert all(one.nearer == "surrogate" for one in scored)
    before = known_before(2, seen)
    assert [past.round for past in before.history] == [0, 1]
    heard = []

    def listens(request):
        heard.append(request["messages"][1]["content"])
        return takes_the_first_suggestion(request)

    box = toolbox(seen, small_pool)
    with ScriptedServer(script=listens) as server:
        planner(server).propose(seen, box)
    assert '"nearer":"surrogate"' in heard[0]
    assert '"expected":{"safety":3.0}' in heard[0]
    assert "<data-" in heard[0]
    assert "who_was_right" in [line.get("tool") for line in box.trace()]


def test_suggestions_stay_inside_the_bounds_that_were_asked_for(observe, small_pool):
    seen = observe()
    box = toolbox(seen, small_pool)
    found = box.suggest(2, [{"dataset": "a", "at_least": 0.3, "at_most": 0.4}])
    assert found
    for one in found:
        assert 0.3 - 1e-5 <= one["ratios"]["a"] <= 0.4 + 1e-5
        assert one["selection"]["safety"]["low"] < one["selection"]["safety"]["high"]
    with pytest.raises(UsageError, match="no data set 'c'"):
        box.suggest(1, [{"dataset": "c", "at_least": 0, "at_most": 1}])
