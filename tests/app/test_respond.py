"""A person comments, edits or is too late: what the planner hears, and what the form keeps."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from agent.approval import HumanApprovalConfig
from benchmarks import page
from benchmarks.waiting import trainings, until_asked, waiting_run
from mosaic.app.cli.main import app
from mosaic.app.decisions import approve, pending, reject, respond, waiting_question
from mosaic.app.views.report_data import report_data, status_data
from mosaic.app.web.form import edited_plan
from mosaic.app.web.guard import csrf_of
from mosaic.core.errors import StopRequested, UsageError
from mosaic.core.journal import Journal
from mosaic.core.types.records import ProposePlan

HEADERS = {"origin": page.ORIGIN, "x-csrf-token": csrf_of(page.TOKEN)}


def percents(request):
    """The form's fields as the page shows them: shares with a decimal comma."""
    (shown,) = request.plans
    fields = {"request": request.request, "kind": "edit"}
    for change in shown.changes:
        if isinstance(change.after, float):
            fields[change.path] = f"{100 * change.after:.1f}".replace(".", ",")
    return fields


def test_a_comment_reaches_the_planner_refuses_nothing_and_brings_another_question(standin, asked):
    folder, witness = asked
    before = pending(folder)
    respond(folder, before.request, comment="fewer lessons, please", by="ann")
    until_asked(standin, folder, witness)
    after = pending(folder)
    assert (after.round, after.attempt) == (before.round, before.attempt + 1)
    assert after.request != before.request
    journal = Journal.open(folder)
    told = journal.steps(ProposePlan, before.round)[-1].inputs.feedback
    journal.close()
    assert [(v.rule, v.hint) for v in told] == [
        ("comment", "ann asks for another plan: fewer lessons, please")
    ]
    assert trainings(witness) == 1, "only the calibration"
    with pytest.raises(UsageError, match="needs a comment"):
        respond(folder, after.request, comment=" ")


def test_a_decision_stands_everywhere_from_the_moment_it_is_recorded(asked):
    folder, _ = asked
    approve(folder, pending(folder).request, by="ann", reason="go on")
    status = status_data(folder)
    assert status.state == report_data(folder).state == "decided"
    assert status.standing.why.startswith("round 1: approve by ann")
    with pytest.raises(UsageError, match=r"was decided: approve by ann \(go on\)"):
        pending(folder)
    text = page.client(folder.parent).get(f"/run/{folder.name}").text
    assert "Round 1 was decided" in text
    assert "<strong>ann</strong>: go on" in text


def test_a_decision_that_was_taken_up_is_no_longer_waited_on(standin, asked):
    folder, witness = asked
    reject(folder, pending(folder).request, reason="no", by="ann")
    until_asked(standin, folder, witness)
    journal = Journal.open(folder)
    question = waiting_question(journal)
    journal.close()
    assert question.decision is None
    assert status_data(folder).state == "waiting for approval"


def test_the_commands_print_their_decision_as_json(asked):
    folder, _ = asked
    asked_id = pending(folder).request
    done = CliRunner().invoke(
        app, ["approve", str(folder), "--request", asked_id, "--by", "ann", "--json"]
    )
    found = json.loads(done.stdout)
    assert (found["kind"], found["by"], found["request"]) == ("approve", "ann", asked_id)


def test_percentages_may_have_a_comma_and_focus_is_typed_as_json(asked):
    folder, _ = asked
    request = pending(folder)
    plan = request.plans[0].plan
    assert edited_plan(request, percents(request)).ratios == plan.ratios
    dataset = next(iter(plan.ratios))
    focus = '{"include": {"topic": ["t1"]}, "share": 0.25}'
    edited = edited_plan(request, {**percents(request), f"focus.{dataset}": focus})
    assert edited.focus[dataset].share == 0.25
    assert edited.focus[dataset].include == {"topic": ["t1"]}
    with pytest.raises(UsageError, match=f"focus.{dataset}"):
        edited_plan(request, {**percents(request), f"focus.{dataset}": "topic t1"})


def test_what_is_typed_is_answered_with_tokens_predictions_and_limits(asked):
    folder, _ = asked
    request = pending(folder)
    web = page.client(folder.parent)
    found = web.post(f"/run/{folder.name}/check", headers=HEADERS, data=percents(request)).json()
    assert found["violations"] == []
    stock = {f"{d.dataset}.{d.bucket}": d.asked for d in request.plans[0].stock}
    assert found["asked"] == stock
    assert {p["objective"] for p in found["predicted"]} == {
        p.objective for p in request.plans[0].predicted
    }


def test_a_second_tab_is_told_by_whom_the_question_was_decided(asked):
    folder, _ = asked
    web = page.client(folder.parent)
    before = web.get(f"/run/{folder.name}/live").json()
    assert (before["waits"], before["decided"]) == (pending(folder).request, "")
    approve(folder, before["waits"], by="bob")
    after = web.get(f"/run/{folder.name}/live").json()
    assert (after["waits"], after["decided"]) == ("", "approve by bob")


def test_a_comment_is_sent_from_the_page_with_a_name(asked):
    folder, _ = asked
    web = page.client(folder.parent)
    form = {"kind": "respond", "request": pending(folder).request, "by": " carl  x ", "reason": "?"}
    assert web.post(f"/run/{folder.name}/decide", headers=HEADERS, data=form).status_code == 303
    journal = Journal.open(folder)
    decision = waiting_question(journal).decision
    journal.close()
    assert (decision.kind, decision.by, decision.reason) == ("respond", "carl x", "?")


# -- before the calibration ------------------------------------------------------------------------


@pytest.fixture
def asks_first(standin, tmp_path):
    """A run that asks before its calibration trains."""
    human = HumanApprovalConfig(calibration=True)
    asking = replace(standin, config=standin.config.model_copy(update={"approval": human}))
    return asking, *waiting_run(asking, tmp_path)


def test_a_person_may_be_asked_before_the_calibration_trains(asks_first):
    standin, folder, witness = asks_first
    request = pending(folder)
    assert (request.round, request.planner) == (0, "calibration")
    repeats = standin.config.calibration.repeats
    assert request.cost.tokens == repeats * standin.config.tokens_per_round
    assert trainings(witness) == 0
    with pytest.raises(UsageError, match="cannot be edited"):
        approve(folder, request.request, edited=request.plans[0].plan)
    with pytest.raises(UsageError, match="no planner"):
        respond(folder, request.request, comment="?")
    approve(folder, request.request, by="ann")
    until_asked(standin, folder, witness)
    assert pending(folder).round == 1
    assert trainings(witness) == repeats


def test_a_calibration_that_was_refused_trains_nothing(asks_first):
    standin, folder, witness = asks_first
    reject(folder, pending(folder).request, reason="not today", by="ann")
    for _ in range(2):
        with pytest.raises(StopRequested, match="ann refused the calibration: not today"):
            standin.run(folder, witness)
    assert trainings(witness) == 0
