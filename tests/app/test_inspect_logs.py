"""Evaluations as Inspect's own reader sees them."""

import pytest

from mosaic.app.extras import needs
from mosaic.app.inspect_logs import answered_by, evaluations, write_inspect
from mosaic.app.views.report_data import load
from mosaic.core.errors import UsageError
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import Store
from mosaic.core.types.records import Generate
from mosaic.core.types.runs import GREEDY
from mosaic.core.types.step_inputs import Generated

READER = "read by inspect_ai, which the extra `inspect` brings"


@pytest.fixture(scope="module")
def evaluated(finished):
    return list(evaluations(finished))


def test_every_model_is_read_on_every_suite_that_it_answered(evaluated):
    found = {(one.model, one.objective, one.role) for one in evaluated}
    models = ("base", "calibration-1", "round-01")
    for objective in ("safety", "over_refusal"):
        for role in ("steering", "selection"):
            assert {(model, objective, role) for model in models} <= found
        assert ("base", objective, "audit") in found


def test_scores_are_those_of_the_run(finished, evaluated):
    journal, state = load(finished)
    journal.close()
    scores = state.rounds[1].scores
    for one in evaluated:
        if one.model == "round-01" and one.role == "selection":
            assert one.score == scores[one.objective]["selection"]


def test_what_is_missing_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        UsageError, match=r"nosuch is not.*pip install 'mosaic-curation\[inspect\]'"
    ):
        needs("nosuch", "inspect")


def test_inspect_reads_the_logs_and_finds_the_same_scores(finished, evaluated, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason=READER)
    paths = write_inspect(finished, tmp_path / "logs")
    assert len(log.list_eval_logs(str(tmp_path / "logs"))) == len(paths) == len(set(paths))
    by_name = {f"{one.model}_{one.objective}_{one.role}.eval": one for one in evaluated}
    for path in paths:
        read, ours = log.read_eval_log(str(path)), by_name[path.name]
        assert read.status == "success"
        assert read.eval.model == f"mosaic/run-{ours.model}"
        assert "what models wrote under attack" in read.eval.metadata["notice"]
        (score,) = read.results.scores
        assert score.metrics["mean"].value == ours.score.mean
        assert len(read.samples) == len(ours.responses)
    sample, answered = read.samples[0], ours.responses[0]
    asked = ours.prompts[answered.id].turns
    assert [m.text for m in sample.messages if m.role == "user"] == asked
    assert [m.text for m in sample.messages if m.role == "assistant"] == answered.answers
    assert sample.scores[ours.objective].value == ours.scored[answered.id].score
    assert log.read_eval_log_sample_summaries(str(path))[0].id == answered.id


def test_an_answer_without_a_score_says_why(evaluated):
    pytest.importorskip("inspect_ai", reason=READER)
    from mosaic.app.inspect_logs import log_of

    one = evaluated[0]
    first = one.responses[0].id
    hidden = one.scored[first].model_copy(
        update={"score": None, "status": "unscored", "reason": "the judge abstained"}
    )
    changed = log_of("run", type(one)(**{**vars(one), "scored": {**one.scored, first: hidden}}))
    (score,) = changed.samples[0].scores.values()
    assert score.reason == "the judge abstained"
    assert score.value != score.value  # not a number: Inspect's sign for unscored


def test_logs_go_into_a_new_folder_only(finished, tmp_path):
    pytest.importorskip("inspect_ai", reason=READER)
    with pytest.raises(UsageError, match="name a new folder"):
        write_inspect(finished, tmp_path)


def test_models_that_answer_alike_are_told_apart(new_journal, tmp_path):
    journal = new_journal(tmp_path / "run")
    steps = Steps(journal, Store(journal.folder))

    def generated(adapter, shard, answers):
        inputs = Generate(
            base="b", generator={}, sampling=GREEDY, adapter=adapter, suite="s", shard=shard
        )
        found = Generated(responses=answers, tokens=1, conversations=1)
        steps.run(inputs, lambda: Outcome(found))

    for adapter, last in ((None, "same"), ("one", "same"), ("two", "other")):
        generated(adapter, (256, 300), last)
        generated(adapter, (0, 256), "first")
    owners = answered_by(journal)
    assert owners["s", "first", "same"] == [(None, {}), ("one", {})]
    assert owners["s", "first", "other"] == [("two", {})]
