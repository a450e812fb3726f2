"""Several candidates a round: plans that differ, one question, trials side by side, one that counts."""

from contextlib import closing
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from agent.approval import HumanApprover
from agent.constraints import differ
from agent.graph import run as run_graph
from agent.pareto import merit
from agent.state import fold, mark_dominated
from benchmarks import page
from benchmarks.standins import StandIn, StandInExecutor, Witness
from benchmarks.waiting import trainings, until_asked, waiting_run
from mosaic.app.cli.main import app
from mosaic.app.decisions import approve, pending, reject
from mosaic.app.python_api import score_rows
from mosaic.app.views.html import write_html
from mosaic.app.views.links import link_rounds
from mosaic.app.views.report_data import load, report_data
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.app.views.text import report_text
from mosaic.app.web.form import edited_plans, ticked
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.base import canonical_json
from mosaic.core.types.records import Train
from mosaic.core.types.runs import Observation, each_trial
from tests.app.test_page import HEADERS, form_fields

K = 3


@pytest.fixture(scope="module")
def several():
    return StandIn.make(f"candidates={K}", "rounds=2", "planner.kind=profile", per_slice=4)


@pytest.fixture(scope="module")
def folder(several, tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    several.create(root / "run")
    several.run(root / "run", Witness(root / "witness"))
    return root / "run"


@pytest.fixture
def asked(several, tmp_path):
    several.approver = HumanApprover()
    try:
        yield waiting_run(several, tmp_path)
    finally:
        several.approver = None


def test_a_round_trains_and_measures_plans_that_differ(folder):
    journal, state = load(folder)
    for round_ in state.rounds[1:]:
        assert len(round_.trials) == K
        step = journal.steps(Train, round_.round)
        assert sorted(one.place.trial for one in step) == sorted(t.id for t in round_.trials)
        seen = Observation.model_validate(Store(folder).get_json(_observed(journal, round_.round)))
        assert seen.candidates == K
        plans = [trial.plan for trial in round_.trials]
        for place, plan in enumerate(plans):
            assert all(differ(plan, other, seen) for other in plans[:place])
    _, held, spent = journal.ledger()
    paid = sum(one.trial.usage.cost for one in each_trial(state.rounds))
    assert held == 0
    assert spent == paid + sum(trial.usage.cost for trial in state.calibration.trials)
    journal.close()


def test_earlier_rounds_are_filed_as_they_stand_though_they_are_encoded_once(folder):
    journal, state = load(folder)
    names = sorted(state.noise)
    for number in (1, 2):
        filed = Store(folder).path(_observed(journal, number)).read_bytes()
        seen = Observation.model_validate_json(filed)
        assert canonical_json(seen.json_data()).encode() == filed
        stood = mark_dominated(state.rounds[:number], names, state.noise)
        assert [one.json_data() for one in seen.history] == [one.json_data() for one in stood]
    journal.close()


def _observed(journal, number):
    (event,) = journal.events(number, "observed")
    return event.record.observation


def test_the_trial_of_greatest_merit_counts_and_the_others_keep_their_verdicts(several, folder):
    journal, state = load(folder)
    journal.close()
    traded = several.config.settings().traded
    names = [objective.name for objective in traded]
    for round_ in state.rounds[1:]:
        ones = round_.by_trial
        assert [one.trial for one in ones] == round_.trials
        best = max(
            (one for one in ones if one.accepted),
            key=lambda one: merit(one.point(names), traded, state.noise),
        )
        assert round_.counts == best.trial.id
        assert set(round_.siblings) == {t.id for t in round_.trials} - {round_.counts}
        assert all(one.reason for one in ones)
        assert all(one.forecast for one in ones)
    assert {one.trial.id for one in state.archived} <= set(state.trials)
    assert state.archive == sorted({one.round for one in state.archived})


def test_the_report_names_every_trial(folder):
    report = report_data(folder)
    journal, state = load(folder)
    journal.close()
    for shown, round_ in zip(report.rounds[1:], state.rounds[1:], strict=True):
        told = {shown.trial: shown.accepted}
        told |= {one.trial: one.accepted for one in shown.siblings}
        assert told == {one.trial.id: one.accepted for one in round_.by_trial}


def test_one_question_holds_all_plans_and_some_may_be_dropped_and_edited(several, asked):
    folder, witness = asked
    request = pending(folder)
    assert len(request.plans) == K
    cost = several.config.settings().cost_per_round
    assert request.cost.tokens == K * cost
    before = trainings(witness)
    kept, edited, dropped = request.plans
    new = _moved(edited.plan)
    with pytest.raises(UsageError, match="say which one is edited"):
        approve(folder, request.request, edited=new)
    with pytest.raises(UsageError, match="plan 4: the question shows plans 1 to 3"):
        approve(folder, request.request, only=[4])
    with pytest.raises(UsageError, match="plan 2 is edited, but is not among"):
        approve(folder, request.request, edits={2: new}, only=[1])
    with pytest.raises(UsageError, match="plan 2, ratios: near_repeat"):
        approve(folder, request.request, edits={2: kept.plan}, only=[1, 2])
    made = approve(folder, request.request, edits={2: new}, only=[1, 2], by="ann")
    assert (made.kind, made.kept) == ("edit", [kept.plan_digest])
    assert set(made.dropped) == {edited.plan_digest, dropped.plan_digest}
    until_asked(several, folder, witness)
    journal, state = load(folder)
    journal.close()
    assert trainings(witness) == before + 2
    ran = [trial.plan for trial in state.rounds[1].trials]
    assert ran == [kept.plan, new.model_copy(update={"expected": {}})]


def _moved(plan):
    first, second, *_ = plan.ratios
    ratios = {**plan.ratios}
    ratios[first] -= 0.02
    ratios[second] += 0.02
    return plan.model_copy(update={"ratios": ratios})


def test_all_are_refused_together_and_asked_for_anew(several, asked):
    folder, witness = asked
    first = pending(folder)
    before = trainings(witness)
    reject(folder, first.request, reason="other ones", by="ann")
    until_asked(several, folder, witness)
    second = pending(folder)
    assert trainings(witness) == before
    shown = {one.plan_digest for one in first.plans}
    assert len(second.plans) == K
    assert not shown & {one.plan_digest for one in second.plans}


def test_the_command_line_drops_by_number(several, asked):
    folder, _ = asked
    request = pending(folder)
    answer = CliRunner().invoke(
        app, ["approve", str(folder), "--request", request.request[:12], "--only", "1", "--json"]
    )
    assert answer.exit_code == 0, answer.output
    text = answer.stdout
    assert request.plans[0].plan_digest in text.split('"kept"')[1]


def test_a_plan_that_is_edited_twice_is_refused(asked, tmp_path):
    folder, _ = asked
    request = pending(folder)
    file = tmp_path / "plan.json"
    file.write_text(canonical_json(request.plans[0].plan.json_data()))
    for first, second in ((f"1={file}", f"1={file}"), (str(file), str(file))):
        call = ["approve", str(folder), "--edit", first, "--edit", second]
        answer = CliRunner().invoke(app, call)
        assert isinstance(answer.exception, UsageError)
        assert "is edited twice" in str(answer.exception)
    assert pending(folder) == request


def test_the_form_ticks_and_edits_each_plan_by_its_own_fields(asked):
    folder, _ = asked
    request = pending(folder)
    form = {"plan.1.run": "yes", "plan.3.run": "yes"}
    assert ticked(request, form) == [1, 3]
    assert edited_plans(request, form) == {}
    shares = {
        f"plan.3.ratios.{d}": f"{100 * r:.1f}" for d, r in request.plans[2].plan.ratios.items()
    }
    assert edited_plans(request, {**form, **shares}) == {}
    first, second, *_ = request.plans[2].plan.ratios
    for name, by in ((first, -5.0), (second, 5.0)):
        shares[f"plan.3.ratios.{name}"] = f"{float(shares[f'plan.3.ratios.{name}']) + by:.1f}"
    assert list(edited_plans(request, {**form, **shares})) == [3]
    with pytest.raises(UsageError, match="no plan is ticked"):
        ticked(request, {})


def test_the_page_takes_the_plans_that_are_ticked_and_edited(several, asked):
    folder, _ = asked
    web = page.client(folder.parent)
    shown = web.get(f"/run/{folder.name}")
    assert shown.status_code == 200
    assert f"Round 1: {K} plans wait for you" in shown.text
    fields = form_fields(shown.text)
    assert {f"plan.{number}.run" for number in range(1, K + 1)} <= set(fields)
    request = pending(folder)
    first, second, *_ = request.plans[1].plan.ratios
    typed = {name: text for name, text in fields.items() if name != "plan.3.run"}
    for name, by in ((first, -2.0), (second, 2.0)):
        path = f"plan.2.ratios.{name}"
        typed[path] = f"{float(fields[path]) + by:.1f}"
    told = web.post(f"/run/{folder.name}/check", headers=HEADERS, data=typed).json()
    assert told["violations"] == []
    assert {path.split(".")[1] for path in told["asked"]} == {"1", "2"}
    answer = web.post(f"/run/{folder.name}/decide", headers=HEADERS, data={**typed, "kind": "edit"})
    assert answer.status_code == 303, answer.text
    with closing(Journal.open(folder)) as journal:
        made = journal.decision(1, request.request)
    assert (made.kind, made.kept) == ("edit", [request.plans[0].plan_digest])
    assert len(made.edited) == 1


def test_every_view_of_a_run_tells_its_trials_apart(folder, tmp_path):
    text = report_text(report_data(folder))
    names = [f"{number}.{candidate}" for number in (1, 2) for candidate in range(1, K + 1)]
    lines = text.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in names)
    told = story_text(story_of(folder, 1), 120)
    assert "candidate 1" in told
    assert told.count(", which counts: ") == 1
    write_html(folder, report_data(folder), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in html for name in names)
    rows = score_rows(report_data(folder))
    assert len({row["trial"] for row in rows}) == 1 + 2 * K
    chosen = {row["trial"] for row in rows if row["chosen"]}
    assert len(chosen) == 1
    link_rounds(folder)
    assert (folder / "rounds" / "01" / str(K) / "plan.json").is_file()


