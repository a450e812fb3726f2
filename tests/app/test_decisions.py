"""A person decides: what is shown, what is refused, what happens next. The controller is real, the model a stand-in."""

import json

import pytest
from typer.testing import CliRunner

from agent.approval import HumanApprover, PolicyApprover, Rule, matches
from benchmarks import standins
from benchmarks.standins import StandIn, Witness
from benchmarks.waiting import trainings, until_asked
from mosaic.app import runs
from mosaic.app.cli.main import app
from mosaic.app.cli.run import finish
from mosaic.app.decisions import approve, note, pending, reject
from mosaic.app.replay import replay
from mosaic.app.views import trace
from mosaic.app.views.diff import diff_data
from mosaic.app.views.html import write_html
from mosaic.app.views.provenance import why_data, why_text
from mosaic.app.views.report_data import load, report_data, status_data
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.app.views.text import report_text, request_text
from mosaic.app.wiring import run_digests
from mosaic.core.errors import BoundaryError, StopRequested, TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.data import Focus
from mosaic.core.types.plans import ApprovalRequest
from mosaic.core.types.records import Curate
from mosaic.core.types.runs import Observation


def test_the_question_is_drawn_from_the_plan(asked):
    folder, _ = asked
    request = pending(folder)
    assert ApprovalRequest.model_validate_json(request.model_dump_json(), strict=True) == request
    assert request.cost.left_before - request.cost.left_after == request.cost.tokens
    (shown,) = request.plans
    assert shown.plan_digest == shown.plan.content_digest
    assert (shown.rationale, shown.expected) == (shown.plan.rationale, shown.plan.expected)
    ratios = {c.path: c.after for c in shown.changes if c.path.startswith("ratios.")}
    assert ratios == {f"ratios.{name}": ratio for name, ratio in shown.plan.ratios.items()}
    assert sum(ratios.values()) == pytest.approx(1)
    assert shown.stock
    text = request_text(request)
    assert "the planner's words (not checked)" in text
    assert status_data(folder).state == "waiting for approval"


def test_a_note_reaches_the_next_observation_and_stands_in_the_trace(standin, asked):
    folder, witness = asked
    result = CliRunner().invoke(app, ["note", str(folder), "Mind the refusals.", "--by", "ann"])
    assert result.exit_code == 0, result.output
    assert "round 1: a note by ann" in result.output
    with pytest.raises(UsageError, match="1 to 4,000 characters"):
        note(folder, "  ")
    approve(folder, pending(folder).request[:12], by="ann")
    until_asked(standin, folder, witness)
    journal, _ = load(folder)
    observed = [event.record.observation for event in journal.events(kind="observed")]
    store = Store(folder)
    notes = [Observation.model_validate(store.get_json(digest)).notes for digest in observed]
    journal.close()
    assert notes[0] == []
    assert [(one.by, one.text) for one in notes[1]] == [("ann", "Mind the refusals.")]
    told = story_text(story_of(folder), 100)
    assert "ann left a note to the planner" in told
    assert "Mind the refusals." in told
    report = report_data(folder)
    (shown,) = report.notes
    assert (shown.by, shown.text, shown.told_from) == ("ann", "Mind the refusals.", 2)
    assert "ann, told from round 2 on: Mind the refusals." in report_text(report)
    note(folder, "And be brief.", "bob")
    assert report_data(folder).notes[1].told_from is None
    write_html(folder, report, folder / "report.html")
    assert "<q>Mind the refusals.</q>" in (folder / "report.html").read_text()


def test_an_approved_plan_runs_and_the_next_one_is_asked_for(standin, asked):
    folder, witness = asked
    before = trainings(witness)
    request = pending(folder)
    approve(folder, request.request[:12], by="ann")
    until_asked(standin, folder, witness)
    assert trainings(witness) == before + 1
    assert pending(folder).round == 2
    journal, state = load(folder)
    journal.close()
    assert state.rounds[1].plan.content_digest == request.plans[0].plan_digest


