"""Nothing runs unapproved, waiting costs nothing, and a long run starts again at once."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from agent.approval import AutoApprover, HumanApprover, answer
from benchmarks.durability import memory, repeated, watched
from benchmarks.figures import Rows, figure
from benchmarks.standins import StandIn, Witness
from mosaic.app import runs
from mosaic.app.decisions import approve, pending, reject
from mosaic.app.wiring import run_digests
from mosaic.core.errors import MosaicError, UsageError, WaitingError
from mosaic.core.journal import Journal
from mosaic.core.steps import Outcome, Steps
from mosaic.core.store import FOLDER, Store
from mosaic.core.tables import FILE, checksum
from mosaic.core.types.base import canonical_json
from mosaic.core.types.events import ChangedEvent
from mosaic.core.types.plans import ActionPlan, ApprovalRequest, Decision
from mosaic.core.types.records import Audit, Retain, Retained
from mosaic.core.types.runs import Observation


def waiting_run(standin: StandIn, root: Path, name: str = "run") -> tuple[Path, Witness]:
    """A run in human mode that waits for the approval of round 1."""
    folder, witness = root / name, Witness(root / f"{name}.witness")
    standin.create(folder)
    until_asked(standin, folder, witness)
    return folder, witness


def until_asked(standin: StandIn, folder: Path, witness: Witness) -> None:
    """One start of the controller, which must end in a question."""
    try:
        standin.run(folder, witness)
    except WaitingError:
        return
    raise RuntimeError("the run did not wait for approval")


def trainings(witness: Witness) -> int:
    """How many trainings really ran."""
    return sum(line.startswith("train") for line in witness.lines())


def _resume(standin: StandIn, folder: Path, witness: Witness) -> str:
    """How one start of the controller ended."""
    try:
        standin.run(folder, witness)
        return "finished"
    except MosaicError as error:
        return type(error).__name__


def _resumed(standin: StandIn, folder: Path, witness: Witness) -> Callable[[], None]:
    """One start of the controller to be made, however it ends."""

    def resumed() -> None:
        _resume(standin, folder, witness)

    return resumed


def _copied_decision(source: Path, target: Path) -> None:
    """Copy every decision of one journal into another, row by row."""
    with sqlite3.connect(source / FILE) as db:
        rows = db.execute(
            "select seq, run, round, request, payload, checksum from decisions"
        ).fetchall()
    with sqlite3.connect(target / FILE) as db:
        db.executemany("insert or replace into decisions values (?, ?, ?, ?, ?, ?)", rows)


def _forge(folder: Path, decision: Decision) -> None:
    """Write a decision past every check."""
    text = canonical_json(decision.json_data())
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        (number,) = db.execute("select coalesce(max(seq), 0) + 1 from decisions").fetchone()
        row = (number, decision.run, decision.round, decision.request, text)
        db.execute("insert into decisions values (?, ?, ?, ?, ?, ?)", (*row, checksum(row)))


def _attack(kind: str, standin: StandIn, folder: Path, other: Path, chance: random.Random) -> int:
    """Do something wrong to a waiting run; how many trainings may follow.

    That is none, or one if an approval won a fair race.
    """
    request = pending(folder)
    plan = request.plans[0].plan
    if kind == "other_run":
        _copied_decision(other, folder)
        return 0
    approval = answer(request, "approve", "x", "")
    if kind == "replay":
        _forge(folder, approval.model_copy(update={"request": "0" * 64, "round": 0}))
        return 0
    if kind == "other_round":
        _forge(folder, approval.model_copy(update={"round": request.round + 1}))
        return 0
    if kind == "other_plan":
        _forge(folder, approval.model_copy(update={"plans": ["0" * 64]}))
        return 0
    if kind == "edited_after":
        approve(folder, request.request, by="x")
        swapped = dict(zip(plan.ratios, reversed(plan.ratios.values()), strict=True))
        changed = {**plan.json_data(), "ratios": swapped}
        (folder / FOLDER / request.plans[0].plan_digest).write_text(json.dumps(changed))
        return 0
    if kind == "bad_edit":
        names = list(plan.ratios)
        wild = plan.model_copy(update={"ratios": {**dict.fromkeys(names, 0.0), names[0]: 1.0}})
        try:
            approve(folder, request.request, edited=wild, by="x")
        except UsageError:
            return 0
        return 1
    verdicts: list[str] = []
    choices = ["approve", "reject"]
    chance.shuffle(choices)

    def say(word: Literal["approve", "reject"]) -> None:
        try:
            decide = approve if word == "approve" else reject
            decide(folder, request.request, by="x", reason="no")
            verdicts.append(word)
        except UsageError:
            pass

    threads = [threading.Thread(target=say, args=(word,)) for word in choices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1 if verdicts == ["approve"] else 0 if verdicts == ["reject"] else -1


def approvals(quick: bool) -> Rows:
    """Decisions that are stale, of another run, forged, on another plan than would run, or made
    twice at once; then decisions that name another question than the one that waits.
    """
    standin = StandIn.make("rounds=1", per_slice=4)
    standin.approver = HumanApprover()
    kinds = ("other_run", "replay", "other_round", "other_plan", "edited_after", "bad_edit", "race")
    chance = random.Random(11)
    wrong, count = 0, 70 if quick else 1_000
    with memory() as name:
        root = Path(name)
        base, seen = waiting_run(standin, root, "base")
        other, _ = waiting_run(standin, root, "other")
        approve(other, pending(other).request, by="x")
        before = trainings(seen)
        for number in range(count):
            folder = root / "trial" / "run"
            shutil.copytree(base, folder)
            witness = Witness(root / "trial" / "witness")
            allowed = _attack(kinds[number % len(kinds)], standin, folder, other, chance)
            _resume(standin, folder, witness)
            wrong += trainings(witness) != allowed
            shutil.rmtree(root / "trial")
    return [
        figure("executions of what was not approved", wrong, f"of {count:,} trials", at_most=0),
        figure("trainings before the first approval (calibration)", before, "trainings"),
        *stale_decisions(quick),
    ]


@dataclass
class _Situation:
    """A run that stands somewhere, and ids that a person may still have on the screen.

    `right` is the question that waits, if one does. No other id may be decided on. `plan` breaks
    no constraint there.
    """

    name: str
    folder: Path
    stale: list[str]
    right: ApprovalRequest | None
    plan: ActionPlan


def _situations(root: Path) -> list[_Situation]:
    """Runs whose waiting question is not the one that a person saw before."""
    human = HumanApprover()
    static = StandIn.make("rounds=3", "planner.kind=static", per_slice=4)
    drawn = StandIn.make("rounds=1", per_slice=4)
    changed = StandIn.make("rounds=1", "methods.sft.learning_rate=0.009", per_slice=4)
    static.approver, drawn.approver, changed.approver = human, human, human
    found: list[_Situation] = []

    def add(name: str, folder: Path, stale: list[str], right: ApprovalRequest | None) -> None:
        plan = (right or first).plans[0].plan
        found.append(_Situation(name, folder, stale, right, plan))

    folder, witness = waiting_run(static, root / "round")
    first = pending(folder)
    approve(folder, first.request, by="x")
    until_asked(static, folder, witness)
    second = pending(folder)
    if first.plans[0].plan_digest != second.plans[0].plan_digest:
        raise RuntimeError("two rounds of the static planner should ask about the same plan")
    add("an earlier round, the same plan", folder, [first.request], second)

    folder, witness = waiting_run(drawn, root / "attempt")
    first = pending(folder)
    reject(folder, first.request, by="x", reason="another, please")
    until_asked(drawn, folder, witness)
    add("an earlier attempt", folder, [first.request], pending(folder))

    folder, witness = waiting_run(drawn, root / "changed")
    first = pending(folder)
    _accept(folder, changed)
    until_asked(changed, folder, witness)
    add("before a change", folder, [first.request], pending(folder))

    folder, witness = waiting_run(drawn, root / "not-asked-yet")
    first = pending(folder)
    _accept(folder, changed)
    add("a change, not asked yet", folder, [first.request], None)

    folder, _ = waiting_run(drawn, root / "here")
    namesake, _ = waiting_run(drawn, root / "there")
    other, right = pending(namesake), pending(folder)
    if folder.name != namesake.name or other.plans != right.plans:
        raise RuntimeError("two runs of one name should ask about the same plan")
    add("another run of the same name", folder, [other.request], right)

    id_ = right.request
    cut = [id_[:length] for length in range(8)]
    bent = [id_ + "0", " " + id_, id_[1:], id_[:20] + "x", "0" * 64]
    add("a cut or bent id", folder, [*cut, *bent], right)
    return found


def _accept(folder: Path, changed: StandIn) -> None:
    """Accept another config for a run, as `resume --accept-changes` does."""
    journal = Journal.open(folder)
    journal.acquire()
    digests = run_digests(changed.config, changed.inputs)
    lines = runs.changes(journal, changed.config, digests)
    runs.accept_changes(journal, changed.config, digests, lines)
    journal.close()


def _recorded(folder: Path) -> int:
    """How many decisions of persons a run holds."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        return int(db.execute("select count(*) from decisions").fetchone()[0])


