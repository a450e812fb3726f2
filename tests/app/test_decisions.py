"""A person decides: what is shown, what is refused, what happens next. The controller is real, the model a stand-in."""

import json

import pytest
from typer.testing import CliRunner

from agent.approval import HumanApprover, PolicyApprover, Rule, matches
from benchmarks import standins
from benchmarks.standins import StandIn, Witness
from benchmarks.waiting import trainings, until_asked
from mosaic.app.cli.main import app
from mosaic.app.cli.run import finish
from mosaic.app.decisions import decide, pending
from mosaic.app.runs import accept_inputs
from mosaic.app.shapes import Request
from mosaic.app.views import trace_tree as trace
from mosaic.app.views.report_data import load, report_data, report_text, request_text, status_data
from mosaic.app.views.trace_tree import why_data
from mosaic.core.errors import BoundaryError, StopRequested, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.data import Focus
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation


def test_the_question_is_drawn_from_the_plan(asked):
    folder, _ = asked
    request = pending(folder)
    Request.model_validate_json(json.dumps(request), strict=True)
    assert {
        "run",
        "round",
        "plan",
        "plan_digest",
        "changes",
        "cost",
        "violations",
        "expected",
        "stock",
    } <= set(request)
    assert (
        request["cost"]["left_before"] - request["cost"]["left_after"] == request["cost"]["tokens"]
    )
    assert sum(
        c["after"] for c in request["changes"] if c["path"].startswith("ratios.")
    ) == pytest.approx(1)
    assert request["action_requests"][0]["args"] == request["plan"]
    text = request_text(request)
    assert "the planner's words (not checked)" in text
    assert status_data(folder)["state"] == "waiting for approval"


def test_an_approved_plan_runs_and_the_next_one_is_asked_for(standin, asked):
    folder, witness = asked
    before = trainings(witness)
    digest = pending(folder)["plan_digest"]
    decide(folder, "approve", plan_digest=digest[:12], by="ann")
    until_asked(standin, folder, witness)
    assert trainings(witness) == before + 1
    assert pending(folder)["round"] == 2
    journal, state = load(folder)
    journal.close()
    assert state.rounds[1].plan.content_digest == digest


def test_a_second_decision_and_one_on_another_plan_are_refused(asked):
    folder, _ = asked
    with pytest.raises(UsageError, match="is not the plan that waits"):
        decide(folder, "approve", plan_digest="0" * 64)
    decide(folder, "reject", reason="too much of it", by="ann")
    with pytest.raises(UsageError, match="nothing in"):
        decide(folder, "approve", by="bob")


def test_a_rejected_plan_is_not_proposed_again_and_its_reason_is_kept(standin, asked):
    folder, witness = asked
    first = pending(folder)
    decide(folder, "reject", reason="less of the first", by="ann")
    before = trainings(witness)
    until_asked(standin, folder, witness)
    second = pending(folder)
    assert trainings(witness) == before
    assert second["plan_digest"] != first["plan_digest"]
    assert (second["round"], second["attempt"]) == (1, 2)
    text = trace.tree_text(trace.tree(folder, 1))
    assert "reject by ann: less of the first" in text


def test_an_edited_plan_is_checked_and_then_runs(standin, asked):
    folder, witness = asked
    request = pending(folder)
    plan = ActionPlan.model_validate(request["plan"])
    names = list(plan.ratios)
    wild = plan.model_copy(update={"ratios": {n: float(n == names[0]) for n in names}})
    with pytest.raises(UsageError, match="step"):
        decide(folder, "edit", edited=wild, by="ann")
    mild = dict(plan.ratios)
    mild[names[0]] -= 0.01
    mild[names[1]] += 0.01
    edited = plan.model_copy(update={"ratios": mild, "rationale": "a little less"})
    decide(folder, "edit", edited=edited, by="ann")
    until_asked(standin, folder, witness)
    journal, state = load(folder)
    journal.close()
    assert state.rounds[1].plan == edited


