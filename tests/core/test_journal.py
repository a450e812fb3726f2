"""The journal: once done, never again; budget reserved and settled; one writer; damage is found."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from mosaic.core.errors import (
    BudgetError,
    DamageError,
    HeldError,
    MosaicError,
    PausedError,
    UsageError,
)
from mosaic.core.journal import Journal
from mosaic.core.tables import FILE
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import Store


@pytest.fixture
def journal(tmp_path):
    made = Journal.create(tmp_path / "run", "run", {"b": 1, "a": 2}, cap=100)
    made.acquire()
    yield made
    made.close()


def steps_of(journal):
    return Steps(journal, Store(journal.folder))


def test_a_done_step_is_read_and_never_run_again(journal):
    calls = []

    def effect():
        calls.append(1)
        return Outcome({"value": len(calls)}, [("made", {"n": 1})], spent=30)

    steps = steps_of(journal)
    first = steps.run("train", {"x": 1}, effect, reserve=40)
    again = steps.run("train", {"x": 1}, effect, reserve=40)
    assert first.result == again.result == {"value": 1}
    assert calls == [1]
    assert journal.ledger() == (100, 0, 30)
    assert [e.payload for e in journal.events(kind="made")] == [{"n": 1}]


def test_a_reservation_that_does_not_fit_is_refused_before_the_effect(journal):
    ran = []
    with pytest.raises(BudgetError, match="needs 101 tokens"):
        steps_of(journal).run("train", {}, lambda: ran.append(1), reserve=101)
    assert ran == []
    assert journal.ledger() == (100, 0, 0)


def test_a_failed_effect_releases_its_tokens_leaves_a_mark_and_may_run_again(journal):
    def fails():
        raise MosaicError("out of memory")

    steps = steps_of(journal)
    for _ in range(2):
        with pytest.raises(MosaicError):
            steps.run("train", {}, fails, reserve=60)
    assert journal.ledger() == (100, 0, 0)
    assert [e.payload["reason"] for e in journal.events(kind="failed")] == ["out of memory"] * 2
    assert steps.run("train", {}, lambda: Outcome({"ok": 1}), reserve=60).result == {"ok": 1}


def test_an_interrupted_effect_runs_again_and_is_charged_once(journal):
    def killed():
        raise KeyboardInterrupt

    steps = steps_of(journal)
    with pytest.raises(KeyboardInterrupt):
        steps.run("train", {}, killed, reserve=60)
    assert journal.ledger() == (100, 60, 0)
    steps.run("train", {}, lambda: Outcome({}, spent=60), reserve=60)
    assert journal.ledger() == (100, 0, 60)


def test_only_one_process_holds_a_run(journal):
    code = (
        "import sys; from pathlib import Path; from mosaic.core.journal import Journal\n"
        "from mosaic.core.errors import HeldError\n"
        "try: Journal.open(Path(sys.argv[1])).acquire()\n"
        "except HeldError as e: print(e); sys.exit(5)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(journal.folder)], capture_output=True, text=True
    )
    assert done.returncode == 5
    assert "held by process" in done.stdout


def test_a_writer_that_was_overtaken_cannot_commit(journal):
    Journal.open(journal.folder)._set_meta("fence", "99")
    with pytest.raises(HeldError, match="took over"):
        journal.begin("train", {}, 1)


def test_changed_results_and_events_are_found(journal):
    steps_of(journal).run("train", {}, lambda: Outcome({"score": 4}, [("measured", {"score": 4})]))
    with sqlite3.connect(journal.folder / FILE) as other:
        other.execute("""update steps set result = '{"score":5}'""")
        other.execute("""update events set payload = '{"score":5}'""")
    with pytest.raises(DamageError):
        journal.steps()
    with pytest.raises(DamageError):
        journal.events()


def test_config_keeps_its_order_and_settings_are_durable(journal):
    assert list(journal.config) == ["b", "a"]
    assert journal._db.execute("pragma synchronous").fetchone() == (2,)
    assert journal._db.execute("pragma journal_mode").fetchone() == ("delete",)


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(UsageError, match="no run directory"):
        Journal.open(tmp_path)


def test_a_journal_is_never_made_over_another_one(tmp_path, monkeypatch):
    """Two that start at once both find no journal; the slower one must not replace the faster one's."""
    folder = tmp_path / "run"
    connect = Journal._connect

    def late(path):
        monkeypatch.setattr(Journal, "_connect", staticmethod(connect))
        Journal.create(folder, "fast", {}, 1).close()
        return connect(path)

    monkeypatch.setattr(Journal, "_connect", staticmethod(late))
    with pytest.raises(UsageError, match="exists already"):
        Journal.create(folder, "slow", {}, 1)
    kept = Journal.open(folder)
    assert kept.run == "fast"
    kept.close()
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_a_changed_config_changes_the_budget_and_never_below_what_is_spent(journal):
    step = journal.begin("train", {}, 1, 60)
    journal.finish(step, {}, spent=60)
    journal.change({"a": 3}, {}, 70)
    assert (journal.ledger(), journal.config) == ((70, 0, 60), {"a": 3})
    with pytest.raises(UsageError, match="60 tokens are spent already"):
        journal.change({"a": 4}, {}, 59)
    assert (journal.ledger(), journal.config) == ((70, 0, 60), {"a": 3})


def test_only_the_question_that_waits_is_answered(journal):
    other = Journal.open(journal.folder)
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(1, "q1", {})
    journal.wait_for("q1")
    other.decide(1, "q1", {"kind": "approve"})
    with pytest.raises(UsageError, match="decided already"):
        other.decide(1, "q1", {"kind": "reject"})
    journal.wait_for("q2")
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(1, "q1", {})
    assert journal.decision(1, "q1") == {"kind": "approve"}
    other.close()


def test_what_the_machine_refuses_is_one_message(journal, monkeypatch):
    path = journal.folder / "journal.sqlite"
    monkeypatch.setattr("mosaic.core.journal.WAIT", 0.1)
    busy = Journal.open(journal.folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(PausedError, match="another process has been writing"):
            busy.wait_for("r1")
    busy.close()
    journal.wait_for("r1")
    readonly = Journal(
        sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None), journal.folder
    )
    with pytest.raises(UsageError, match="deciding and running write permission"):
        readonly.decide(1, "r1", {"kind": "approve"})
    readonly.close()
