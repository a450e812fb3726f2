"""How a run ends: when planning stops, which round is the result, and that the audit suites are opened once."""

from types import SimpleNamespace

import pytest

from agent.nodes import all as nodes
from agent.observe import stop_reason
from agent.state import CalibrationConfig, RunState, Settings, StopConfig, fold, mark_dominated
from mosaic.core.journal import Journal
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import Store
from mosaic.core.types.evaluation import FailureProfile, Score
from mosaic.core.types.plans import ActionPlan, Limits, ObjectiveSpec
from mosaic.core.types.runs import Calibration, Round

NAMES = ["safety", "help"]
OBJECTIVES = [ObjectiveSpec(name=n, datasets=["d"], target=4.0) for n in NAMES]
PLAN = ActionPlan(rationale="-", ratios={"d": 1.0})


def score(mean):
    return Score(mean=mean, low=mean - 0.1, high=mean + 0.1, n_scored=9)


def executed(number, point):
    scores = {n: {"selection": score(x)} for n, x in zip(NAMES, point, strict=True)}
    profile = FailureProfile(round=number, slices=[])
    return Round(
        round=number,
        plan=PLAN,
        scores=scores,
        profile=profile,
        accepted=True,
        adapter=f"adapter-{number}",
    )


def ended(points, **stop):
    """Why a run with these planned rounds would stop, in five rounds of ten tokens."""
    base = executed(0, (2.0, 2.0)).model_copy(update={"plan": None, "adapter": None})
    rounds = [base, *(executed(i, p) for i, p in enumerate(points, 1))]
    noise = {"safety": 0.3, "help": 0.05}
    state = RunState(
        rounds, Calibration(scores=[], noise=noise, mixture=PLAN), None, objectives=tuple(NAMES)
    )
    settings = Settings(
        rounds=5, seed=1, objectives=OBJECTIVES, limits=Limits(), tokens_per_round=10, max_repairs=1,
        calibration=CalibrationConfig(), stop=StopConfig(**stop),
    )  # fmt: skip
    return stop_reason(state, settings, 15)


def test_a_run_stops_at_its_targets_where_the_round_that_would_be_chosen_reaches_them():
    assert ended([(4.5, 3.9)], at_targets=True) is None
    assert ended([(4.5, 3.9), (4.6, 4.3)], at_targets=True) == "targets reached in round 2"
    assert ended([(4.6, 4.3)]) is None
    # Round 2 lies above both targets by less than safety's noise; round 1, which would be chosen, misses one narrowly.
    assert ended([(4.9, 3.99), (4.01, 4.01)], at_targets=True) is None


def test_an_objective_without_a_target_does_not_keep_the_others_from_theirs(monkeypatch):
    some = [OBJECTIVES[0], OBJECTIVES[1].model_copy(update={"target": None})]
    monkeypatch.setitem(globals(), "OBJECTIVES", some)
    assert ended([(4.5, 2.0)], at_targets=True) == "targets reached in round 1"
    monkeypatch.setitem(
        globals(), "OBJECTIVES", [o.model_copy(update={"target": None}) for o in some]
    )
    assert ended([(4.5, 2.0)], at_targets=True) is None


def test_a_floor_missed_is_not_yet_dominance():
    refused = [executed(1, (3.0, 2.0)), executed(2, (4.0, 4.0))]
    low = [refused[0].model_copy(update={"accepted": False}), refused[1]]
    noise = dict.fromkeys(NAMES, 0.1)
    assert [r.dominated for r in mark_dominated(refused, NAMES, noise)] == [True, False]
    assert [r.dominated for r in mark_dominated(low[:1], NAMES, noise)] == [False]
    assert [r.dominated for r in mark_dominated(low, NAMES, noise)] == [True, False]
    nothing = Score(mean=None, low=None, high=None, n_scored=0)
    scores = {n: {"selection": nothing} for n in NAMES}
    failed = low[0].model_copy(update={"scores": scores, "failure": "killed", "adapter": None})
    assert [r.dominated for r in mark_dominated([failed, low[1]], NAMES, noise)] == [True, False]


def test_a_run_stops_when_rounds_or_patience_are_used_up():
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
    tmp_path, noise, chosen
):
    journal = Journal.create(tmp_path / "run", "run", {}, 1000)
    journal.acquire()
    steps = Steps(journal, Store(tmp_path / "run"))
    calibration = Calibration(scores=[], noise=noise, mixture=PLAN)
    steps.run(
        "calibration", {}, lambda: Outcome({"calibration": calibration.json_data(), "files": {}})
    )

    def record(number, point):
        result = {"round": executed(number, point).json_data(), "files": {}}
        steps.run("record", {"round": number}, lambda: Outcome(result))

    opened = []

    def evaluate(adapter, roles):
        opened.append(adapter)
        return SimpleNamespace(scores=lambda: {n: {"audit": score(4.2)} for n in NAMES})

    services = SimpleNamespace(
        steps=steps, settings=SimpleNamespace(objectives=OBJECTIVES, names=NAMES), notify=lambda text: None,
        state=lambda: fold(journal, NAMES), evaluator=SimpleNamespace(evaluate=evaluate),
    )  # fmt: skip
    record(1, (4.05, 4.95))
    record(2, (4.6, 4.2))
    nodes.audit(services, {"stop": "done"})
    assert services.state().audit.chosen == chosen
    assert opened == [None, f"adapter-{chosen}"]
    # Resumed as it is, a run keeps its result; extended, it is audited again.
    nodes.audit(services, {"stop": "done"})
    assert len(opened) == 2
    record(3, (5.0, 5.0))
    assert services.state().audit is None
    nodes.audit(services, {"stop": "done"})
    assert services.state().audit.chosen == 3
    journal.close()
