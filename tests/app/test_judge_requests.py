"""What a model judge was asked about an answer stands beside the answer, until retention drops it."""

import pytest

from agent.retention import dropped
from benchmarks import page
from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from benchmarks.standins import StandIn, Witness
from mosaic.app.verify import verify
from mosaic.app.views.report_data import load
from mosaic.app.views.telling import story_of
from mosaic.app.web.pages import examples
from mosaic.core.journal import Journal
from mosaic.core.types.records import AskVerdict


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "dropped"])
def run(request, tmp_path_factory):
    """(folder, whether requests are kept) of a finished run whose judge is a model."""
    root = tmp_path_factory.mktemp("runs")
    rules = {}
    with JudgeServer(lambda name, turns: rules["decide"](name, turns)) as server:
        made = StandIn.make(
            "rounds=1",
            "calibration.repeats=1",
            "judge.kind=llm",
            f"judge.chat.base_url={server.url}",
            f"judge.chat.model={MODEL}",
            "judge.gold_checks=2",
            f"judge.cache={root / 'cache'}",
            f"judge.keep_requests={str(request.param).lower()}",
            per_slice=2,
        )
        suites = [suite for roles in made.inputs.suites.values() for suite in roles.values()]
        rules["decide"] = by_rules(made.inputs.objectives, suites)
        made.create(root / "run")
        made.run(root / "run", Witness(root / "witness"))
    return root / "run", request.param


def worst(folder):
    """(objective, slice) of a slice of round 1."""
    journal, state = load(folder)
    journal.close()
    first = state.rounds[1].profile.slices[0]
    return first.objective, first.slice


def test_the_question_and_the_verdict_stand_behind_each_answer(run):
    folder, kept = run
    objective, slice_ = worst(folder)
    shown = examples(folder, 1, objective, slice_)
    assert shown
    for chat in shown:
        if not kept:
            assert chat.judged == []
            continue
        (asked,) = chat.judged
        assert asked.title.endswith(": ok")
        assert [message.role for message in asked.messages] == ["system", "user", "assistant"]
        assert all(answer in asked.messages[1].text for _, answer in chat.turns)
    address = f"/run/run/cell?round=1&objective={objective}&slice={slice_}"
    html = page.client(folder.parent).get(address).text
    assert ("what the judge was asked and said" in html) == kept


def test_known_answers_are_told_with_their_questions(run):
    folder, kept = run
    entries = [e for c in story_of(folder).chapters for e in c.entries if e.kind == "gold_checked"]
    assert entries
    for entry in entries:
        assert "100 % right" in entry.title
        asked = [part for part in entry.parts if part.kind == "messages"]
        if kept:
            assert len(asked) == 2


def test_a_run_without_them_is_sound_and_keeps_its_verdicts(run):
    folder, kept = run
    journal = Journal.open(folder)
    verdicts, gone = journal.steps(AskVerdict), dropped(journal)
    journal.close()
    named = {step.result.exchanges for step in verdicts if step.result.exchanges}
    assert named
    # Those of the audit too, which nothing follows.
    assert (named - gone == set()) != kept
    assert verify(folder) == []
