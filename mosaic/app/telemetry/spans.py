"""A run as spans: run > round > plan > model call and tool call; curate, train, evaluate, wait.

They are read from the journal after the fact: spans of any run can be made at any time, and the
same run gives the same spans, ids included. Names of attributes are those of OpenTelemetry's
conventions for generative AI where there is one, else they begin with `mosaic.`. How steps are
placed in time is said in `timeline`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from agent.state import RunState
from mosaic.app.runs import config_of
from mosaic.app.telemetry.model_spans import PlanSpans
from mosaic.app.telemetry.span import Attributes, Span
from mosaic.app.telemetry.timeline import EVALUATE, MARK, PLAN, Timed, timeline
from mosaic.app.views.report_data import load
from mosaic.core.journal import Journal
from mosaic.core.rows import Event
from mosaic.core.store import Store
from mosaic.core.types.events import AskedEvent, DecidedEvent, PlannedEvent
from mosaic.core.types.records import AskPlanner


def spans_of(folder: Path, *, content: bool = False) -> list[Span]:
    """The spans of a run, each after its parent; none if nothing has happened yet.

    With `content` spans of model and tool calls hold what was sent and said.
    """
    journal, state = load(folder)
    try:
        return _RunSpans(journal, state, content).all()
    finally:
        journal.close()


class _RunSpans:
    """Makes the spans of one run whose journal is open."""

    def __init__(self, journal: Journal, state: RunState, content: bool) -> None:
        self.journal = journal
        self.state = state
        self.config = config_of(journal)
        self.plans = PlanSpans(self.config, Store(journal.folder), content)
        self.calls = journal.steps(AskPlanner)

    def all(self) -> list[Span]:
        steps = timeline(self.journal)
        if not steps:
            return []
        attributes: Attributes = {
            "mosaic.run": self.journal.folder.name,
            "mosaic.planner": self.config.planner.kind,
            "mosaic.objectives": list(self.config.objectives),
            "mosaic.finished": self.state.audit is not None,
        }
        start, end = _extent(steps)
        name = f"run {self.journal.folder.name}"
        run = Span(self.journal.run, None, name, start, end, attributes)
        found = [run]
        for number in sorted({step.round for step in steps}):
            found += self._round(run, number, [step for step in steps if step.round == number])
        return found

    def _round(self, run: Span, number: int, steps: Sequence[Timed]) -> Iterator[Span]:
        """The span of a round, and everything inside it."""
        start, end = _extent(steps)
        name = f"round {number}"
        round_ = run.child(name, name, start, end, self._outcome(number))
        yield round_
        events = self.journal.events(number)
        plans = [step.seq for step in steps if step.group == PLAN]
        for (group, trial), grouped in groupby(steps, key=lambda step: (step.group, step.trial)):
            together = list(grouped)
            if group == EVALUATE:
                yield from _evaluation(round_, trial, together)
            elif group == PLAN:
                for step in together:
                    yield from self._plan(round_, step, plans, events)
            elif group != MARK:
                for step in together:
                    yield _step(round_, step)
        yield from _waits(round_, events)

    def _plan(
        self, round_: Span, step: Timed, plans: Sequence[int], events: Sequence[Event]
    ) -> Iterator[Span]:
        """The spans of one plan: its calls were filed after it began and before the next did."""
        later = [seq for seq in plans if seq > step.seq]
        until = min(later, default=None)
        calls = []
        for call in self.calls:
            if call.place.round == step.round and step.seq < call.seq:
                if until is None or call.seq < until:
                    calls.append(call)
        event = None
        for found in events:
            if isinstance(found.record, PlannedEvent) and found.at == step.ended:
                event = found
        yield from self.plans.of(round_, step, calls, event)

    def _outcome(self, number: int) -> Attributes:
        """What came of a round: selection means, and whether it was accepted."""
        attributes: Attributes = {"mosaic.round": number}
        if number >= len(self.state.rounds):
            return attributes
        closed = self.state.rounds[number]
        attributes["mosaic.accepted"] = closed.accepted
        for objective, roles in closed.scores.items():
            score = roles.get("selection")
            if score is not None and score.mean is not None:
                attributes[f"mosaic.score.{objective}"] = score.mean
        return attributes


def _extent(steps: Sequence[Timed]) -> tuple[float, float]:
    return min(step.start for step in steps), max(step.end for step in steps)


def _step(parent: Span, step: Timed) -> Span:
    return parent.child(f"step {step.seq}", step.name, step.start, step.end, step.attributes)


def _evaluation(round_: Span, trial: str, steps: Sequence[Timed]) -> Iterator[Span]:
    """Answers and judgments of one model, as one span with a child per step."""
    start, end = _extent(steps)
    key = f"evaluate {steps[0].seq}"
    evaluation = round_.child(key, "evaluate", start, end, {"mosaic.trial": trial})
    yield evaluation
    for step in steps:
        yield _step(evaluation, step)


def _waits(round_: Span, events: Sequence[Event]) -> Iterator[Span]:
    """The time between a question to a person and its answer."""
    asked: Event | None = None
    for event in events:
        if isinstance(event.record, AskedEvent):
            asked = event
        elif isinstance(event.record, DecidedEvent) and asked is not None:
            decided: Attributes = {"mosaic.decision": event.record.decision.kind}
            key = f"wait {asked.seq}"
            yield round_.child(key, "wait for approval", asked.at, event.at, decided)
            asked = None
