"""What an approval covers, and what is left of it: another recipe, a change under way, an edited plan, a lost checkpoint."""

import pytest

from agent.approval import HumanApprover
from agent.graph import CHECKPOINT
from benchmarks import standins
from benchmarks.standins import StandIn, Witness
from benchmarks.waiting import trainings, until_asked
from mosaic.app.decisions import approve, pending
from mosaic.app.verify import verify
from mosaic.app.views import trace
from mosaic.app.views.provenance import why_data
from mosaic.app.views.report_data import load, report_data
from mosaic.app.views.story_text import story_text
from mosaic.app.views.telling import story_of
from mosaic.core.errors import TrainingError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.store import Store
from mosaic.core.types.events import ChangedEvent
from mosaic.core.types.records import Curate


def human(*settings):
    made = StandIn.make("rounds=2", *settings, per_slice=4)
    made.approver = HumanApprover()
    return made


def test_an_approval_does_not_cover_another_recipe(standin, asked):
    folder, witness = asked
    first, before = pending(folder).request, trainings(witness)
    approve(folder, first, by="ann")
    until_asked(human("methods.sft.learning_rate=0.009"), folder, witness)
    assert pending(folder).request != first
    assert trainings(witness) == before
    until_asked(standin, folder, witness)
    assert trainings(witness) == before + 1


def test_a_question_does_not_outlive_a_change(standin, asked):
    folder, witness = asked
    first = pending(folder).request
    journal = Journal.open(folder)
    journal.acquire()
    journal.change(journal.recorded, ChangedEvent(changes=[]), 10**9)
    journal.close()
    with pytest.raises(UsageError, match=r"nothing in .* waits"):
        approve(folder, first, by="ann")
    until_asked(standin, folder, witness)
    assert pending(folder)


def test_an_edited_plan_stands_in_the_trace_and_its_loss_is_damage(standin, asked):
    folder, witness = asked
    request = pending(folder)
    plan = request.plans[0].plan
    names = list(plan.ratios)
    mild = {
        **plan.ratios,
        names[0]: plan.ratios[names[0]] - 0.01,
        names[1]: plan.ratios[names[1]] + 0.01,
    }
    edited = plan.model_copy(
        update={"ratios": mild, "bucket_weights": {}, "rationale": "a little less, said Ann"}
    )
    approve(folder, request.request, edited=edited, by="ann")
    until_asked(standin, folder, witness)
    text = story_text(story_of(folder, 1), 100)
    assert "given in its place" in text
    assert "a little less, said Ann" in text
    why = why_data(folder, _row_of(folder)).rounds[0]
    assert why.share.after > 0
    assert verify(folder) == []
    Store(folder).path(edited.content_digest).unlink()
    assert any(
        edited.content_digest[:12] in damage.what + damage.where for damage in verify(folder)
    )
    # The decision itself holds the plan, so the trace still tells what ran.
    assert "a little less, said Ann" in story_text(story_of(folder, 1), 100)


def _row_of(folder):
    """A row of the last training set."""
    import pyarrow.parquet as pq

    journal = Journal.open(folder)
    curated = journal.steps(Curate)[-1].result
    journal.close()
    return pq.read_table(Store(folder).path(curated.training_set))["id"][0].as_py()


@pytest.mark.parametrize("damage", [b"no database at all", None])
def test_a_damaged_checkpoint_is_begun_anew(standin, asked, damage):
    folder, witness = asked
    approve(folder, pending(folder).request, by="ann")
    whole = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(damage or whole[:100] + b"\xff" * 4096 + whole[4196:])
    until_asked(standin, folder, witness)
    assert pending(folder).round == 2


def test_a_calibration_that_fails_is_tried_again_as_a_round_is(tmp_path, monkeypatch):
    made = StandIn.make("rounds=1", "failures.train_retries=1", per_slice=4)
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    made.create(folder)
    failed = []

    def once(executor, handles, stopping):
        if not failed:
            failed.append(handles[0].work.seed)
            raise TrainingError("it burnt", "killed")
        return waits(executor, handles, stopping)

    waits = standins.StandInExecutor.wait
    monkeypatch.setattr(standins.StandInExecutor, "wait", once)
    made.run(folder, witness)
    assert report_data(folder).state == "finished"
    journal, state = load(folder)
    assert [e.record.failure for e in journal.events(0, "failed")] == ["killed"]
    journal.close()
    assert state.calibration is not None


def test_following_an_extended_run_does_not_end_with_its_old_audit(tmp_path):
    made, longer = (StandIn.make(f"rounds={n}", per_slice=4) for n in (1, 2))
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    longer.create(folder)
    made.run(folder, witness)
    assert [e["kind"] for e in trace.follow(folder)][-1] == "audited"
    longer.run(folder, witness)
    kinds = [e["kind"] for e in trace.follow(folder)]
    assert kinds.count("audited") == 2
    assert kinds.count("planned") == 2
    assert {e["round"] for e in trace.follow(folder, 1)} == {1}