def test_a_second_decision_and_one_on_another_question_are_refused(asked):
    folder, _ = asked
    request = pending(folder).request
    for other in ("0" * 64, "", request[:7], request + "0"):
        with pytest.raises(UsageError, match="is not the question that waits: round 1 asks"):
            approve(folder, other)
        with pytest.raises(UsageError, match="is not the question that waits"):
            reject(folder, other, reason="no")
    reject(folder, request, reason="too much of it", by="ann")
    with pytest.raises(UsageError, match="was decided: reject by ann"):
        approve(folder, request, by="bob")


def test_a_rejected_plan_is_not_proposed_again_and_its_reason_is_kept(standin, asked):
    folder, witness = asked
    first = pending(folder)
    reject(folder, first.request, reason="less of the first", by="ann")
    before = trainings(witness)
    until_asked(standin, folder, witness)
    second = pending(folder)
    assert trainings(witness) == before
    assert second.plans[0].plan_digest != first.plans[0].plan_digest
    assert (second.round, second.attempt) == (1, 2)
    text = story_text(story_of(folder, 1), 100)
    assert "! reject by ann\n" in text
    assert "| less of the first\n" in text


def test_an_edited_plan_is_checked_and_then_runs(standin, asked):
    folder, witness = asked
    request = pending(folder)
    plan = request.plans[0].plan
    names = list(plan.ratios)
    wild = plan.model_copy(update={"ratios": {n: float(n == names[0]) for n in names}})
    with pytest.raises(UsageError, match="step"):
        approve(folder, request.request, edited=wild, by="ann")
    mild = dict(plan.ratios)
    mild[names[0]] -= 0.01
    mild[names[1]] += 0.01
    edited = plan.model_copy(update={"ratios": mild, "rationale": "a little less"})
    approve(folder, request.request, edited=edited, by="ann")
    until_asked(standin, folder, witness)
    journal, state = load(folder)
    journal.close()
    # What the planner expected of its own plan is not claimed of another one.
    assert state.rounds[1].plan == edited.model_copy(update={"expected": {}})


