"""A run of many rounds, events and verdicts: what it costs to look at it.

Fifty rounds by the stand-ins, then 100,000 events and 100,000 verdicts through the journal's own
methods. A command's figure is the CPU time of its whole process; the page's are CPU time and bytes
of a request, after the first one has imported what pages need.

`candidates` makes a run of four plans a round, and measures what the controller takes while it goes on.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from agent.graph import run as run_graph
from agent.state import RunState, fold
from benchmarks.durability import memory
from benchmarks.figures import Rows, figure
from benchmarks.page import client
from benchmarks.standins import StandIn, Witness
from mosaic.core.journal import Journal
from mosaic.core.rows import Place, SmallStep
from mosaic.core.types.evaluation import Verdict
from mosaic.core.types.events import (
    CheckedEvent,
    EventRecord,
    ObservedEvent,
    PlannedEvent,
    ToolCall,
)
from mosaic.core.types.plans import ActionPlan, Violation
from mosaic.core.types.records import (
    AskVerdict,
    Observe,
    Observed,
    PlanProposed,
    ProposePlan,
    VerdictFiled,
)

OBJECTIVES = ("safety", "over_refusal", "instruction_following")
COMMANDS = (("status",), ("report", "--json"))
GROUP = 1_000  # verdicts that are written in one transaction


CANDIDATES = 4
ENDS = 10  # rounds at either end of a run that are compared


@dataclass(frozen=True)
class Size:
    """How long the run is."""

    rounds: int
    events: int
    verdicts: int


FULL = Size(rounds=50, events=100_000, verdicts=100_000)
QUICK = Size(rounds=10, events=10_000, verdicts=10_000)


def make_run(folder: Path, size: Size) -> None:
    """A finished run of the given size."""
    standin = StandIn.make(
        f"rounds={size.rounds}", "planner.kind=profile", per_slice=4, objectives=OBJECTIVES
    )
    standin.create(folder)
    standin.run(folder, Witness(folder.with_name("witness")))
    journal = Journal.open(folder)
    try:
        journal.acquire()
        names = list(standin.config.objectives)
        add_events(journal, fold(journal, names), size.events // size.rounds)
        add_verdicts(journal, size.rounds, size.verdicts // size.rounds)
    finally:
        journal.close()


def add_events(journal: Journal, state: RunState, count: int) -> None:
    """Give every planned round `count` events: plans with two tool calls, and their checks."""
    for round_ in state.rounds[1:]:
        plan = round_.plan
        if plan is None:
            raise RuntimeError(f"round {round_.round} has no plan")
        inputs = ProposePlan(
            run=journal.run,
            round=round_.round,
            attempt=1_000,
            observation="0" * 64,
            planner="standin",
            feedback=[],
        )
        journal.begin(inputs, Place(round_.round))
        result = PlanProposed(plan=plan.content_digest)
        journal.finish(inputs, result, attempts(plan, count))


def attempts(plan: ActionPlan, count: int) -> list[EventRecord]:
    """Events of a planner that proposes the same plan again and again, and is told why not."""
    digest = plan.content_digest
    events: list[EventRecord] = []
    for number in range(count // 2):
        slices = ToolCall(
            tool="show_slices",
            arguments={"objective": OBJECTIVES[number % 3], "worst": number % 7},
            result=[{"slice": f"slice_{i}", "mean": 2.5 + i / 10} for i in range(3)],
        )
        tried = ToolCall(tool="check_plan", arguments={"ratios": {**plan.ratios}}, result=[])
        planned = PlannedEvent(
            planner="standin", plan=plan, plan_digest=digest, calls=[slices, tried]
        )
        hint = f"attempt {number}: stay within 0.6 of the last plan"
        broken = Violation(path="ratios", rule="max_ratio_step", value=0.7, limit=0.6, hint=hint)
        events += [planned, CheckedEvent(plan=digest, violations=[broken])]
    return events


def add_verdicts(journal: Journal, rounds: int, count: int) -> None:
    """Give every round `count` verdicts of a judge."""
    items = {"refusal": {"refusal_full": 0, "refusal_partial": 1}, "help": {"help_direct": 1}}
    verdict = Verdict(status="ok", items=items, words="The answer helps, with one reservation.")
    filed = VerdictFiled(verdict=verdict, source="model")
    for round_ in range(1, rounds + 1):
        for first in range(0, count, GROUP):
            made = []
            for number in range(first, min(first + GROUP, count)):
                conversation = f"{round_:04d}-{number:08d}".ljust(64, "0")
                asked = AskVerdict(judge="1" * 64, prompt="2" * 64, conversation=conversation)
                made.append(SmallStep(inputs=asked, result=filed, seconds=0.4))
            journal.record(made, Place(round_))


def command_seconds(folder: Path, words: Sequence[str]) -> float:
    """CPU seconds of one command, imports included; the better of two tries."""
    tries = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "mosaic", words[0], str(folder), *words[1:]]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        tries.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(tries)


@dataclass(frozen=True)
class Request:
    """What one request for a page cost: seconds of CPU, and kilobytes of the answer."""

    seconds: float
    kilobytes: float
    text: str


class Pages:
    """The application in this process, asked as a browser asks."""

    def __init__(self, root: Path) -> None:
        self._web = client(root)

    def get(self, path: str) -> Request:
        """Ask for a page; raises RuntimeError if it does not open."""
        started = time.process_time()
        answer = self._web.get(path)
        seconds = time.process_time() - started
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.status_code} {answer.text[:200]}")
        return Request(seconds, len(answer.content) / 1000, answer.text)


def long_runs(quick: bool) -> Rows:
    """CPU of two commands, CPU and bytes of the page's first view and of its updates."""
    size = QUICK if quick else FULL
    with memory() as name:
        root = Path(name)
        make_run(root / "long", size)
        rows = []
        for words in COMMANDS:
            what = f"CPU of `{' '.join(words)}`, whole process"
            rows.append(figure(what, command_seconds(root / "long", words), "s", at_most=1))
        rows += page_rows(root, "long")
    return rows


