"""The gate of effects: threads may share it, and a step is named by all that it depends on."""

import os
import shutil
import sqlite3
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from mosaic.core.errors import (
    BudgetError,
    DamageError,
    MosaicError,
    PausedError,
    StopRequested,
    TrainingError,
)
from mosaic.core.rows import Calls, Place, SmallStep
from mosaic.core.steps import Outcome, Steps, Task
from mosaic.core.store import Store
from mosaic.core.tables import COLUMNS, FILE, checksum
from mosaic.core.types.evaluation import Verdict
from mosaic.core.types.events import TrainedEvent
from mosaic.core.types.records import (
    STEPS,
    AskVerdict,
    Curate,
    Generate,
    JudgeSuite,
    Observe,
    Train,
    VerdictFiled,
)
from mosaic.core.types.runs import GREEDY, Sampling, SftRecipe
from mosaic.core.types.spending import Usage

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
THREADS = 8
# Steps of each thread: alone, after a failure, in batches of 50; and steps that all threads want.
# Together 8 x (250 + 45 + 19 x 50) + 40 = 10,000, in about eight seconds. On a disk each of them waits
# several times for 5 to 15 ms, which would take minutes: there it is the same with fewer.
OWN, FAILING, BATCHES, SHARED = (250, 45, 19, 40) if MEMORY else (20, 5, 4, 10)
BATCH = 50
STEPS_IN_ALL = THREADS * (OWN + FAILING + BATCHES * BATCH) + SHARED
RESERVED, SPENT = Usage(trained=3), Usage(trained=2)


