"""What every planner promises: as many legal plans as asked for, from the observation alone, with a trace."""

import json

import pytest

from agent.constraints import check_plan
from agent.planners.base import LlmPlannerConfig
from agent.planners.baselines import NeedPlanner, RandomPlanner, StaticPlanner
from agent.planners.ideal import IdealPlanner
from agent.planners.kinds import settings_by_kind
from agent.planners.llm import LlmPlanner
from agent.planners.surrogate import SurrogatePlanner
from agent.weights import proportions
from eval.chat.client import ChatConfig, ChatModel
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from mosaic.lab.server import ScriptedServer
from tests.agent.conftest import MEANS, profile, score
from tools.planning.toolbox import Toolbox


def llm(server, **changes):
    chat = ChatConfig(base_url=server.url, timeout_seconds=5)
    config = LlmPlannerConfig(chat=chat, **changes)
    return LlmPlanner(config, ChatModel(chat, sleep=lambda seconds: None))


# name -> makes one; the scripted server answers planners that ask a model
PLANNERS = {
    "static": lambda server: StaticPlanner(),
    "random": lambda server: RandomPlanner(),
    "random, wide": lambda server: RandomPlanner(3.0),
    "need": lambda server: NeedPlanner(),
    "ideal": lambda server: IdealPlanner(),
    "ideal, buckets": lambda server: IdealPlanner(0.3, "buckets"),
    "profile": lambda server: SurrogatePlanner(),
    "llm": llm,
    "llm, no tools": lambda server: llm(server, tool_calls=False),
}
WEAK = ("safety", "x")
BASE_SCORES = {o: {"selection": score(sum(m) / 3)} for o, m in MEANS.items()}
KINDS = set(settings_by_kind())


@pytest.fixture(scope="module")
def server():
    with ScriptedServer() as started:
        yield started


@pytest.fixture(params=PLANNERS)
def new_planner(request, server):
    """Makes planners of one kind."""
    return lambda: PLANNERS[request.param](server)


# Situations: each makes an observation


def usual(observe, trial):
    return observe()


def tight_limits(observe, trial):
    limits = Limits(min_quality=2, max_ratio_step=0.1, max_bucket_step=0.15)
    return observe(limits=limits, seed=3)


def no_limits_on_steps(observe, trial):
    return observe(limits=Limits(min_quality=2, max_ratio_step=None, max_bucket_step=None))


def no_history(observe, trial):
    """No plan was ever run: only the base is measured."""
    seen = observe(calibration=None)
    base = seen.history[0].model_copy(update={"trials": [trial(None, BASE_SCORES, profile())]})
    return seen.model_copy(update={"history": [base]})


def below_a_floor(observe, trial):
    objectives = [
        ObjectiveSpec(name="safety", datasets=["a"], floor=4.0),
        ObjectiveSpec(name="over_refusal", datasets=["b"], target=4.5),
    ]
    return observe(objectives=objectives, below_floor=["safety"])


def a_slice_not_measured_well(observe, trial):
    """The bucket of one slice may not get more weight than it had."""
    slices = [
        s.model_copy(update={"reliability": "low"} if (s.objective, s.slice) == WEAK else {})
        for s in profile().slices
    ]
    return observe(profile=FailureProfile(round=0, slices=slices))


def nothing_scored(observe, trial):
    nothing = Score(mean=None, low=None, high=None, n_scored=0)
    changes = {"score": nothing, "failure_rate": None}
    slices = [s.model_copy(update=changes) for s in profile().slices]
    return observe(profile=FailureProfile(round=0, slices=slices), calibration=None)


def one_data_set(observe, trial):
    """One data set that serves both objectives."""
    seen = observe()
    ratios, buckets = proportions({"a": seen.stock["a"]})
    plan = ActionPlan(rationale="static", ratios=ratios, bucket_weights=buckets)
    objectives = [ObjectiveSpec(name=name, datasets=["a"], target=4.5) for name in seen.names]
    return observe(
        stock={"a": seen.stock["a"]},
        proportions=ratios,
        bucket_proportions=buckets,
        last_plan=plan,
        objectives=objectives,
        calibration=None,
    )


