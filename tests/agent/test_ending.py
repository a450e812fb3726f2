"""How a run ends: when planning stops, which round is the result, and that the audit suites are opened once."""

from types import SimpleNamespace

import pytest

from agent.nodes.closing import _static, audit
from agent.observe import stop_reason
from agent.retention import spare_adapters
from agent.settings import CalibrationConfig, Settings, StopConfig
from agent.state import RunState, fold, mark_dominated
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import Store
from mosaic.core.types.evaluation import FailureProfile, Score, Scored
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from mosaic.core.types.records import (
    Audit,
    Calibrate,
    Calibrated,
    CloseRound,
    Retain,
    Retained,
    RoundClosed,
)
from mosaic.core.types.runs import Adapter, Calibration, Round, SftRecipe
from tools.effects.evaluate import AuditAnswers

NAMES = ["safety", "help"]
OBJECTIVES = [ObjectiveSpec(name=n, datasets=["d"], target=4.0) for n in NAMES]
PLAN = ActionPlan(rationale="-", ratios={"d": 1.0})

# The adapter of the first calibration trial.
STATIC = "adapter-static"


def score(mean):
    return Score(mean=mean, low=mean - 0.1, high=mean + 0.1, n_scored=40)


def adapter(name):
    return Adapter(
        digest=name, base="base", tokens=10, supervised=5, steps=1, loss=1.0, seconds=0.0
    )


@pytest.fixture
def executed(trial):
    """Makes an accepted round with these selection means; round 0 is the base."""

    def make(number, point):
        scores = {n: {"selection": score(x)} for n, x in zip(NAMES, point, strict=True)}
        profile = FailureProfile(round=number, slices=[])
        made = trial(None, scores, profile)
        if number:
            made = trial(PLAN, scores, profile, adapter=adapter(f"adapter-{number}"))
        return Round(round=number, trials=[made], counts=made.id, accepted=True)

    return make


@pytest.fixture
def calibrated(trial):
    """Makes a calibration with this noise."""

    def make(noise):
        profile = FailureProfile(round=0, slices=[])
        static = trial(PLAN, {}, profile, adapter=adapter(STATIC))
        return Calibration(trials=[static], noise=noise)

    return make


@pytest.fixture
def ended(executed, calibrated):
    """Says why a run with these planned rounds would stop, in five rounds of ten tokens."""

    def ask(points, objectives=OBJECTIVES, **stop):
        rounds = [executed(number, point) for number, point in enumerate([(2.0, 2.0), *points])]
        calibration = calibrated({"safety": 0.3, "help": 0.05})
        state = RunState(tuple(NAMES), tuple(rounds), calibration)
        settings = Settings(
            rounds=5, seed=1, objectives=objectives, limits=Limits(), tokens_per_round=10,
            recipe=SftRecipe(), max_repairs=1, calibration=CalibrationConfig(),
            stop=StopConfig(**stop),
        )  # fmt: skip
        return stop_reason(state, settings, 15)

    return ask


def test_a_run_stops_at_its_targets_where_the_round_that_would_be_chosen_reaches_them(ended):
    assert ended([(4.5, 3.9)], at_targets=True) is None
    assert ended([(4.5, 3.9), (4.6, 4.3)], at_targets=True) == "targets reached in round 2"
    assert ended([(4.6, 4.3)]) is None
    # Round 2 lies above both targets by less than safety's noise; round 1, which would be chosen, misses one narrowly.
    assert ended([(4.9, 3.99), (4.01, 4.01)], at_targets=True) is None


def test_an_objective_without_a_target_does_not_keep_the_others_from_theirs(ended):
    some = [OBJECTIVES[0], OBJECTIVES[1].model_copy(update={"target": None})]
    assert ended([(4.5, 2.0)], some, at_targets=True) == "targets reached in round 1"
    none = [o.model_copy(update={"target": None}) for o in some]
    assert ended([(4.5, 2.0)], none, at_targets=True) is None


def test_the_target_of_a_constraint_must_be_reached_too(ended):
    constraint = OBJECTIVES[1].model_copy(update={"datasets": [], "target": 4.0})
    both = [OBJECTIVES[0], constraint]
    assert ended([(4.9, 3.9)], both, at_targets=True) is None
    assert ended([(4.9, 4.1)], both, at_targets=True) == "targets reached in round 1"
    alone = [OBJECTIVES[0].model_copy(update={"target": None}), constraint]
    assert ended([(4.9, 3.9)], alone, at_targets=True) is None
    assert ended([(4.9, 4.1)], alone, at_targets=True) == "targets reached in round 1"