@pytest.fixture
def fast_folder():
    """A folder in memory where there is one."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


def in_threads(work, count=THREADS):
    """Run `work(number)` in so many threads; errors that left it."""
    errors = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def verdict_step(conversation):
    inputs = AskVerdict(judge="j", prompt="p", conversation=conversation)
    result = VerdictFiled(verdict=Verdict(status="ok"), source="model")
    return SmallStep(inputs, result, 0.001)


class Crowd:
    """What one thread does among others: steps of its own, failures, batches, shared steps."""

    def __init__(self, steps, training, adapter):
        self.steps, self.training, self.adapter = steps, training, adapter
        self.together = threading.Barrier(THREADS)
        self.ran = Counter()  # effects per step
        self.shared = {n: set() for n in range(SHARED)}  # results that threads were given
        self.guard = threading.Lock()

    def effect(self, name, thread):
        def run():
            with self.guard:
                self.ran[name] += 1
            made = self.adapter(f"{name} by {thread}")
            return Outcome(made, [TrainedEvent(adapter=made)], usage=SPENT)

        return run

    def work(self, thread):
        steps = self.steps.at(thread, f"trial {thread}")
        for number in range(SHARED):
            name = f"shared {number}"
            self.together.wait(timeout=60)
            step = self.training(name)
            given = steps.run(step, self.effect(name, thread), reserve=RESERVED)
            with self.guard:
                self.shared[number].add(given.digest)
        for number in range(OWN):
            name = f"{thread}-{number}"
            steps.run(self.training(name), self.effect(name, thread), reserve=RESERVED)
        for number in range(FAILING):
            name = f"failing {thread}-{number}"
            with pytest.raises(TrainingError):
                steps.run(self.training(name), self.fails, reserve=RESERVED)
            steps.run(self.training(name), self.effect(name, thread), reserve=RESERVED)
        for number in range(BATCHES):
            batch = [verdict_step(f"{thread}-{number}-{i}") for i in range(BATCH)]
            steps.record(batch, [Calls("judge", answers=BATCH, requests=BATCH, tokens=7 * BATCH)])

    def fails(self):
        raise TrainingError("no luck", "hang")


def test_eight_threads_share_one_journal(fast_folder, new_journal, training, adapter):
    trained = THREADS * (OWN + FAILING) + SHARED
    # Nothing to spare but what eight threads hold at once: a reservation that leaked would show.
    cap = trained * SPENT.cost + THREADS * RESERVED.cost
    journal = new_journal(fast_folder / "run", cap=cap)
    crowd = Crowd(Steps(journal, Store(journal.folder)), training, adapter)

    assert in_threads(crowd.work) == []

    assert journal.check() == []
    assert journal.ledger() == (cap, 0, trained * SPENT.cost)
    assert set(crowd.ran.values()) == {1}
    assert len(crowd.ran) == trained
    assert [len(given) for given in crowd.shared.values()] == [1] * SHARED

    rows = journal.rows()
    assert [row.seq for row in rows] == list(range(1, STEPS_IN_ALL + 1))
    assert {row.state for row in rows} == {"done"}
    for step in journal.steps(Train):
        _, thread = step.result.digest.rsplit(" by ", 1)
        assert step.place == Place(int(thread), f"trial {thread}")

    events = journal.events()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = Counter(event.kind for event in events)
    assert kinds == {"trained": trained, "failed": THREADS * FAILING}
    verdicts = THREADS * BATCHES * BATCH
    assert journal.calls() == [Calls("judge", verdicts, verdicts, 7 * verdicts)]


def test_who_waits_for_a_step_that_fails_runs_it_again(steps, journal, training, adapter):
    started, tries = threading.Event(), []

    def effect():
        tries.append(1)
        if len(tries) == 1:
            started.wait(timeout=10)
            raise MosaicError("the first try fails")
        return Outcome(adapter(), usage=Usage(trained=60))

    given = []

    def first(number):
        if number == 0:
            with pytest.raises(MosaicError, match="first try"):
                steps.run(training(), effect, reserve=Usage(trained=60))
        else:
            while not tries:
                pass
            started.set()
            given.append(steps.run(training(), effect, reserve=Usage(trained=60)))

    # Both cannot be reserved at once: the second begins after the first gave its tokens back.
    assert in_threads(first, 2) == []
    assert given == [adapter()]
    assert journal.ledger() == (100, 0, 60)


def test_a_failure_in_a_thread_releases_its_reservation_and_leaves_the_others_theirs(
    steps, journal, training, adapter
):
    holding, failed = threading.Event(), threading.Event()

    def holds():
        holding.set()
        failed.wait(timeout=10)
        return Outcome(adapter(), usage=Usage(trained=40))

    def fails():
        raise MosaicError("no luck")

    def work(number):
        if number == 0:
            steps.run(training(0), holds, reserve=Usage(trained=60))
            return
        holding.wait(timeout=10)
        with pytest.raises(MosaicError, match="no luck"):
            steps.run(training(1), fails, reserve=Usage(trained=40))
        held.append(journal.ledger()[1])
        with pytest.raises(BudgetError, match="40 left"):
            steps.run(training(2), fails, reserve=Usage(trained=41))
        failed.set()

    held = []
    assert in_threads(work, 2) == []
    assert held == [60]
    assert journal.ledger() == (100, 0, 40)
    assert journal.check() == []


def test_threads_begin_nothing_once_they_are_asked_to_stop(journal, training, adapter):
    asked = threading.Event()
    steps = Steps(journal, Store(journal.folder), asked.is_set)
    steps.run(training(0), lambda: Outcome(adapter(0)))
    asked.set()
    errors = in_threads(lambda n: steps.at(n).run(training(n), lambda: Outcome(adapter(n))))
    assert {type(error) for error in errors} == {StopRequested}
    assert len(errors) == THREADS
    assert len(journal.rows()) == 1


# -- what names a step -----------------------------------------------------------------------------

JOB = {"recipe": SftRecipe(), "inputs": {"base": "b", "training_set": "t"}, "seed": 1}
MIXTURE = {"ratios": {"a": 1.0}, "budget": 10, "seed": 1}
# One step of each of these kinds, and for every field of it another value.
CHANGES = [
    (
        Generate,
        {
            "base": "b", "generator": {"kind": "g"}, "sampling": GREEDY, "adapter": None,
            "suite": "s", "shard": (0, 8), "wish": {},
        },
        {
            "base": "c", "generator": {"kind": "h"}, "sampling": Sampling(n=2, temperature=1.0),
            "adapter": "x", "suite": "t", "shard": (0, 9), "wish": {"safety": 5},
        },
    ),
    (
        JudgeSuite,
        {"responses": ["r", "q"], "suite": "s", "objective": "o", "judge": "j", "rules": "r"},
        {"responses": ["q", "r"], "suite": "t", "objective": "p", "judge": "k", "rules": "s"},
    ),
    (
        AskVerdict,
        {"judge": "j", "prompt": "p", "conversation": "c"},
        {"judge": "k", "prompt": "q", "conversation": "d"},
    ),
    (Curate, {"pool": "p", "mixture": MIXTURE}, {"pool": "q", "mixture": MIXTURE | {"seed": 2}}),
    (Train, {"job": JOB}, {"job": JOB | {"seed": 2}}),
    (
        Observe,
        {"run": "r", "round": 1, "settings": "s", "pool": "p"},
        {"run": "q", "round": 2, "settings": "t", "pool": "q"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields", "others"), CHANGES, ids=lambda v: getattr(v, "__name__", "")
)
def test_the_key_of_a_step_changes_with_each_input_and_with_the_version(kind, fields, others):
    assert set(fields) | {"kind", "version"} == set(kind.model_fields)
    step = kind(**fields)
    keys = {step.key}
    for name, other in others.items():
        keys.add(kind(**{**fields, name: other}).key)
    keys.add(kind(**fields, version=step.version + 1).key)
    assert len(keys) == len(others) + 2
    assert kind(**fields).key == step.key


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": SftRecipe(epochs=2)},
        {"inputs": {"base": "b", "training_set": "u"}},
        {"inputs": {"base": "c", "training_set": "t"}},
        {"start_from": "adapter"},
        {"seed": 2},
    ],
)
def test_all_that_decides_what_a_training_yields_is_in_its_key(change):
    assert Train(job=JOB).key != Train(job=JOB | change).key


def test_steps_of_two_kinds_never_share_a_key():
    kinds = [step.model_fields["kind"].default for step in STEPS]
    assert len(set(kinds)) == len(kinds)


def test_a_place_is_a_label_and_not_part_of_the_identity(steps, journal, training, adapter):
    steps.at(1, "one").run(training(), lambda: Outcome(adapter(1)))
    assert steps.at(2, "two").run(training(), lambda: Outcome(adapter(2))) == adapter(1)
    assert [step.place for step in journal.steps(Train)] == [Place(1, "one")]


@pytest.mark.parametrize("column", ["result", "inputs"])
def test_an_unknown_field_in_a_stored_step_is_damage_with_its_file_and_row(
    steps, journal, training, adapter, column
):
    """As another release would write it: the row's own checksum is right."""
    for number in range(2):
        steps.run(training(number), lambda n=number: Outcome(adapter(n)))
    folder = journal.folder
    with sqlite3.connect(folder / FILE) as db:
        db.execute(f"""update steps set {column} = '{{"extra":1,' || substr({column}, 2)
                       where seq = 2""")
        row = db.execute(f"select {COLUMNS['steps']} from steps where seq = 2").fetchone()
        db.execute("update steps set checksum = ? where seq = 2", (checksum(row),))
    assert journal.check() == []
    assert journal.find(training(0)).result == adapter(0)
    with pytest.raises(DamageError) as caught:
        journal.steps(Train)
    assert f"{folder / FILE}: steps row 2" in str(caught.value)
    assert "extra" in str(caught.value)
    if column == "result":
        with pytest.raises(DamageError, match=r"steps row 2"):
            steps.run(training(1), lambda: Outcome(adapter(9)))