def _by_command(folder: Path, verb: str, request: str) -> int:
    """Decide by the command line; its exit code."""
    command = [sys.executable, "-m", "mosaic", verb, str(folder), "--request", request]
    if verb == "reject":
        command += ["--reason", "no"]
    return subprocess.run(command, capture_output=True).returncode


def _decide(folder: Path, verb: str, request: str, plan: ActionPlan) -> bool:
    """Decide by the library; whether it was refused with the error of a wrong question."""
    try:
        if verb == "reject":
            reject(folder, request, by="x", reason="no")
        else:
            approve(folder, request, by="x", edited=plan if verb == "edit" else None)
    except UsageError:
        return True
    return False


def stale_decisions(quick: bool) -> Rows:
    """200 decisions on questions that do not wait (any more): of earlier rounds with the same plan,
    earlier attempts, before a change, of another run of the same name, on cut ids.
    """
    count, commands = 200, 4 if quick else 20
    recorded, accepted, wrong_exit, right = 0, 0, 0, 0
    with memory() as name:
        situations = _situations(Path(name))
        for number in range(count):
            there = situations[number % len(situations)]
            turn = number // len(situations)
            request = there.stale[turn % len(there.stale)]
            before = _recorded(there.folder)
            if number % (count // commands) == 0:
                verb = ("approve", "reject")[turn % 2]
                wrong_exit += _by_command(there.folder, verb, request) != UsageError.exit_code
            else:
                verb = ("approve", "edit", "reject")[turn % 3]
                accepted += not _decide(there.folder, verb, request, there.plan)
            recorded += _recorded(there.folder) - before
        waits = [there for there in situations if there.right][:-1]
        for there in waits:
            assert there.right is not None
            approve(there.folder, there.right.request[:12], by="x")
            journal = Journal.open(there.folder)
            right += journal.decision(there.right.round, there.right.request) is not None
            journal.close()
    return [
        figure("recorded for another question", recorded, f"of {count} decisions", at_most=0),
        figure("decisions on another question that were not refused", accepted, "", at_most=0),
        figure("commands on another question without exit 2", wrong_exit, "", at_most=0),
        figure("recorded for the question that waits", right, "decisions", at_least=len(waits)),
    ]


def _clock(shift: float) -> AbstractContextManager[object]:
    """A context in which the wall clock is wrong by so many seconds."""
    real = time.time
    return patch("time.time", lambda: real() + shift)


def waiting(quick: bool) -> Rows:
    """A run that waits through restarts while the clock jumps ten years to and fro, and then goes
    on.
    """
    standin = StandIn.make("rounds=2", per_slice=4)
    standin.approver = HumanApprover()
    restarts = 10 if quick else 100
    early = 0
    with memory() as name:
        root = Path(name)
        folder, witness = waiting_run(standin, root)
        lines = len(witness.lines())
        for number in range(restarts):
            with _clock((10 if number % 2 else -10) * 365.25 * 86400):
                early += _resume(standin, folder, witness) != "WaitingError"
                early += pending(folder).round != 1
        effects = len(witness.lines()) - lines
        for number in range(2):
            with _clock(-number * 1e9):
                approve(folder, pending(folder).request, by="x")
                watched(_resumed(standin, folder, witness), witness)
        journal = Journal.open(folder)
        finished = bool(journal.steps(Audit))
        journal.close()
    what = f"effects repeated in {restarts} restarts while waiting"
    return [
        figure(what, effects, "effects", at_most=0),
        figure("restarts that did not wait for the same question", early, "restarts", at_most=0),
        figure("runs that went on when approved", int(finished), "of 1", at_least=1),
        figure("steps repeated after approval", repeated(witness.lines()), "steps", at_most=0),
    ]


def resume_speed(quick: bool) -> Rows:
    """Seconds from the start of the process to the first new step of a run with many rounds and
    events.
    """
    rounds, events = (10, 5_000) if quick else (100, 100_000)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        standin = StandIn.make(f"rounds={rounds + 1}", "keep=all", per_slice=4)
        folder, witness = root / "run", Witness(root / "witness")
        standin.create(folder)
        standin.approver = StopAfter(rounds)
        _resume(standin, folder, witness)
        journal = Journal.open(folder)
        journal.acquire()
        _fill(journal, rounds, events - len(journal.events()))
        journal.close()
        seconds = [_first_step(folder, rounds, root / f"copy{i}") for i in range(1 if quick else 3)]
    size = f"{rounds} rounds and {events:,} events"
    what = f"first new step after the start, {size}, imports included"
    return [figure(what, statistics.median(seconds), "s", at_most=5)]


def _fill(journal: Journal, rounds: int, count: int) -> None:
    """Add at least so many events to a journal, divided among its rounds."""
    steps = Steps(journal, Store(journal.folder))
    note = ChangedEvent(changes=["something was said " * 4])
    share = -(-count // rounds)

    def filled() -> Outcome[Retained]:
        return Outcome(Retained(dropped=[]), [note] * share)

    for number in range(rounds):
        steps.at(number).run(Retain(run="filler", round=number, drop=[]), filled)


class StopAfter(HumanApprover):
    """Approves the plans of the first rounds and leaves the rest to a person."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def decide(self, request: ApprovalRequest, observation: Observation) -> Decision | None:
        if observation.round > self.rounds:
            return None
        return AutoApprover().decide(request, observation)


SCRIPT = """
import sys, time
started = time.monotonic()
from pathlib import Path
from benchmarks.standins import StandIn, Witness
from agent.approval import AutoApprover
from mosaic.core.journal import Journal
standin = StandIn.make(f"rounds={int(sys.argv[2]) + 1}", "keep=all", per_slice=4)
begin = Journal.begin
def timed(self, *values, **named):
    begin(self, *values, **named)
    print(time.monotonic() - started)
    sys.stdout.flush()
    import os
    os._exit(0)
Journal.begin = timed
standin.run(Path(sys.argv[1]), Witness(Path(sys.argv[1] + ".witness")))
"""


def _first_step(folder: Path, rounds: int, copy: Path) -> float:
    """Seconds from the start of a process to its first new step, on a copy of the run."""
    shutil.copytree(folder, copy)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(copy), str(rounds)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])