class FailingOnce(StandInExecutor):
    """Fails the first training of a planned round, for good."""

    def __init__(self, witness, seed):
        super().__init__(witness)
        self.seed = seed
        self.failed = []

    def _train(self, job, place):
        if job.seed == self.seed and self.failed in ([], [job]):
            self.failed = [job]
            raise TrainingError("the loss is nan", "nan_loss")
        return super()._train(job, place)


@pytest.mark.parametrize("failed_round", ["skip", "stop"])
def test_a_training_that_fails_loses_its_own_trial_alone(failed_round, tmp_path):
    standin = StandIn.make(
        f"candidates={K}", "rounds=1", f"failures.failed_round={failed_round}", per_slice=2
    )
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    standin.create(folder)
    journal = Journal.open(folder)
    journal.acquire()
    context = standin.context(folder, journal, witness)
    executor = FailingOnce(witness, standin.config.seed)
    context.trainer = replace(context.trainer, executor=executor)
    if failed_round == "stop":
        with pytest.raises(TrainingError, match="the loss is nan"):
            run_graph(context, folder)
        # What the others made is kept: only the one that failed is trained by the next start.
        executor.failed = [None]
        before = trainings(witness)
        context.state = fold(journal, ["over_refusal", "safety"])
        run_graph(context, folder)
        assert trainings(witness) == before + 1
        assert [t.failure for t in context.state.rounds[1].trials] == [None] * K
    else:
        run_graph(context, folder)
        round_ = context.state.rounds[1]
        (lost,) = (one for one in round_.by_trial if one.failure)
        assert lost.reason == "training failed: nan_loss: the loss is nan"
        assert (lost.accepted, lost.dominated) == (False, True)
        assert round_.counts not in (None, lost.trial.id)
        assert sum(event.kind == "trained" for event in journal.events(1)) == K - 1
        assert "training failed" in report_text(report_data(folder))
    assert journal.ledger()[1] == 0
    journal.close()