def test_the_commands_say_what_they_did_and_leave_with_their_codes(asked, monkeypatch):
    folder, _ = asked
    runner = CliRunner()
    shown = runner.invoke(app, ["pending", str(folder), "--json"])
    assert json.loads(shown.stdout)["round"] == 1
    wrong = runner.invoke(app, ["approve", str(folder), "--plan-digest", "0" * 64])
    assert isinstance(wrong.exception, UsageError)
    assert wrong.exception.exit_code == 2
    done = runner.invoke(app, ["reject", str(folder), "--reason", "no"])
    assert "reject by" in done.stdout
    assert runner.invoke(app, ["verify", str(folder)]).exit_code == 0
    monkeypatch.setattr("training.data.pool.file_facts", lambda path: {})
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
    assert "approve by policy" in trace.tree_text(trace.tree(folder, 1))


def test_a_policy_that_refuses_everything_ends_the_planning(tmp_path):
    made = StandIn.make("rounds=1", per_slice=4)
    made.approver = PolicyApprover([Rule(then="reject")])
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert "no planner found an allowed plan" in report_data(folder)["stop"]
    # No stop rule ended this run: the command line says so by its exit code.
    with pytest.raises(BoundaryError, match="ended early: no planner found"):
        finish(folder, as_json=True)


def test_traces_can_be_compared_asked_and_replayed(tmp_path):
    made = StandIn.make("rounds=2", per_slice=4)
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert [e["kind"] for e in trace.follow(folder)][-1] == "audited"
    data = trace.diff_data(folder, 1, 2)
    assert {e["what"] for e in data["scores"]} == set(made.config.objectives)
    assert any(e["change"] for e in data["plan"])
    replayed = trace.replay_data(folder, "random")
    assert [e["distance"] for e in replayed] == [0.0, 0.0]
    assert all(e["violations"] == [] for e in trace.replay_data(folder, "profile"))
    import io

    import pyarrow.parquet as pq

    from mosaic.core.store import Store

    journal, _ = load(folder)
    digest = journal.steps("curate", 1)[0].result["training_set"]
    journal.close()
    row = pq.read_table(io.BytesIO(Store(folder).path(digest).read_bytes()))["id"][0].as_py()
    why = trace.why_data(folder, row, 1)["rounds"][0]
    assert why["evidence"][0]["slice"] == why["bucket"]
    assert row in trace.why_text({"row": row, "rounds": [why]})
    with pytest.raises(UsageError, match="no such row"):
        trace.why_data(folder, "nobody")


def test_a_failed_training_fails_its_round_where_the_config_says_so(tmp_path):
    from mosaic.core.errors import TrainingError

    made = StandIn.make(
        "rounds=2", "failures.failed_round=skip", "failures.train_retries=1", per_slice=4
    )
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    services_of = made.services

    def services(*values):
        built = services_of(*values)
        run = built.trainer.executor.run
        calls = []

        def failing(job, *rest):
            calls.append(job.seed)
            if len(calls) in (2, 3):
                raise TrainingError("it burnt", "out_of_memory")
            return run(job, *rest)

        built.trainer.executor.run = failing
        return built

    made.services = services
    made.run(folder, witness)
    report = report_data(folder)
    assert "training failed: out_of_memory" in report["rounds"][1]["reason"]
    assert [r["accepted"] for r in report["rounds"]] == [True, False, True]
    assert "failed (out_of_memory)" in trace.tree_text(trace.tree(folder, 1))
    assert "not scored" in report_text(report)
    from mosaic.app.views.html import write_html

    write_html(folder, report, tmp_path / "report.html")


def test_a_question_comes_back_with_the_settings_it_was_asked_under(standin, asked):
    folder, witness = asked
    first = pending(folder)["request"]
    other = StandIn.make("rounds=3", per_slice=4)
    other.approver = HumanApprover()
    until_asked(other, folder, witness)
    assert pending(folder)["request"] != first
    until_asked(standin, folder, witness)
    assert pending(folder)["request"] == first
    before = trainings(witness)
    decide(folder, "approve", by="ann")
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
    assert report_data(folder)["state"] == "finished"