def test_an_unknown_field_in_a_stored_event_is_damage_with_its_file_and_row(
    steps, journal, training, adapter
):
    steps.run(training(), lambda: Outcome(adapter(), [TrainedEvent(adapter=adapter())]))
    with sqlite3.connect(journal.folder / FILE) as db:
        db.execute("""update events set payload = '{"extra":1,' || substr(payload, 2)""")
        row = db.execute(f"select {COLUMNS['events']} from events").fetchone()
        db.execute("update events set checksum = ?", (checksum(row),))
    with pytest.raises(DamageError, match=rf"{journal.folder / FILE}: events row 1: .*"):
        journal.events()


def test_many_steps_run_side_by_side_and_are_recorded_as_they_end(
    steps, journal, training, adapter
):
    together = threading.Barrier(3)

    def effect(number):
        def run():
            together.wait(timeout=30)
            while number and journal.find(training(number - 1)) is None:
                pass  # until the one before it is recorded, which must not wait for this one
            made = adapter(number)
            return Outcome(made, [TrainedEvent(adapter=made)], usage=Usage(trained=20))

        return run

    reserve = Usage(trained=30)
    tasks = [Task(training(n), effect(n), reserve, trial=f"trial {n}") for n in (2, 0, 1)]
    found = steps.at(4).run_many([*tasks, tasks[0]])
    assert found == [adapter(2), adapter(0), adapter(1), adapter(2)]
    assert journal.ledger() == (100, 0, 60)
    rows = journal.rows()
    assert [row.place for row in rows] == [Place(4, f"trial {n}") for n in (2, 0, 1)]
    ended = [event.record.adapter.digest for event in journal.events()]
    assert ended == ["adapter 0", "adapter 1", "adapter 2"]
    assert steps.run_many([Task(training(1), _never)]) == [adapter(1)]


def _never():
    raise AssertionError("a step that is done ran again")


def test_many_steps_are_reserved_together_or_not_at_all(steps, journal, training):
    reserve = Usage(trained=60)
    with pytest.raises(BudgetError, match="train needs 60 tokens"):
        steps.run_many([Task(training(n), _never, reserve) for n in range(2)])
    assert journal.ledger() == (100, 0, 0)
    assert journal.rows() == []


def test_a_failure_among_many_keeps_what_the_others_made(steps, journal, training, adapter):
    def fails():
        raise TrainingError("no luck", "hang")

    def breaks():
        raise PausedError("the endpoint is down")

    def works():
        return Outcome(adapter(), usage=Usage(trained=10))

    reserve = Usage(trained=20)
    effects = (works, fails)
    found = steps.run_many([Task(training(n), run, reserve) for n, run in enumerate(effects)])
    assert found[0] == adapter()
    assert isinstance(found[1], TrainingError)
    assert [row.state for row in journal.rows()] == ["done", "failed"]
    effects = (_never, works, breaks, works)
    with pytest.raises(PausedError, match="endpoint is down"):
        steps.run_many([Task(training(n), run, reserve) for n, run in enumerate(effects)])
    assert [row.state for row in journal.rows()] == ["done", "done", "intent", "done"]
    assert journal.ledger() == (100, 20, 30)


def test_many_steps_are_not_begun_if_the_run_is_to_stop(journal, training):
    stopped = Steps(journal, Store(journal.folder), lambda: True)
    with pytest.raises(StopRequested, match="stopped before train"):
        stopped.run_many([Task(training(n), _never) for n in range(2)])
    assert journal.rows() == []
