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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from agent.approval import AutoApprover, HumanApprover
from benchmarks.durability import memory, repeated, watched
from benchmarks.figures import Rows, figure
from benchmarks.standins import StandIn, Witness
from mosaic.app.decisions import decide, pending
from mosaic.core.errors import MosaicError, UsageError, WaitingError
from mosaic.core.journal import Journal, _checksum
from mosaic.core.store import FOLDER
from mosaic.core.tables import FILE
from mosaic.core.types.base import JsonObject, canonical_json
from mosaic.core.types.plans import ActionPlan, Decision
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


def _copied_decision(source: Path, target: Path) -> None:
    """Copy every decision of one journal into another, row by row."""
    with sqlite3.connect(source / FILE) as db:
        rows = db.execute(
            "select seq, run, round, request, payload, checksum from decisions"
        ).fetchall()
    with sqlite3.connect(target / FILE) as db:
        db.executemany("insert or replace into decisions values (?, ?, ?, ?, ?, ?)", rows)


def _forge(journal: Journal, payload: JsonObject) -> None:
    """Write a decision past every check."""
    row = (
        journal._next("decisions"),
        journal.run,
        payload["round"],
        payload["request"],
        canonical_json(payload),
    )
    journal._db.execute("insert into decisions values (?, ?, ?, ?, ?, ?)", (*row, _checksum(row)))


def _attack(kind: str, standin: StandIn, folder: Path, other: Path, chance: random.Random) -> int:
    """Do something wrong to a waiting run; how many trainings may follow.

    That is none, or one if an approval won a fair race.
    """
    request = pending(folder)
    plan = ActionPlan.model_validate(request["plan"])
    if kind == "other_run":
        _copied_decision(other, folder)
        return 0
    if kind == "replay":
        journal = Journal.open(folder)
        payload = {
            "request": "0" * 64,
            "run": request["run"],
            "round": 0,
            "kind": "approve",
            "by": "x",
        }
        _forge(journal, payload)
        journal.close()
        return 0
    if kind == "other_round":
        journal = Journal.open(folder)
        payload = {
            **{n: request[n] for n in ("request", "run", "plan_digest", "state_digest")},
            "kind": "approve",
            "by": "x",
        }
        _forge(journal, {**payload, "round": request["round"] + 1})
        journal.close()
        return 0
    if kind == "other_plan":
        journal = Journal.open(folder)
        payload = {n: request[n] for n in ("request", "run", "round", "state_digest")}
        _forge(journal, {**payload, "plan_digest": "0" * 64, "kind": "approve", "by": "x"})
        journal.close()
        return 0
    if kind == "edited_after":
        decide(folder, "approve", by="x")
        swapped = dict(zip(plan.ratios, reversed(plan.ratios.values()), strict=True))
        changed = {**plan.json_data(), "ratios": swapped}
        (folder / FOLDER / request["plan_digest"]).write_text(json.dumps(changed))
        return 0
    if kind == "bad_edit":
        names = list(plan.ratios)
        wild = plan.model_copy(update={"ratios": {**dict.fromkeys(names, 0.0), names[0]: 1.0}})
        try:
            decide(folder, "edit", edited=wild, by="x")
        except UsageError:
            return 0
        return 1
    verdicts: list[str] = []
    choices = ["approve", "reject"]
    chance.shuffle(choices)

    def say(word: Literal["approve", "reject"]) -> None:
        try:
            decide(folder, word, by="x", reason="no")
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
    twice at once.
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
        decide(other, "approve", by="x")
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
                early += pending(folder)["round"] != 1
        effects = len(witness.lines()) - lines
        for number in range(2):
            with _clock(-number * 1e9):
                decide(folder, "approve", by="x")
                watched(lambda: _resume(standin, folder, witness), witness)
        journal = Journal.open(folder)
        finished = any(s.kind == "audit" and s.state == "done" for s in journal.steps())
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
        standin.approver = _StopAfter(rounds)
        _resume(standin, folder, witness)
        journal = Journal.open(folder)
        journal.acquire()
        with journal._transaction():
            for number in range(len(journal.events()), events):
                note = {"text": "something was said " * 4}
                journal._append(f"filler:{number}", number % rounds, "note", note)
        journal.close()
        seconds = [_first_step(folder, rounds, root / f"copy{i}") for i in range(1 if quick else 3)]
    size = f"{rounds} rounds and {events:,} events"
    what = f"first new step after the start, {size}, imports included"
    return [figure(what, statistics.median(seconds), "s", at_most=5)]


class _StopAfter(HumanApprover):
    """Approves the plans of the first rounds and leaves the rest to a person."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def decide(self, plan: ActionPlan, observation: Observation) -> Decision | None:
        if observation.round > self.rounds:
            return None
        return AutoApprover().decide(plan, observation)


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
    step = begin(self, *values, **named)
    if step.state != "done":
        print(time.monotonic() - started)
        sys.stdout.flush()
        import os
        os._exit(0)
    return step
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
