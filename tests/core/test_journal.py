"""The journal: once done, never again; budget reserved and settled; one writer; damage is found."""

import os
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
from mosaic.core.lock import LOCK
from mosaic.core.rows import Place
from mosaic.core.steps import Outcome
from mosaic.core.tables import FILE
from mosaic.core.types.events import ChangedEvent, DroppedEvent, TrainedEvent
from mosaic.core.types.plans import Decision
from mosaic.core.types.records import Train
from mosaic.core.types.spending import Usage

FORTY, SIXTY = Usage(trained=40), Usage(trained=60)


def decision(request="q1", kind="approve", run="run"):
    return Decision(request=request, run=run, round=1, kind=kind, by="ann", plans=["p"])


def test_a_done_step_is_read_and_never_run_again(journal, steps, training, adapter):
    calls = []

    def effect():
        calls.append(1)
        made = adapter(len(calls))
        return Outcome(made, [TrainedEvent(adapter=made)], usage=Usage(trained=20, sampled=10))

    first = steps.run(training(), effect, reserve=FORTY)
    again = steps.run(training(), effect, reserve=FORTY)
    assert first == again == adapter(1)
    assert calls == [1]
    assert journal.ledger() == (100, 0, 30)
    assert [e.record for e in journal.events(kind="trained")] == [TrainedEvent(adapter=adapter(1))]


def test_a_reservation_that_does_not_fit_is_refused_before_the_effect(journal, steps, training):
    ran = []
    with pytest.raises(BudgetError, match="train needs 101 tokens"):
        steps.run(training(), lambda: ran.append(1), reserve=Usage(trained=101))
    assert ran == []
    assert journal.ledger() == (100, 0, 0)


def test_more_than_was_reserved_is_never_booked(journal, steps, training, adapter):
    with pytest.raises(ValueError, match="spent 41 tokens, 40 were reserved"):
        steps.run(training(), lambda: Outcome(adapter(), usage=Usage(trained=41)), reserve=FORTY)
    assert journal.ledger() == (100, 40, 0)
    assert journal.find(training()) is None


def test_a_failed_effect_releases_its_tokens_leaves_a_mark_and_may_run_again(
    journal, steps, training, adapter
):
    def fails():
        raise MosaicError("out of memory")

    for _ in range(2):
        with pytest.raises(MosaicError):
            steps.run(training(), fails, reserve=SIXTY)
    assert journal.ledger() == (100, 0, 0)
    failed = [(e.record.step, e.record.reason) for e in journal.events(kind="failed")]
    assert failed == [("train", "out of memory")] * 2
    assert steps.run(training(), lambda: Outcome(adapter()), reserve=SIXTY) == adapter()


def test_an_interrupted_effect_runs_again_and_is_charged_once(journal, steps, training, adapter):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.run(training(), killed, reserve=SIXTY)
    assert journal.ledger() == (100, 60, 0)
    steps.run(training(), lambda: Outcome(adapter(), usage=SIXTY), reserve=SIXTY)
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


def test_a_controller_frozen_while_it_writes_is_named(journal, monkeypatch):
    monkeypatch.setattr("mosaic.core.tables.WAIT", 0.1)
    code = (
        "import sys; from pathlib import Path; from mosaic.core.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1])); journal.acquire()\n"
        "journal._db.execute('begin exclusive'); print('writing', flush=True); input()"
    )
    folder = journal.folder
    journal.close()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as frozen:
        assert frozen.stdout.readline() == "writing\n"
        with pytest.raises(HeldError, match=f"held by process {frozen.pid}, which has been writ"):
            Journal.open(folder)
        frozen.communicate("\n")


def test_a_writer_that_was_overtaken_cannot_commit(journal, training):
    (journal.folder / LOCK).unlink()  # a lock that was lost without being noticed
    other = Journal.open(journal.folder)
    other.acquire()
    with pytest.raises(HeldError, match="took over"):
        journal.begin(training(), Place(1))
    other.begin(training(), Place(1))
    other.close()


def test_changed_results_and_events_are_found(journal, steps, training, adapter):
    event = TrainedEvent(adapter=adapter())
    steps.run(training(), lambda: Outcome(adapter(), [event]))
    with sqlite3.connect(journal.folder / FILE) as other:
        other.execute("""update steps set result = replace(result, '0.5', '0.4')""")
        other.execute("""update events set payload = replace(payload, '0.5', '0.4')""")
    for read in (lambda: journal.steps(Train), lambda: journal.find(training()), journal.rows):
        with pytest.raises(DamageError, match="steps row 1"):
            read()
    with pytest.raises(DamageError, match="events row 1"):
        journal.events()
    assert len(journal.check()) == 2


def test_config_keeps_its_order_and_settings_are_durable(journal):
    assert list(journal.recorded.run) == ["b", "a"]
    assert journal._db.execute("pragma synchronous").fetchone() == (2,)
    assert journal._db.execute("pragma journal_mode").fetchone() == ("delete",)