def test_the_commands_say_what_they_did_and_leave_with_their_codes(asked, monkeypatch):
    folder, _ = asked
    runner = CliRunner()
    shown = runner.invoke(app, ["pending", str(folder), "--json"])
    request = json.loads(shown.stdout)
    assert request["round"] == 1
    for words in (["--request", "0" * 64], []):
        wrong = runner.invoke(app, ["approve", str(folder), *words])
        assert isinstance(wrong.exception, UsageError)
        assert wrong.exception.exit_code == 2
        assert request["request"][:12] in str(wrong.exception)
    seen = ["--request", request["request"][:12]]
    done = runner.invoke(app, ["reject", str(folder), *seen, "--reason", "no"])
    assert "reject by" in done.stdout
    assert runner.invoke(app, ["verify", str(folder)]).exit_code == 0
    monkeypatch.setattr("training.data.pool_files.file_facts", lambda path: {})
    found = runner.invoke(app, ["verify", str(folder), "--json"])
    assert (found.exit_code, "index.parquet is not the file" in found.stdout) == (1, True)
    monkeypatch.undo()
    victim = next(p for p in (folder / "objects").iterdir() if p.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    found = runner.invoke(app, ["verify", str(folder), "--json"])
    assert found.exit_code == 1
    assert victim.name in found.stdout


def test_a_policy_decides_within_its_limits_and_asks_beyond_them(tmp_path):
    made = StandIn.make("rounds=1", per_slice=4)
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    made.approver = PolicyApprover(
        [Rule(max_ratio_step=0.0, then="auto"), Rule(max_tokens=10**9, then="human")]
    )
    until_asked(made, folder, witness)
    made.approver = PolicyApprover([Rule(max_ratio_step=2.0, max_bucket_step=2.0, then="auto")])
    made.run(folder, witness)
    assert "approve by policy" in story_text(story_of(folder, 1), 100)


def test_a_policy_that_refuses_everything_ends_the_planning(tmp_path):
    made = StandIn.make("rounds=1", per_slice=4)
    made.approver = PolicyApprover([Rule(then="reject")])
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert "no planner found an allowed plan" in report_data(folder).stop
    # No stop rule ended this run: the command line says so by its exit code.
    with pytest.raises(BoundaryError, match="ended early: no planner found"):
        finish(folder, as_json=True)


def test_traces_can_be_compared_asked_and_replayed(tmp_path):
    made = StandIn.make("rounds=2", per_slice=4)
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert [e["kind"] for e in trace.follow(folder)][-1] == "audited"
    data = diff_data(folder, 1, 2)
    assert {pair.what for pair in data.scores} == set(made.config.objectives)
    assert any(pair.change for pair in data.plan)
    assert [line.distance for line in replay(folder, "random")] == [0.0, 0.0]
    assert all(line.violations == [] for line in replay(folder, "profile"))
    import io

    import pyarrow.parquet as pq

    from mosaic.core.store import Store

    journal, _ = load(folder)
    digest = journal.steps(Curate, 1)[0].result.training_set
    journal.close()
    rows = pq.read_table(io.BytesIO(Store(folder).path(digest).read_bytes()))["id"].to_pylist()
    row = next(row for row in rows if row.startswith("guard"))
    reasons = why_data(folder, row, 1)
    (why,) = reasons.rounds
    assert why.evidence[0].slice == why.bucket
    assert row in why_text(reasons)
    with pytest.raises(UsageError, match="no such row"):
        why_data(folder, "nobody")


@pytest.mark.parametrize(
    ("failure", "failing", "tries"), [("killed", (2, 3), 4), ("out_of_memory", (2,), 3)]
)
def test_a_failed_training_fails_its_round_if_the_config_says_so(
    tmp_path, monkeypatch, failure, failing, tries
):
    """A failure that the same job would meet again is not tried again."""
    made = StandIn.make(
        "rounds=2", "failures.failed_round=skip", "failures.train_retries=1", per_slice=4
    )
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    calls = []

    def fails(executor, handles, stopping):
        calls.append(handles[0].work.seed)
        if len(calls) in failing:
            raise TrainingError("it burnt", failure)
        return waits(executor, handles, stopping)

    waits = standins.StandInExecutor.wait
    monkeypatch.setattr(standins.StandInExecutor, "wait", fails)
    made.run(folder, witness)
    report = report_data(folder)
    assert len(calls) == tries
    assert f"training failed: {failure}" in report.rounds[1].reason
    assert [r.accepted for r in report.rounds] == [True, False, True]
    assert f"failed ({failure})" in story_text(story_of(folder, 1), 100)
    assert "not scored" in report_text(report)
    from mosaic.app.views.html import write_html

    write_html(folder, report, tmp_path / "report.html")


def test_a_question_comes_back_with_the_settings_it_was_asked_under(standin, asked):
    folder, witness = asked
    first = pending(folder).request
    other = StandIn.make("rounds=3", per_slice=4)
    other.approver = HumanApprover()
    until_asked(other, folder, witness)
    assert pending(folder).request != first
    until_asked(standin, folder, witness)
    assert pending(folder).request == first
    before = trainings(witness)
    approve(folder, pending(folder).request, by="ann")
    until_asked(standin, folder, witness)
    assert trainings(witness) == before + 1


def test_a_plan_approved_before_the_settings_changed_and_changed_back_runs(asked, monkeypatch):
    folder, witness = asked
    one, two = (
        StandIn.make("rounds=1", s, per_slice=4)
        for s in ("keep=archive", "limits.max_ratio_step=0.2")
    )

    def stopped(*_, **__):
        raise StopRequested("stopped in training")

    with monkeypatch.context() as patch:
        patch.setattr(standins.StandInExecutor, "wait", stopped)
        for made in (one, two):
            with pytest.raises(StopRequested, match="in training"):
                made.run(folder, witness)
    one.run(folder, witness)
    assert report_data(folder).state == "finished"


def test_a_plan_that_runs_by_rule_cannot_be_refused_any_more_and_an_answer_given_before_counts(
    asked,
):
    folder, witness = asked
    auto = StandIn.make("rounds=2", per_slice=4)
    journal = Journal.open(folder)
    request = pending(folder)
    made = reject(folder, request.request, reason="not this one", by="ann")
    auto.run(folder, witness)
    decided = [e.record.decision for e in journal.events(1, "decided")]
    assert [decision.kind for decision in decided] == ["reject", "approve"]
    assert decided[0].plans == [request.plans[0].plan_digest]
    with pytest.raises(UsageError, match=r"nothing in .* waits"):
        reject(folder, request.request, reason="too late", by="bob")
    with pytest.raises(UsageError, match="does not wait any more"):
        journal.decide(made.model_copy(update={"round": 2, "request": "0" * 64}))
    journal.close()


def test_a_person_may_give_the_plan_that_was_refused_before(standin, asked):
    folder, witness = asked
    first = pending(folder)
    refused = first.plans[0].plan
    reject(folder, first.request, reason="let me see another", by="ann")
    until_asked(standin, folder, witness)
    approve(folder, pending(folder).request, edited=refused, by="ann")
    until_asked(standin, folder, witness)
    journal, state = load(folder)
    journal.close()
    assert state.rounds[1].plan.content_digest == refused.content_digest


def test_a_rejection_without_a_reason_is_refused(asked):
    with pytest.raises(UsageError, match="needs a reason"):
        reject(asked[0], pending(asked[0]).request, reason=" ")
    assert pending(asked[0])


def test_a_rule_on_steps_does_not_cover_a_change_of_focus(asked):
    folder, _ = asked
    request = pending(folder)
    seen = Observation.model_validate(Store(folder).get_json(request.observation))
    same = seen.last_plan
    focus = {
        next(iter(seen.stock)): Focus.model_validate(
            {"include": {"turns": {"min": 2}}, "share": 1.0}
        )
    }
    step = Rule(max_ratio_step=0.0, max_bucket_step=0.0, then="auto")
    (shown,) = request.plans
    assert matches(step, shown.model_copy(update={"plan": same}), seen)
    moved = same.model_copy(update={"focus": focus})
    assert not matches(step, shown.model_copy(update={"plan": moved}), seen)


def test_a_run_that_is_extended_is_audited_again(tmp_path):
    made = StandIn.make("rounds=1", per_slice=4)
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    made.run(folder, witness)
    more = StandIn.make("rounds=2", per_slice=4)
    journal = Journal.open(folder)
    journal.acquire()
    digests = run_digests(more.config, more.inputs)
    changed = runs.changes(journal, more.config, digests)
    runs.accept_changes(journal, more.config, digests, changed)
    assert journal.ledger()[0] == more.config.tokens_total > made.config.tokens_total
    journal.close()
    more.run(folder, witness)
    report = report_data(folder)
    assert (report.state, report.stop) == ("finished", "all 2 planned rounds ran")
    assert len(report.rounds) == 3
    first, second = report.audits
    assert (first.after_round, first.stop) == (1, "all 1 planned rounds ran")
    assert first.decided_after == [2]
    assert (second.after_round, second.chosen, second.decided_after) == (2, report.chosen, [])
    text = report_text(report)
    assert "opened 2 times" in text
    repeats = len(report.calibration.trials)
    assert f"noise of a training, from {repeats} of one mixture: over_refusal" in text
    assert "archive by merit, and the chance of being its best: " in text
    assert sorted(one.round for one in report.ranking) == sorted(report.archive)
    assert sum(one.best for one in report.ranking) == pytest.approx(1)
    for name, believed in report.calibration.believed.items():
        assert believed.low < believed.deviation < believed.high, name
    assert "the audit was opened after round 1; rounds decided after it: 2" in text
    assert len(why_data(folder, _row_of(folder)).rounds) >= 1


def _row_of(folder):
    """A row of the last training set."""
    import pyarrow.parquet as pq

    journal = Journal.open(folder)
    curated = journal.steps(Curate)[-1].result
    journal.close()
    return pq.read_table(Store(folder).path(curated.training_set))["id"][0].as_py()


def test_rounds_with_the_same_mixture_are_explained_too(tmp_path):
    made = StandIn.make("rounds=2", "planner.kind=static", per_slice=4)
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert [why.round for why in why_data(folder, _row_of(folder)).rounds] == [1, 2]
    with pytest.raises(UsageError, match="planner bogus"):
        replay(folder, "bogus")
    with pytest.raises(UsageError, match="no model and endpoint"):
        replay(folder, "llm")
    with pytest.raises(UsageError, match="--round 9: recorded are 0 to 2"):
        trace.trace_data(folder, 9)
