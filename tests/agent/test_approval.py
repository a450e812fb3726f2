"""No number of a model's own opens the gate: a rule on regressions reads our own prediction."""

import pytest

from agent.approval import HumanApprover, PolicyApprover, Rule, check_decision, request_of
from benchmarks.standins import StandIn
from benchmarks.waiting import until_asked, waiting_run
from mosaic.app.decisions import approve, pending
from mosaic.app.views.report_data import load
from mosaic.core.journal import Journal
from mosaic.core.types.data import Focus

POLICY = PolicyApprover([Rule(max_regression=0.2, then="auto")])
OBJECTIVES = ("safety", "over_refusal")
CLAIMS = dict.fromkeys(OBJECTIVES, 0.5)


@pytest.fixture
def seen(observe):
    """An observation after a calibration whose repeats hardly differ."""
    calibration = observe().calibration
    quiet = calibration.model_copy(update={"noise": dict.fromkeys(OBJECTIVES, 0.02)})

    def make(**changes):
        return observe(**{"calibration": quiet, **changes})

    return make


def ask(observation, *plans):
    return request_of(
        plans,
        observation,
        observation_digest="o",
        run="run",
        attempt=0,
        planner="llm",
        experiment="e",
    )


def decided(observation, *plans, policy=POLICY):
    """What the policy says of the plans: a kind of decision, or None where a person is asked."""
    decision = policy.decide(ask(observation, *plans), observation)
    return decision.kind if decision else None


def near(observation, **changes):
    """A plan next to the last one."""
    ratios = dict(observation.last_plan.ratios)
    ratios["a"] += 0.01
    ratios["b"] -= 0.01
    return observation.last_plan.model_copy(update={"ratios": ratios, **changes})


def starving(observation, **changes):
    """A plan without a token for over-refusal."""
    changes = {"ratios": {"a": 1.0, "b": 0.0}, **changes}
    return observation.last_plan.model_copy(update=changes)


def test_a_plan_that_claims_a_gain_it_cannot_have_waits_for_a_person(seen):
    plan = starving(seen(), expected=CLAIMS)
    assert decided(seen(), plan) is None
    (shown,) = ask(seen(), plan).plans
    assert shown.expected == CLAIMS
    predicted = {p.objective: p for p in shown.predicted}
    assert predicted["over_refusal"].change < -0.2
    assert predicted["over_refusal"].low < predicted["over_refusal"].change
    strict = PolicyApprover([*POLICY.rules, Rule(then="reject")])
    assert decided(seen(), plan, policy=strict) == "reject"


def test_a_plan_near_the_last_one_is_approved_whatever_it_says_of_itself(seen):
    assert decided(seen(), near(seen())) == "approve"
    assert decided(seen(), near(seen(), expected=CLAIMS)) == "approve"
    modest = dict.fromkeys(OBJECTIVES, -3.0)
    assert decided(seen(), near(seen(), expected=modest)) == "approve"


def test_the_lower_bound_counts_and_not_the_predicted_change(seen):
    """The last plan again: no change is predicted, and a noise of 0.15 leaves 0.25 below it."""
    calm, noisy = seen(), seen()
    noise = dict.fromkeys(OBJECTIVES, 0.15)
    calibration = calm.calibration.model_copy(update={"noise": noise})
    noisy = seen(calibration=calibration)
    again = calm.last_plan
    (shown,) = ask(noisy, again).plans
    assert [(p.change, p.low) for p in shown.predicted] == [(0.0, -0.2467)] * 2
    assert decided(calm, again) == "approve"
    assert decided(noisy, again) is None
    wide = PolicyApprover([Rule(max_regression=0.25, then="auto")])
    assert decided(noisy, again, policy=wide) == "approve"


def test_a_plan_that_cannot_be_predicted_waits_for_a_person(seen):
    uncalibrated = seen(calibration=None)
    assert ask(uncalibrated, near(seen())).plans[0].predicted == []
    assert decided(uncalibrated, near(seen(), expected=CLAIMS)) is None

    def unmeasured(trial):
        profile = trial.profile.model_copy(update={"slices": []})
        return trial.model_copy(update={"profile": profile})

    calibration, (base,) = seen().calibration, seen().history
    trials = [unmeasured(trial) for trial in calibration.trials]
    bare = seen(
        calibration=calibration.model_copy(update={"trials": trials}),
        history=[base.model_copy(update={"trials": [unmeasured(base.trial)]})],
    )
    assert decided(bare, near(seen(), expected=CLAIMS)) is None


