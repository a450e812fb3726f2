"""Small shares of the durability benchmarks: `python -m benchmarks crash` and its neighbours try everything."""

import sqlite3

import pytest

from agent.approval import HumanApprover
from benchmarks import durability, waiting
from benchmarks.standins import StandIn, Witness
from mosaic.app.decisions import approve, pending
from mosaic.app.views.report_data import report_data
from mosaic.core.journal import Journal
from mosaic.core.rows import Place


@pytest.fixture(scope="module")
def standin():
    return StandIn.make(per_slice=4)


def test_a_killed_run_ends_like_one_that_was_not(standin):
    found = durability.crash_points(standin, 260, power=False)
    assert found["kills"] > found["points"] > 8
    assert (found["unequal"], found["repeated"]) == (0, 0)


def test_a_killed_run_of_several_candidates_ends_like_one_that_was_not():
    several = StandIn.make("candidates=3", "rounds=1", per_slice=1)
    found = durability.crash_points(several, 640, power=False)
    assert found["points"] > 2
    assert (found["unequal"], found["repeated"]) == (0, 0)


def test_lost_power_takes_nothing_that_was_done(standin):
    found = durability.crash_points(standin, 270, power=True)
    assert found["points"] > 8
    assert (found["unequal"], found["repeated"]) == (0, 0)


@pytest.mark.parametrize("name", ["races", "corruption", "disk_full", "overspend"])
def test_the_quick_durability_figures_are_met(name):
    assert [row for row in getattr(durability, name)(True) if row["met"] is False] == []


@pytest.mark.parametrize("name", ["approvals", "waiting"])
def test_the_quick_approval_figures_are_met(name):
    assert [row for row in getattr(waiting, name)(True) if row["met"] is False] == []


def test_the_journal_is_flushed_before_it_says_done(tmp_path):
    journal = Journal.create(tmp_path / "run", "run", durability.RECORD, 10)
    pragmas = {
        name: journal._db.execute(f"pragma {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    }
    assert pragmas == {"journal_mode": "delete", "synchronous": 2}
    assert journal._db.execute("pragma busy_timeout").fetchone()[0] >= 5000


def test_the_checkpoint_may_be_deleted_while_a_person_is_asked(standin, tmp_path):
    human = StandIn.make("rounds=1", per_slice=4)
    human.approver = HumanApprover()
    folder, witness = waiting.waiting_run(human, tmp_path)
    (folder / "graph.sqlite").unlink()
    approve(folder, pending(folder).request, by="x")
    human.run(folder, witness)
    assert report_data(folder).rounds[-1].accepted


def test_a_controller_releases_what_a_dead_one_reserved(tmp_path):
    journal = Journal.create(tmp_path / "run", "run", durability.RECORD, 10)
    journal.acquire()
    journal.begin(durability.training("first"), Place(1), 7)
    assert journal.ledger() == (10, 7, 0)
    journal.close()
    again = Journal.open(tmp_path / "run")
    again.acquire()
    assert again.ledger() == (10, 0, 0)


def test_a_journal_of_another_version_is_named(tmp_path):
    from mosaic.core.errors import UsageError

    folder = tmp_path / "run"
    Journal.create(folder, "run", durability.RECORD, 10).close()
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.execute("update meta set value = '1' where name = 'version'")
    with pytest.raises(UsageError, match=r"journal version 1, this one reads 4\)"):
        Journal.open(folder)


def test_stand_ins_are_called_once_for_each_effect(standin, tmp_path):
    folder, witness = tmp_path / "run", Witness(tmp_path / "witness")
    standin.create(folder)
    standin.run(folder, witness)
    lines = witness.lines()
    assert len(lines) == len(set(lines))
    standin.run(folder, witness)
    assert witness.lines() == lines
