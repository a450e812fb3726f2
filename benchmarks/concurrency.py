"""Several at once over one run: threads share a journal, processes share a store."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

from benchmarks.durability import RECORD
from benchmarks.figures import Rows, figure
from mosaic.core.journal import Journal
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import FOLDER, Store
from mosaic.core.types.events import CheckedEvent
from mosaic.core.types.records import CheckPlan, PlanChecked
from mosaic.core.types.spending import Usage

THREADS = 8
# Every so many steps all threads ask for the same one at the same moment.
SHARED_EVERY = 100
RESERVED = 5


def concurrency(quick: bool) -> Rows:
    """Eight threads run 10,000 steps through one journal; two processes file 200 folders at once.

    A third process sweeps meanwhile.
    """
    return [*threads_over_one_journal(1_000 if quick else 10_000), *processes_over_one_store(200)]


# -- threads --------------------------------------------------------------------------------------


def run_step(steps: Steps, number: int, effect: Callable[[], None]) -> None:
    """Run one step with an event and a reservation; it spends 0 to 5 tokens."""

    def outcome() -> Outcome[PlanChecked]:
        effect()
        events = [CheckedEvent(plan=str(number), violations=[])]
        usage = Usage(trained=spent_by(number))
        return Outcome(PlanChecked(violations=[]), events, usage=usage)

    # A step whose result names no artifact, so that `verify` looks for none.
    inputs = CheckPlan(plan=str(number), observation="", pool="", rejected="")
    steps.run(inputs, outcome, reserve=Usage(trained=RESERVED))


def spent_by(number: int) -> int:
    return number % (RESERVED + 1)


class Crowd:
    """Threads that share one `Steps` and divide the numbers of the steps among themselves."""

    def __init__(self, steps: Steps, count: int) -> None:
        self.steps = steps
        self.count = count
        self.errors: list[str] = []
        self.effects: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(THREADS)

    def run(self) -> None:
        """All threads to their end."""
        threads = [threading.Thread(target=self._work, args=(n,)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, worker: int) -> None:
        for number in range(self.count):
            if number % SHARED_EVERY == 0:
                self._meeting.wait()
                self._ask(number)
            elif number % THREADS == worker:
                self._ask(number)

    def _ask(self, number: int) -> None:
        try:
            run_step(self.steps, number, lambda: self._note(number))
        except Exception as error:  # whatever it is, it is what this figure counts
            self.errors.append(f"{type(error).__name__}: {error}")

    def _note(self, number: int) -> None:
        with self._lock:
            self.effects[number] += 1


def threads_over_one_journal(count: int) -> Rows:
    """Errors, steps, repeated effects, damage and the ledger after so many steps by threads."""
    from mosaic.app.verify import verify

    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        folder = Path(name) / "run"
        journal = Journal.create(folder, "run", RECORD, cap=RESERVED * count)
        journal.acquire()
        crowd = Crowd(Steps(journal, Store(folder)), count)
        crowd.run()
        journal.close()
        broken = verify(folder)
        done = events = 0
        settled = False
        # A damaged journal can refuse to be read at all; then nothing counts as done.
        if not broken:
            journal = Journal.open(folder)
            done = len(journal.rows(state="done"))
            events = len(journal.events())
            _, held, spent = journal.ledger()
            settled = (held, spent) == (0, sum(map(spent_by, range(count))))
            journal.close()
    repeated = sum(times > 1 for times in crowd.effects.values())
    first = f", the first: {crowd.errors[0]}" if crowd.errors else ""
    what = f"{THREADS} threads over one journal"
    return [
        figure(f"{what}: errors{first}", len(crowd.errors), "errors", at_most=0),
        figure(f"{what}: steps done", done, f"of {count:,}", at_least=count),
        figure(f"{what}: events written", events, f"of {count:,}", at_least=count),
        figure(f"{what}: effects run twice", repeated, "effects", at_most=0),
        figure(f"{what}: findings of `verify`", len(broken), "findings", at_most=0),
        figure(f"{what}: ledger settled", int(settled), "1 is yes", at_least=1),
    ]


# -- processes ------------------------------------------------------------------------------------


def processes_over_one_store(count: int) -> Rows:
    """Errors, artifacts and leftovers after two processes filed the same folders at once."""
    start = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=_memory()) as name:
        root = Path(name)
        for number in range(count):
            _write_source(_source(root, number), str(number))
        _write_source(root / "abandoned", "never filed")
        barrier, over, errors = start.Barrier(2), start.Event(), start.Queue()
        sweeper = start.Process(target=sweep_leftovers, args=(root, over, errors))
        filers = [
            start.Process(target=file_sources, args=(root, count, barrier, errors))
            for _ in range(2)
        ]
        for process in (sweeper, *filers):
            process.start()
        ended = []
        while len(ended) < 2 * count:
            ended.append(errors.get(timeout=60))
        for process in filers:
            process.join()
        over.set()
        swept = int(errors.get(timeout=60))
        sweeper.join()
        found = [text for text in ended if text]
        store = Store(root / "run")
        readable = sum(_readable(store, _source(root, number)) for number in range(count))
        left = len(list((root / "run" / FOLDER).glob(".*.tmp")))
    first = f", the first: {found[0]}" if found else ""
    what = "two processes over one store"
    return [
        figure(f"{what}: errors{first}", len(found), f"of {2 * count}", at_most=0),
        figure(f"{what}: artifacts that can be read", readable, f"of {count}", at_least=count),
        figure(f"{what}: writers killed half way by the side", swept, "writers", at_least=1),
        figure(f"{what}: leftovers of these after the last sweep", left, "leftovers", at_most=0),
    ]


def file_sources(root: Path, count: int, barrier: Barrier, results: Queue[str]) -> None:
    """File every source folder, each at the same moment as the other process.

    There is one result for each: what went wrong, or an empty text.
    """
    for number in range(count):
        store = Store(root / "run")
        barrier.wait(timeout=60)
        try:
            store.put_folder(_source(root, number))
            results.put("")
        except Exception as error:  # whatever it is, it is what this figure counts
            results.put(f"{type(error).__name__}: {error}")


def sweep_leftovers(root: Path, over: Event, results: Queue[str]) -> None:
    """Kill a writer half way and sweep, until it is over. The result is how many were killed."""
    store = Store(root / "run")
    killed = 0
    while not over.is_set():
        _killed_writer(store, root / "abandoned")
        killed += 1
        store.sweep()
    results.put(str(killed))


def _killed_writer(store: Store, source: Path) -> None:
    """A process that ends while it files a folder: after the files, before the rename."""
    child = os.fork()
    if child == 0:
        os.rename = lambda source, target: os._exit(9)
        store.put_folder(source)
        os._exit(1)
    os.waitpid(child, 0)


def _source(root: Path, number: int) -> Path:
    return root / "sources" / str(number)


def _write_source(folder: Path, text: str) -> None:
    """A folder of three files in two levels."""
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "b", "deep/c"):
        (folder / name).write_text(f"{text} {name} " * 200)


def _readable(store: Store, source: Path) -> bool:
    """Whether what a source folder holds is filed, and passes the check of its digest."""
    from mosaic.core.errors import DamageError
    from mosaic.core.store import path_digest

    try:
        return store.path(path_digest(source)).is_dir()
    except DamageError:
        return False


def _memory() -> str | None:
    """A folder in memory, if this machine has one: no figure here is about the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