def test_an_objective_that_no_slice_measures_keeps_the_gate_shut_for_all(seen):
    def only_safety(trial):
        slices = trial.profile.of("safety")
        profile = trial.profile.model_copy(update={"slices": slices})
        return trial.model_copy(update={"profile": profile})

    calibration, (base,) = seen().calibration, seen().history
    trials = [only_safety(trial) for trial in calibration.trials]
    partial = seen(
        calibration=calibration.model_copy(update={"trials": trials}),
        history=[base.model_copy(update={"trials": [only_safety(base.trial)]})],
    )
    assert [p.objective for p in ask(partial, near(seen())).plans[0].predicted] == ["safety"]
    assert decided(partial, near(seen())) is None


def test_a_plan_with_another_focus_is_not_one_that_the_prediction_covers(seen):
    focus = {"a": Focus(include={"topic": ["t0"]}, share=1.0)}
    assert decided(seen(), near(seen(), focus=focus)) is None
    last = seen().last_plan.model_copy(update={"focus": focus})
    assert decided(seen(last_plan=last), near(seen(), focus=focus)) == "approve"


def test_one_plan_of_a_request_that_does_not_match_holds_all(seen):
    assert decided(seen(), near(seen()), seen().last_plan) == "approve"
    assert decided(seen(), near(seen()), starving(seen(), expected=CLAIMS)) is None


def test_a_decision_is_held_against_the_question_it_answers(seen):
    request = ask(seen(), near(seen()))
    decision = POLICY.decide(request, seen())
    check_decision(decision, request)
    for changes in ({"request": "other"}, {"run": "other"}, {"round": 2}, {"plans": ["other"]}):
        (name,) = changes
        with pytest.raises(ValueError, match=f"its {name} is"):
            check_decision(decision.model_copy(update=changes), request)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"run": "other"}, False),
        ({"attempt": 1}, False),
        ({"observation_digest": "p"}, False),
        ({"experiment": "f"}, False),
    ],
)
def test_the_id_of_a_question_covers_what_it_is_about(seen, changes, same):
    named = {"observation_digest": "o", "run": "run", "attempt": 0, "planner": "llm"}
    named |= {"experiment": "e", **changes}
    other = request_of([near(seen())], seen(), **named)
    assert (other.request == ask(seen(), near(seen())).request) is same
    assert ask(seen(), seen().last_plan).request != other.request
    assert ask(seen(round=2), near(seen())).request != other.request


# -- an edited plan --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standin():
    made = StandIn.make("rounds=2", "planner.kind=profile", per_slice=4)
    made.approver = HumanApprover()
    return made


@pytest.mark.parametrize("own", [None, {"safety": 0.3}])
def test_an_edited_plan_keeps_no_forecast_but_the_editors_own(standin, tmp_path, own):
    folder, witness = waiting_run(standin, tmp_path)
    request = pending(folder)
    (shown,) = request.plans
    assert shown.plan.expected  # the proposer's forecast
    changes = {"rationale": "edited"} if own is None else {"rationale": "edited", "expected": own}
    edited = shown.plan.model_copy(update=changes)
    decision = approve(folder, request.request, edited=edited, by="ann")
    expected = own or {}
    assert decision.edited == [edited.model_copy(update={"expected": expected})]

    until_asked(standin, folder, witness)
    journal, state = load(folder)
    journal.close()
    executed = state.rounds[1]
    assert executed.plan == decision.edited[0]
    assert {f.objective: f.expected for f in executed.forecast} == expected


def test_an_approved_plan_keeps_its_forecast(standin, tmp_path):
    folder, witness = waiting_run(standin, tmp_path)
    request = pending(folder)
    approve(folder, request.request[:12], by="ann")
    until_asked(standin, folder, witness)
    journal = Journal.open(folder)
    (decided_event,) = journal.events(kind="decided")
    journal.close()
    assert decided_event.record.decision.plans == [request.plans[0].plan_digest]
    journal, state = load(folder)
    journal.close()
    forecast = {f.objective: f.expected for f in state.rounds[1].forecast}
    assert forecast == request.plans[0].expected