def candidates(quick: bool) -> Rows:
    """CPU seconds a trial of a run of four plans a round: at its beginning, and at its end.

    Everything counts but training and generation, which the stand-ins do not do: planning, checks,
    curation, judging by rules, intervals, the journal.
    """
    rounds = ENDS if quick else FULL.rounds
    with memory() as name:
        folder = Path(name) / "run"
        each = cpu_of_rounds(folder, rounds)
    ends = min(ENDS, len(each) // 2)
    early, late = fmean(each[:ends]), fmean(each[-ends:])
    what = f"CPU a trial, k = {CANDIDATES}"
    return [
        figure(f"{what}, first {ends} of {rounds} rounds", early / CANDIDATES, "s", at_most=0.2),
        figure(f"{what}, last {ends} of {rounds} rounds", late / CANDIDATES, "s", at_most=0.2),
    ]


def cpu_of_rounds(folder: Path, rounds: int) -> list[float]:
    """CPU seconds of each planned round, from one approval to the next."""
    standin = StandIn.make(
        f"rounds={rounds}",
        f"candidates={CANDIDATES}",
        "planner.kind=profile",
        per_slice=4,
        objectives=OBJECTIVES,
    )
    standin.create(folder)
    approved: list[float] = []
    journal = Journal.open(folder)
    try:
        journal.acquire()
        context = standin.context(folder, journal, Witness(folder.with_name("witness")))

        def notify(text: str) -> None:
            if text.endswith("planned; curating"):
                approved.append(time.process_time())

        context.notify = notify
        run_graph(context, folder)
    finally:
        journal.close()
    return [later - earlier for earlier, later in pairwise(approved)]


def page_rows(root: Path, name: str) -> Rows:
    """The page of a run: its first view, an update after one step, and one in which all changed."""
    pages = Pages(root)
    pages.get("/")
    pages.get(f"/run/{name}")
    first = pages.get(f"/run/{name}")
    whole = pages.get(f"/run/{name}/live")
    marks = json.loads(whole.text)["marks"]
    have = " ".join(f"{section}:{mark}" for section, mark in marks.items())
    record_one(root / name)
    one = pages.get(f"/run/{name}/live?have={have}")
    rows = [
        figure("the page's first view", first.kilobytes, "KB", at_most=300),
        figure("CPU of the page's first view", first.seconds, "s", at_most=0.5),
    ]
    for what, update in (("after one step", one), ("of every section", whole)):
        rows += [
            figure(f"an update {what}", update.kilobytes, "KB", at_most=50),
            figure(f"CPU of an update {what}", update.seconds, "s", at_most=0.2),
        ]
    return rows


def record_one(folder: Path) -> None:
    """One more event in the last round, as a planner that is asked again would leave it."""
    journal = Journal.open(folder)
    try:
        journal.acquire()
        last = journal.begun_rounds()[-1]
        observed = Observe(run=journal.run, round=last, settings="3" * 64, pool="4" * 64)
        journal.begin(observed, Place(last))
        result = Observed(observation="0" * 64)
        journal.finish(observed, result, [ObservedEvent(observation="0" * 64)])
    finally:
        journal.close()