def test_a_floor_missed_is_not_yet_dominance(executed, trial):
    refused = [executed(1, (3.0, 2.0)), executed(2, (4.0, 4.0))]
    low = [refused[0].model_copy(update={"accepted": False}), refused[1]]
    noise = dict.fromkeys(NAMES, 0.1)
    assert [r.dominated for r in mark_dominated(refused, NAMES, noise)] == [True, False]
    assert [r.dominated for r in mark_dominated(low[:1], NAMES, noise)] == [False]
    assert [r.dominated for r in mark_dominated(low, NAMES, noise)] == [True, False]
    nothing = Score(mean=None, low=None, high=None, n_scored=0)
    scores = {n: {"selection": nothing} for n in NAMES}
    lost = trial(PLAN, scores, FailureProfile(round=1, slices=[]), failure="killed")
    failed = Round(round=1, trials=[lost], counts=None)
    assert [r.dominated for r in mark_dominated([failed, low[1]], NAMES, noise)] == [True, False]


def test_a_run_stops_when_rounds_or_patience_are_used_up(ended):
    assert ended([(3.0, 3.0)] * 5) == "all 5 planned rounds ran"
    assert (
        ended([(3.5, 3.5), (3.2, 3.2), (3.6, 3.2)], patience=2)
        == "gain within the noise for 2 rounds"
    )
    assert ended([(3.5, 3.5), (3.2, 3.2), (3.2, 3.6)], patience=2) is None


@pytest.mark.parametrize(
    ("noise", "chosen"), [({"safety": 0.3, "help": 0.02}, 2), ({"safety": 0.01, "help": 0.02}, 1)]
)
def test_the_audit_is_of_the_round_furthest_above_its_targets_in_noise_and_happens_once(
    new_journal, tmp_path, executed, calibrated, noise, chosen
):
    journal = new_journal(tmp_path / "run")
    steps = Steps(journal, Store(journal.folder))
    calibration = calibrated(noise)
    inputs = Calibrate(trials=[calibration.trials[0].id], mixture=PLAN)
    steps.run(inputs, lambda: Outcome(Calibrated(calibration=calibration)))

    def record(number, point):
        closed = RoundClosed(round=executed(number, point))
        steps.run(CloseRound(round=number, content="c"), lambda: Outcome(closed))

    opened = []

    def answers(steps, adapter, wish):
        opened.append(adapter)
        value = 2 if adapter == STATIC else 4
        items = [Scored(id=str(i), status="ok", score=value) for i in range(3)]
        return AuditAnswers(dict.fromkeys(NAMES, items), {})

    def start():
        """One start of the controller, at its last node; the audit that stands after it."""
        settings = SimpleNamespace(
            objectives=OBJECTIVES, names=NAMES, traded=OBJECTIVES, keep_judge_requests=True
        )
        context = SimpleNamespace(
            steps=steps, settings=settings,
            notify=lambda text: None, state=fold(journal, NAMES),
            evaluator=SimpleNamespace(audit=answers, independent={}),
        )  # fmt: skip
        audit(context, {"stop": "done"})
        assert context.state == fold(journal, NAMES)
        return context.state.audit

    record(0, (2.0, 2.0))
    record(1, (4.05, 4.95))
    record(2, (4.6, 4.2))
    found = start()
    assert found.chosen == chosen
    assert found.trial == executed(chosen, (3.0, 3.0)).trial.id
    assert opened == [None, f"adapter-{chosen}", STATIC]
    assert found.static["safety"].mean == 2
    gain = found.gain["safety"]
    assert gain.mean == 2
    assert gain.low < 2 < gain.high
    assert found.against_base["safety"].mean == 0
    # Resumed as it is, a run keeps its result; extended, it is audited again.
    assert start() == found
    assert len(opened) == 3
    record(3, (5.0, 5.0))
    assert fold(journal, NAMES).audit is None
    assert start().chosen == 3
    assert [step.inputs.rounds for step in journal.steps(Audit)] == [3, 4]


def test_the_adapter_of_the_first_calibration_trial_outlives_its_round(
    new_journal, tmp_path, executed, calibrated
):
    journal = new_journal(tmp_path / "run")
    calibration = calibrated({"safety": 0.3, "help": 0.02})
    state = RunState(tuple(NAMES), (executed(0, (2.0, 2.0)),), calibration)
    Steps(journal, Store(journal.folder))
    assert STATIC not in spare_adapters(journal, state, 5)


def test_a_static_mixture_whose_adapter_was_deleted_is_not_measured_and_that_is_said(
    new_journal, tmp_path, executed, calibrated
):
    journal = new_journal(tmp_path / "run")
    steps = Steps(journal, Store(journal.folder))
    inputs = Retain(run="run", round=1, drop=[STATIC])
    steps.run(inputs, lambda: Outcome(Retained(dropped=[STATIC])))
    said = []
    calibration = calibrated({"safety": 0.3, "help": 0.02})
    state = RunState(tuple(NAMES), (executed(0, (2.0, 2.0)),), calibration)
    context = SimpleNamespace(steps=steps, state=state, notify=said.append)
    assert _static(context, 1) == AuditAnswers({}, {})
    assert "the adapter of the static mixture was deleted" in said[0]
