"""Nothing that is done is lost, and nothing that is paid is paid twice.

Kills, lost power, races, damage, a full disk and the token budget.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.faults_io import Disk, Points, in_child, install
from benchmarks.figures import Rows, figure
from benchmarks.standins import ALL_METHODS, StandIn, Witness, outcome
from mosaic.app.verify import verify
from mosaic.app.views.report_data import report_data
from mosaic.core import steps as steps_module
from mosaic.core.errors import BudgetError, DamageError, HeldError, MosaicError
from mosaic.core.journal import Journal
from mosaic.core.lock import LOCK
from mosaic.core.rows import Calls, Place
from mosaic.core.store import FOLDER, Store
from mosaic.core.tables import FILE
from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.events import ChangedEvent, EventRecord, FailedEvent, TrainedEvent
from mosaic.core.types.inputs import InputDigests, RunRecord
from mosaic.core.types.records import Train
from mosaic.core.types.runs import TRAINING_SET, Adapter, SftRecipe, TrainJob
from mosaic.core.types.step_inputs import StepInputs

AnyInputs = StepInputs[FrozenModel]
# Plans a round of the runs that try several.
CANDIDATES = 3
# So often it is said how many points were tried.
TOLD_EVERY = 100
NO_INPUTS = InputDigests(pool="", base_model="", suites={}, judge="")
RECORD = RunRecord(run={}, inputs=NO_INPUTS)
ADAPTER = Adapter(digest="0", base="0", tokens=0, supervised=0, steps=0, loss=0.0, seconds=0.0)


def training(label: str) -> Train:
    """A training step, told from others by its label."""
    return Train(job=TrainJob(recipe=SftRecipe(), inputs={TRAINING_SET: label}, seed=1))


def memory() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory, if there is one: a kill spares the page cache, so disks only add time."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def watched(run: Callable[[], None], witness: Witness) -> None:
    """Run with a line in the witness for each step that is begun anew and for each that is done."""
    begin, finish = Journal.begin_many, Journal.finish

    def noting_begin(self: Journal, begun: Sequence[tuple[AnyInputs, Place, int]]) -> None:
        begin(self, begun)
        for inputs, _, _ in begun:
            witness.note(f"begin {inputs.key}")

    def noting_finish(
        self: Journal,
        inputs: AnyInputs,
        result: FrozenModel,
        events: Sequence[EventRecord] = (),
        spent: int = 0,
        seconds: float = 0.0,
        calls: Sequence[Calls] = (),
    ) -> None:
        finish(self, inputs, result, events, spent, seconds, calls)
        witness.note(f"done {inputs.key}")

    with (
        patch.object(Journal, "begin_many", noting_begin),
        patch.object(Journal, "finish", noting_finish),
    ):
        run()


def repeated(lines: list[str]) -> int:
    """Steps that were begun again after they had been done."""
    done: set[str] = set()
    again = 0
    for line in lines:
        what, _, key = line.partition(" ")
        if what == "done":
            done.add(key)
        elif what == "begin" and key in done:
            again += 1
    return again


def _start(
    standin: StandIn, folder: Path, witness: Witness, prepare: Callable[[], Points]
) -> tuple[int, int]:
    """One start of the controller in a child; its exit code and how many points it passed.

    The number of points is 0 if it was killed.
    """
    counted = folder.parent / "points"

    def work() -> None:
        points = prepare()
        watched(lambda: standin.run(folder, witness), witness)
        counted.write_text(str(points.count))

    counted.unlink(missing_ok=True)
    code = in_child(work)
    return code, int(counted.read_text()) if counted.exists() else 0


def _uninterrupted(standin: StandIn, base: Path, root: Path) -> tuple[JsonObject, int]:
    """The outcome of a run without faults, and its number of points."""
    folder = root / "whole" / "run"
    shutil.copytree(base, folder)

    def prepare() -> Points:
        points = Points()
        install(points)
        return points

    code, count = _start(standin, folder, Witness(root / "whole" / "witness"), prepare)
    if code:
        raise RuntimeError(f"the run without faults ended with {code}")
    return outcome(folder), count


def crash_points(standin: StandIn, every: int, power: bool, seed: int = 1) -> dict[str, int]:
    """Kill at every n-th point and the recovery at a random one, then finish; what went wrong."""
    chance = random.Random(seed)
    found = {"points": 0, "kills": 0, "unequal": 0, "repeated": 0}
    with memory() as name:
        root = Path(name)
        base = root / "base"
        standin.create(base)
        expected, total = _uninterrupted(standin, base, root)
        for number, at in enumerate(range(1, total + 1, every)):
            trial = root / "trial"
            folder, witness = trial / "run", Witness(trial / "witness")
            shutil.copytree(base, folder)
            variant = ("drop", "half", "names")[number % 3]

            def prepare(
                kill_at: int, folder: Path = folder, variant: str = variant
            ) -> Callable[[], Points]:
                def make() -> Points:
                    disk = Disk(folder, variant, seed) if power else None
                    points = Points(kill_at, disk.forget if disk else lambda: None)
                    install(points, disk)
                    return points

                return make

            for kill_at in (at, chance.randrange(1, total)):
                code, _ = _start(standin, folder, witness, prepare(kill_at))
                found["kills"] += code == -signal.SIGKILL
                if number % 2:
                    for left in folder.glob("graph.sqlite*"):
                        left.unlink()
            code, _ = _start(standin, folder, witness, Points)
            found["points"] += 1
            found["unequal"] += code != 0 or outcome(folder) != expected or bool(verify(folder))
            found["repeated"] += repeated(witness.lines())
            shutil.rmtree(trial)
            if found["points"] % TOLD_EVERY == 0:  # it takes long: what is known is said
                print(f"point {at} of {total}: {found}", file=sys.stderr, flush=True)
    return found


def _lab_run(folder: Path, kill_after: float | None) -> float:
    """Start or resume the real laboratory's run, killed after so many seconds; how long it ran."""
    settings = ["rounds=2", "calibration.repeats=1"]
    command = [sys.executable, "-m", "mosaic", "run", "lab", "--run-dir", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        if child.wait(timeout=kill_after):
            raise RuntimeError(f"the laboratory's run ended with {child.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return time.monotonic() - started


def _lab_result(folder: Path) -> object:
    data = report_data(folder)
    rounds = []
    for each in data.rounds:
        rounds.append((each.plan, each.scores, each.adapter, each.accepted))
    return rounds, data.audit, data.budget.spent


def _lab_kills(count: int) -> int:
    """Runs of the real laboratory that end unlike an uninterrupted one, killed at random times."""
    chance = random.Random(7)
    unequal = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seconds = _lab_run(root / "whole", None)
        expected = _lab_result(root / "whole")
        for number in range(count):
            folder = root / f"run{number}"
            _lab_run(folder, chance.uniform(0.1, 0.95) * seconds)
            if not (folder / FILE).exists():
                shutil.rmtree(folder, ignore_errors=True)
            _lab_run(folder, None)
            unequal += _lab_result(folder) != expected or bool(verify(folder))
    return unequal


def _small() -> StandIn:
    """Four rounds with every method: every kind of step, and few enough points to try them all."""
    objectives = ("over_refusal", "instruction_following")
    tokens = "budget.tokens_per_round=24000"
    return StandIn.make(*ALL_METHODS, tokens, per_slice=1, objectives=objectives)


def _several() -> StandIn:
    """A round of three candidates, trained at once in threads."""
    return StandIn.make(f"candidates={CANDIDATES}", "rounds=1", per_slice=1)


def crash(quick: bool) -> Rows:
    """`kill -9` at write points of a four-round run, and a second time in the recovery.

    The same of a run with several candidates a round. Half of the killed runs also lose their
    checkpoint. Unless quick, the real laboratory is killed at random times too.
    """
    rows = []
    if not quick:
        what = "the real laboratory killed at 10 random times: unequal"
        rows.append(figure(what, _lab_kills(10), "of 10", at_most=0))
    for standin, what in ((_small(), "kill -9"), (_several(), f"kill -9, k = {CANDIDATES}")):
        found = crash_points(standin, 40 if quick else 1, power=False)
        tried = f"{what}: points tried, each with a second kill in recovery"
        unequal = f"{what}: resumed runs unlike the uninterrupted one"
        rows += [
            figure(tried, found["points"], "points"),
            figure(f"{what}: kills", found["kills"], "kills"),
            figure(unequal, found["unequal"], "runs", at_most=0),
            figure(f"{what}: completed steps repeated", found["repeated"], "steps", at_most=0),
        ]
    return rows


def power_loss(quick: bool) -> Rows:
    """The same, but what was not flushed is taken away at each kill, in three ways."""
    rows = []
    for standin, what in ((_small(), "power loss"), (_several(), f"power loss, k = {CANDIDATES}")):
        found = crash_points(standin, 40 if quick else 1, power=True)
        unequal = f"{what}: resumed runs unlike the uninterrupted one"
        rows += [
            figure(f"{what}: points tried", found["points"], "points"),
            figure(unequal, found["unequal"], "runs", at_most=0),
            figure(f"{what}: completed steps repeated", found["repeated"], "steps", at_most=0),
        ]
    return rows


def races(quick: bool) -> Rows:
    """Two controllers start at once on one run; one wakes up after another took its run over."""
    standin = StandIn.make("rounds=1", per_slice=4)
    doubled, slowest, unnamed, died = 0, 0.0, 0, 0
    count = 20 if quick else 200
    with memory() as name:
        root = Path(name)
        standin.create(root / "base")
        for _ in range(count):
            trial = root / "trial"
            folder, witness = trial / "run", Witness(trial / "witness")
            shutil.copytree(root / "base", folder)
            start = time.time() + 0.05
            verdicts = [trial / "a", trial / "b"]

            def contend(
                verdict: Path,
                start: float = start,
                folder: Path = folder,
                witness: Witness = witness,
            ) -> None:
                while time.time() < start:
                    pass
                began = time.monotonic()
                try:
                    watched(lambda: standin.run(folder, witness), witness)
                    verdict.write_text("ran")
                except HeldError as error:
                    verdict.write_text(f"held {time.monotonic() - began} {error}")

            threads = []
            for verdict in verdicts:
                work = partial(contend, verdict)
                threads.append(threading.Thread(target=in_child, args=(work,)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            texts = [path.read_text() if path.exists() else "died" for path in verdicts]
            losers = [text for text in texts if text.startswith("held")]
            # Both may run, one after the other: then the second finds nothing to do.
            died += "died" in texts
            for text in losers:
                slowest = max(slowest, float(text.split()[1]))
                unnamed += "process" not in text
            doubled += repeated(witness.lines())
            shutil.rmtree(trial)
        commits = sum(_zombie(standin, root) for _ in range(5 if quick else 50))
    return [
        figure(f"{count} races: steps doubled", doubled, "steps", at_most=0),
        figure("races in which a controller died", died, "races", at_most=0),
        figure("races: the slowest loser", slowest, "s", at_most=1),
        figure("races: losers that do not name the holder", unnamed, "losers", at_most=0),
        figure("commits of a woken zombie", commits, "commits", at_most=0),
    ]


def _zombie(standin: StandIn, root: Path) -> int:
    """What a controller commits that slept while another took its run over, by a new lock file."""
    folder = root / "zombie"
    standin.create(folder)
    first = Journal.open(folder)
    first.acquire()
    open_step, late = training("open"), RunRecord(run={"late": 1}, inputs=NO_INPUTS)
    first.begin(open_step, Place(1))
    (folder / LOCK).unlink()
    second = Journal.open(folder)
    second.acquire()
    commits = 0
    for act in (
        lambda: first.finish(open_step, ADAPTER, [TrainedEvent(adapter=ADAPTER)]),
        lambda: first.begin(training("another"), Place(1)),
        lambda: first.fail(open_step, FailedEvent(step="train", reason="late")),
        lambda: first.change(late, ChangedEvent(changes=[]), 1),
    ):
        try:
            act()
            commits += 1
        except HeldError:
            pass
    first.close()
    second.close()
    shutil.rmtree(folder)
    return commits


def corruption(quick: bool) -> Rows:
    """Flipped bits and cuts in the files of a finished run: found and named, or harmless."""
    standin = StandIn.make("rounds=2", per_slice=4)
    chance = random.Random(3)
    wrong, silent, harmless = 0, 0, 0
    count = 600 if quick else 20_000
    with memory() as name:
        folder = Path(name) / "run"
        standin.create(folder)
        standin.run(folder, Witness(Path(name) / "witness"))
        expected = outcome(folder)
        objects = sorted(p for p in (folder / FOLDER).rglob("*") if p.is_file())
        journal = folder / FILE
        for number in range(count):
            path = journal if number % 2 else chance.choice(objects)
            data = path.read_bytes()
            path.write_bytes(_damaged(data, chance, cut=number % 10 == 0))
            loaded = _loaded(folder, path)
            if loaded == "refused":
                silent += not verify(folder)
            elif path == journal:
                wrong += loaded != expected
                harmless += loaded == expected
            else:
                wrong += 1
            path.write_bytes(data)
    return [
        figure("damaged files loaded as something else", wrong, f"of {count:,}", at_most=0),
        figure("harmful damage that `verify` does not name", silent, f"of {count:,}", at_most=0),
        figure("damage to bytes that nothing reads", harmless, f"of {count:,}"),
    ]


def _damaged(data: bytes, chance: random.Random, cut: bool) -> bytes:
    """The data cut at a random place, or with one bit flipped there."""
    at = chance.randrange(len(data))
    if cut:
        return data[:at]
    return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


def _loaded(folder: Path, path: Path) -> object:
    """What a controller makes of the damage: `refused`, the outcome of the run, or `accepted`."""
    try:
        if path.name == FILE:
            journal = Journal.open(folder)
            try:
                broken = journal.check()
            finally:
                journal.close()
            return "refused" if broken else outcome(folder)
        relative = path.relative_to(folder / FOLDER)
        Store(folder).path(relative.parts[0])
        return "accepted"
    except (DamageError, MosaicError, UnicodeDecodeError, ValueError):
        return "refused"


def disk_full(quick: bool) -> Rows:
    """A disk that fills up at 30 levels: a pause, and the same result once there is room."""
    standin = StandIn.make("rounds=2", per_slice=4)
    dirty, unequal, paused = 0, 0, 0
    levels = 6 if quick else 30
    with memory() as name:
        root = Path(name)
        base = root / "base"
        standin.create(base)
        expected, _ = _uninterrupted(standin, base, root)
        whole = root / "whole" / "run"
        filed = [path for path in (whole / FOLDER).rglob("*") if path.is_file()]
        store_bytes = sum(path.stat().st_size for path in filed)
        pages = (whole / FILE).stat().st_size // 4096
        steps_module.MIN_ROOM = 0
        for level in range(levels):
            trial = root / "trial"
            folder, witness = trial / "run", Witness(trial / "witness")
            shutil.copytree(base, folder)
            share = (level // 2 + 1) / (levels // 2 + 1)
            room = int(store_bytes * share) if level % 2 == 0 else None
            limit = 14 + int((pages - 14) * share) if level % 2 else None

            def prepare(room: int | None = room, limit: int | None = limit) -> Points:
                install(Points(), room=room, pages=limit)
                return Points()

            code, _ = _start(standin, folder, witness, prepare)
            paused += code == 6
            dirty += code not in (0, 6)
            code, _ = _start(standin, folder, witness, Points)
            unequal += code != 0 or outcome(folder) != expected or repeated(witness.lines()) > 0
            shutil.rmtree(trial)
    unlike = "unlike the uninterrupted run after space returns"
    return [
        figure(f"a disk full at {levels} levels: pauses", paused, "runs", at_least=levels * 0.8),
        figure("a disk full: ends that are not a clean pause", dirty, "runs", at_most=0),
        figure(f"a disk full: {unlike}", unequal, "runs", at_most=0),
    ]


def overspend(quick: bool) -> Rows:
    """Reservations and settlements in sequence, in eight threads with a journal each or with one
    for all, and in killed processes.
    """
    count = 4_000 if quick else 100_000
    cap, over, tried = 1_000, 0, 0
    errors: list[str] = []
    chance = random.Random(5)
    with memory() as name:
        root = Path(name)

        def act(journal: Journal, label: str) -> None:
            amount = chance.randrange(1, 40)
            step = training(label)
            try:
                journal.begin(step, Place(1), amount)
            except BudgetError:
                return
            if chance.random() < 0.3:
                journal.fail(step, FailedEvent(step="train", reason="no luck"))
            else:
                journal.finish(step, ADAPTER, spent=chance.randrange(amount + 1))

        def check(journal: Journal) -> int:
            limit, held, spent = journal.ledger()
            return int(held < 0 or spent < 0 or held + spent > limit)

        for block in range(count // 400):
            folder = root / f"run{block}"
            journal = Journal.create(folder, f"run{block}", RECORD, cap)
            fence = journal.acquire()
            if block % 4 in (0, 2):
                shared = journal if block % 4 == 2 else None

                def many(
                    worker: int,
                    folder: Path = folder,
                    fence: int = fence,
                    shared: Journal | None = shared,
                ) -> None:
                    own = shared or Journal.open(folder)
                    own.fence = fence
                    try:
                        for i in range(50):
                            act(own, f"{worker}-{i}")
                    except Exception as error:  # whatever it is, it is what this figure counts
                        errors.append(repr(error))
                    if not shared:
                        own.close()

                threads = [threading.Thread(target=many, args=(w,)) for w in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            elif block % 4 == 1:
                journal.close()
                for kill in range(8):

                    def spender(folder: Path = folder, kill: int = kill) -> None:
                        install(Points(chance.randrange(20, 300)))
                        own = Journal.open(folder)
                        own.acquire()
                        for i in range(50):
                            act(own, f"{kill}-{i}")

                    in_child(spender)
                journal = Journal.open(folder)
                journal.acquire()
            else:
                for i in range(400):
                    act(journal, str(i))
            over += check(journal) or bool(journal.check())
            tried += 400
            journal.close()
            shutil.rmtree(folder)
    return [
        figure("overspends", over, f"of {tried:,} reservations", at_most=0),
        figure("errors in threads, half of them on one journal", len(errors), "errors", at_most=0),
    ]