def test_a_plan_that_runs_by_rule_cannot_be_refused_any_more_and_an_answer_given_before_counts(
    asked,
):
    folder, witness = asked
    auto = StandIn.make("rounds=2", per_slice=4)
    journal = Journal.open(folder)
    request = pending(folder)
    decide(folder, "reject", reason="not this one", by="ann")
    auto.run(folder, witness)
    decided = [e.payload["kind"] for e in journal.events(1, "decided")]
    assert decided == ["reject", "approve"]
    assert journal.events(1, "decided")[0].payload["plan_digest"] == request["plan_digest"]
    with pytest.raises(UsageError, match=r"nothing in .* waits"):
        decide(folder, "reject", reason="too late", by="bob")
    with pytest.raises(UsageError, match="does not wait any more"):
        journal.decide(2, "0" * 64, {})
    journal.close()


def test_a_person_may_give_the_plan_that_was_refused_before(standin, asked):
    folder, witness = asked
    refused = ActionPlan.model_validate(pending(folder)["plan"])
    decide(folder, "reject", reason="let me see another", by="ann")
    until_asked(standin, folder, witness)
    decide(folder, "edit", edited=refused, by="ann")
    until_asked(standin, folder, witness)
    journal, state = load(folder)
    journal.close()
    assert state.rounds[1].plan.content_digest == refused.content_digest


def test_a_rejection_without_a_reason_is_refused(asked):
    with pytest.raises(UsageError, match="needs a reason"):
        decide(asked[0], "reject", reason=" ")
    assert pending(asked[0])


def test_a_rule_on_steps_does_not_cover_a_change_of_focus(asked):
    folder, _ = asked
    request = pending(folder)
    seen = Observation.model_validate(Store(folder).get_json(request["state_digest"]))
    same = seen.last_plan
    focus = {
        next(iter(seen.stock)): Focus.model_validate(
            {"include": {"turns": {"min": 2}}, "share": 1.0}
        )
    }
    step = Rule(max_ratio_step=0.0, max_bucket_step=0.0, then="auto")
    assert matches(step, same, seen)
    assert not matches(step, same.model_copy(update={"focus": focus}), seen)


def test_a_run_that_is_extended_is_audited_again(tmp_path):
    made = StandIn.make("rounds=1", per_slice=4)
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    made.run(folder, witness)
    more = StandIn.make("rounds=2", per_slice=4)
    journal = Journal.open(folder)
    journal.acquire()
    accept_inputs(journal, more.config, more.inputs.digests(), True)
    assert journal.ledger()[0] == more.config.tokens_total > made.config.tokens_total
    journal.close()
    more.run(folder, witness)
    report = report_data(folder)
    assert (report["state"], report["stop"]) == ("finished", "all 2 planned rounds ran")
    assert len(report["rounds"]) == 3
    assert len(why_data(folder, _row_of(folder))["rounds"]) >= 1


def _row_of(folder):
    """A row of the last training set."""
    import pyarrow.parquet as pq

    journal = Journal.open(folder)
    curated = [s.result for s in journal.steps("curate") if s.result][-1]
    journal.close()
    return pq.read_table(Store(folder).path(curated["training_set"]))["id"][0].as_py()


def test_rounds_with_the_same_mixture_are_explained_too(tmp_path):
    made = StandIn.make("rounds=2", "planner.kind=static", per_slice=4)
    folder = tmp_path / "run"
    made.create(folder)
    made.run(folder, Witness(tmp_path / "witness"))
    assert [e["round"] for e in why_data(folder, _row_of(folder))["rounds"]] == [1, 2]
    with pytest.raises(UsageError, match="planner bogus"):
        trace.replay_data(folder, "bogus")
    with pytest.raises(UsageError, match="no model and endpoint"):
        trace.replay_data(folder, "llm")
    with pytest.raises(UsageError, match="--round 9: recorded are 0 to 2"):
        trace.trace_data(folder, 9)