def a_constraint(observe, trial):
    """A third objective has a floor, is below it, and no data set can raise it."""
    seen = observe()
    means = {**MEANS, "retention": (3.0, 3.0, 3.0)}
    scores = {o: {"selection": score(sum(m) / 3)} for o, m in means.items()}
    base = seen.history[0].model_copy(update={"trials": [trial(None, scores, profile(means))]})
    repeat = trial(seen.last_plan, scores, profile(means))
    calibration = {"trials": [repeat], "noise": dict.fromkeys(means, 0.1)}
    return observe(
        objectives=[*seen.objectives, ObjectiveSpec(name="retention", datasets=[], floor=4.0)],
        profile=profile(means),
        history=[base],
        calibration=seen.calibration.model_copy(update=calibration),
        below_floor=["retention"],
    )


def general_data(observe, trial):
    """No objective names the data set b."""
    scores = {"safety": {"selection": score(3.0)}}
    seen = observe()
    measured = profile({"safety": MEANS["safety"]})
    base = seen.history[0].model_copy(update={"trials": [trial(None, scores, measured)]})
    return observe(
        objectives=[ObjectiveSpec(name="safety", datasets=["a"], target=4.5)],
        profile=measured,
        history=[base],
        calibration=None,
    )


SITUATIONS = [
    usual,
    tight_limits,
    no_limits_on_steps,
    no_history,
    below_a_floor,
    a_slice_not_measured_well,
    nothing_scored,
    one_data_set,
    a_constraint,
    general_data,
]


@pytest.fixture(params=SITUATIONS, ids=lambda situation: situation.__name__)
def seen(request, observe, trial):
    return request.param(observe, trial)


def toolbox(seen, pool):
    example = {"label": {"depth": 1}, "score": 1.0, "failed": True, "answer": "an answer"}
    return Toolbox(
        seen,
        lambda *wanted: [example],
        lambda plan, siblings=(): check_plan(plan, seen, pool, siblings),
    )


# In every situation


@pytest.fixture(scope="module")
def proposals():
    """(planner, situation) -> what came of it, for tests that only look."""
    return {}


@pytest.fixture
def proposed(request, new_planner, seen, small_pool, proposals):
    """(observation before, after, plans, toolbox) of one planner in one situation."""
    key = tuple(str(request.node.callspec.params[name]) for name in ("new_planner", "seen"))
    if key not in proposals:
        before, box = json.dumps(seen.json_data(), sort_keys=True), toolbox(seen, small_pool)
        plans = new_planner().propose(seen, box)
        proposals[key] = before, seen, plans, box
    return proposals[key]


def test_one_plan_is_proposed_and_the_toolbox_allows_it(proposed, small_pool):
    _, seen, [plan], _ = proposed
    assert toolbox(seen, small_pool).violations(plan) == []


def test_the_same_observation_gives_the_same_plan(new_planner, proposed, observe, small_pool):
    _, seen, plans, _ = proposed
    planner = new_planner()
    # What it planned before changes nothing.
    elsewhere = observe(seed=9, round=2)
    planner.propose(elsewhere, toolbox(elsewhere, small_pool))
    assert planner.propose(seen, toolbox(seen, small_pool)) == plans


def test_the_observation_is_left_as_it_was(proposed):
    before, seen, [plan], _ = proposed
    assert json.dumps(seen.json_data(), sort_keys=True) == before
    # Nor does the plan hold a part of it that somebody could change.
    assert plan.ratios is not seen.proportions
    assert plan.ratios is not seen.last_plan.ratios
    assert plan.bucket_weights is not seen.bucket_proportions


def test_a_plan_says_why_and_what_it_expects(proposed):
    _, seen, [plan], _ = proposed
    assert plan.rationale.strip()
    assert set(plan.expected) <= set(seen.names)
    assert ActionPlan.model_validate_json(plan.model_dump_json()) == plan


def test_the_trace_tells_what_was_asked_or_concluded(proposed):
    box = proposed[-1]
    assert box.trace()
    for line in box.trace():
        if "conclusion" in line:
            assert line["conclusion"].strip()
        else:
            assert line["tool"].strip()
            assert {"arguments", "result"} <= set(line)


# Once for each planner


def test_as_many_plans_as_asked_for_or_a_word_why_not(new_planner, observe, small_pool):
    seen = observe()
    plans, refused = [], ""
    try:
        plans = new_planner().propose(seen, toolbox(seen, small_pool), n=2)
    except UsageError as error:
        refused = str(error)
    assert len(plans) == 2 or "not 2" in refused
    for plan in plans:
        assert toolbox(seen, small_pool).violations(plan) == []


def test_a_planner_names_its_kind_as_a_config_does(new_planner):
    assert new_planner().kind in KINDS


def test_every_planner_of_a_config_is_tried_here(server):
    assert {make(server).kind for make in PLANNERS.values()} == KINDS