def test_a_folder_without_a_journal_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"not a run directory.*`python -m mosaic run CONFIG`"):
        Journal.open(tmp_path)


def test_a_journal_of_another_release_is_named_with_what_can_be_done(journal):
    folder, version = journal.folder, "3"
    journal.close()
    with sqlite3.connect(folder / FILE) as db:
        db.execute("update meta set value = ? where name = 'version'", (version,))
    with pytest.raises(UsageError) as caught:
        Journal.open(folder)
    text = str(caught.value)
    assert "another release of MOSAIC (journal version 3, this one reads 4)" in text
    assert "Finish, read or export it with the release that made it" in text
    assert f"python -m mosaic run {folder / 'config.json'} --run-dir NEW" in text
    assert caught.value.exit_code == 2


FAST = """
import sys
from pathlib import Path
from mosaic.core.journal import Journal
from mosaic.core.types.inputs import InputDigests, RunRecord
nothing = InputDigests(pool="", base_model="", suites={}, judge="")
Journal.create(Path(sys.argv[1]), "fast", RunRecord(run={}, inputs=nothing), 1).close()
"""


def test_a_journal_is_never_made_over_another_one(tmp_path, monkeypatch, new_journal):
    """Two that start at once both find no journal; the slower must not replace the faster's."""
    folder = tmp_path / "run"
    link = os.link

    def late(source, target):
        subprocess.run([sys.executable, "-c", FAST, str(folder)], check=True)
        return link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(UsageError, match="exists already"):
        new_journal(folder)
    kept = Journal.open(folder)
    assert kept.run == "fast"
    kept.close()
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_a_changed_config_changes_the_budget_and_never_below_what_is_spent(
    journal, training, adapter
):
    journal.begin(training(), Place(1), 60)
    journal.finish(training(), adapter(), spent=60)
    changed = journal.recorded.model_copy(update={"run": {"a": 3}})
    event = ChangedEvent(changes=["a: 2 -> 3"])
    journal.change(changed, event, 70)
    assert (journal.ledger(), journal.recorded) == ((70, 0, 60), changed)
    worse = journal.recorded.model_copy(update={"run": {"a": 4}})
    with pytest.raises(UsageError, match="60 tokens are spent already"):
        journal.change(worse, event, 59)
    assert (journal.ledger(), journal.recorded) == ((70, 0, 60), changed)
    assert [e.record for e in journal.events(kind="changed")] == [event]


def test_only_the_question_that_waits_is_answered(journal):
    other = Journal.open(journal.folder)
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(decision())
    journal.wait_for("q1")
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(decision(run="another run"))
    other.decide(decision())
    with pytest.raises(UsageError, match="decided already: approve by ann"):
        other.decide(decision(kind="reject"))
    journal.wait_for("q2")
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(decision())
    assert journal.decision(1, "q1") == decision()
    assert journal.decision(1, "q2") is None
    other.close()


def test_a_changed_config_withdraws_the_question_that_waits(journal):
    journal.wait_for("q1")
    journal.change(journal.recorded, ChangedEvent(changes=[]), 100)
    other = Journal.open(journal.folder)
    with pytest.raises(UsageError, match="does not wait"):
        other.decide(decision())
    other.close()


def test_what_the_machine_refuses_is_one_message(journal, monkeypatch):
    path = journal.folder / FILE
    monkeypatch.setattr("mosaic.core.tables.WAIT", 0.1)
    busy = Journal.open(journal.folder)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(PausedError, match="another process has been writing"):
            busy.wait_for("r1")
    busy.close()
    journal.wait_for("r1")
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    readonly = Journal(connection, journal.folder)
    with pytest.raises(UsageError, match="deciding and running write permission"):
        readonly.decide(decision("r1"))
    readonly.close()


def test_a_leftover_reservation_goes_back_to_the_budget_at_the_next_start(journal, steps, training):
    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.run(training(), killed, reserve=SIXTY)
    folder = journal.folder
    journal.close()
    again = Journal.open(folder)
    again.acquire()
    assert again.ledger() == (100, 0, 0)
    assert [row.kind for row in again.rows(state="intent")] == ["train"]
    assert again.check() == []
    again.close()


def test_a_row_that_is_damaged_keeps_a_second_controller_out(journal, steps, training, adapter):
    steps.run(training(), lambda: Outcome(adapter(), [DroppedEvent(adapters=[])]))
    folder = journal.folder
    journal.close()
    with sqlite3.connect(folder / FILE) as db:
        db.execute("update ledger set spent = 1")
    again = Journal.open(folder)
    with pytest.raises(DamageError, match=r"ledger row 0 .*python -m mosaic verify"):
        again.acquire()
    again.close()
