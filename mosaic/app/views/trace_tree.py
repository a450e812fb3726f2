"""Why a run did what it did: the trace as a tree, and as lines while the run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.state import RunState
from mosaic.app.terminal import safe
from mosaic.app.views.report_data import load
from mosaic.core.errors import MosaicError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.rows import Event
from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.events import (
    AskedEvent,
    CheckedEvent,
    Conclusion,
    CuratedEvent,
    DecidedEvent,
    EventRecord,
    FailedEvent,
    MeasuredEvent,
    ObservedEvent,
    PairedEvent,
    PlannedEvent,
    ReplacedEvent,
    TraceEntry,
    TrainedEvent,
)
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation

POLL = 0.5
WORST = 5
LINE = 160
COUNTED = ("curate", "train", "influence", "generate", "judge", "verdict", "likelihood")


@dataclass
class Node:
    """A line of the tree, what it says in full, and what belongs to it."""

    title: str
    details: str | None = None
    children: list[Node] = field(default_factory=list)
    round: int | None = None
    seq: int | None = None


def trace_data(folder: Path, number: int | None = None) -> list[JsonObject]:
    """Events of a run or of one round, in order, with what they refer to."""
    journal, state = load(folder)
    try:
        check_round(journal, state, number)
        return [event_data(event) for event in journal.events(number)]
    finally:
        journal.close()


def check_round(journal: Journal, state: RunState, number: int | None) -> None:
    """Raise UsageError for a round that has neither begun nor been recorded."""
    if number is None or number in journal.begun_rounds():
        return
    raise UsageError(f"--round {number}: recorded are 0 to {len(state.rounds) - 1}")


def event_data(event: Event) -> JsonObject:
    """An event as `trace --json` prints it."""
    where: JsonObject = {
        "seq": event.seq,
        "round": event.place.round,
        "trial": event.place.trial,
        "at": event.at,
    }
    return {**event.record.json_data(), **where}


def tree(folder: Path, number: int | None = None) -> list[Node]:
    """A node per round, and in it what happened, in order.

    Observation, tool calls, messages of the model, plan, violations, decision, steps, outcome.
    """
    journal, state = load(folder)
    try:
        check_round(journal, state, number)
        numbers = [number] if number is not None else journal.begun_rounds()
        return [round_node(journal, n, Store(folder)) for n in numbers]
    finally:
        journal.close()


def round_node(journal: Journal, number: int, store: Store) -> Node:
    """Everything that happened in one round."""
    before: list[Node] = []
    outcome: list[Node] = []
    for event in journal.events(number):
        into = outcome if isinstance(event.record, MeasuredEvent) else before
        into.append(event_node(event, store))
    parts = steps_node(journal, number)
    steps = [parts] if parts.children else []
    return Node(round_title(number), children=[*before, *steps, *outcome], round=number)


def round_title(number: int) -> str:
    return "base and calibration" if number == 0 else f"round {number}"


def steps_node(journal: Journal, number: int) -> Node:
    """How many steps of each kind a round took, and how long."""
    parts = []
    for kind, count, seconds in journal.counts(number):
        if kind in COUNTED:
            parts.append(Node(f"{kind}: {count} steps, {seconds:.1f} s"))
    return Node("steps", children=parts)


def event_node(event: Event, store: Store) -> Node:
    """One event as people read it."""
    node = _node(event.record, store)
    node.seq = event.seq
    return node


def _node(record: EventRecord, store: Store) -> Node:
    match record:
        case PlannedEvent():
            title = f"planned by {record.planner} (plan {record.plan_digest[:12]})"
            calls = [_call(call) for call in record.calls]
            return Node(title, children=[*calls, _plan_node("plan", record.plan)])
        case ObservedEvent():
            worst = _worst_slices(store, record.observation)
            return Node(f"observed ({record.observation[:12]})", children=worst)
        case CheckedEvent():
            return _checked(record)
        case AskedEvent():
            plans = ", ".join(digest[:12] for digest in record.plan_digests)
            return Node(f"asked for approval (question {record.request[:12]}, plan {plans})")
        case DecidedEvent():
            decision = record.decision
            given = []
            for plan in decision.edited:
                title = f"plan given in its place ({plan.content_digest[:12]})"
                given.append(_plan_node(title, plan))
            return Node(f"{decision.kind} by {decision.by}", decision.reason, given)
        case MeasuredEvent():
            return _measured(record)
        case PairedEvent():
            report = record.report
            return Node(
                f"paired {report.pairs} of {report.prompts} practice prompts, from "
                f"{report.answers:,} answers"
            )
        case TrainedEvent():
            adapter = record.adapter
            return Node(
                f"trained {adapter.steps} steps on {adapter.tokens:,} tokens, "
                f"loss {adapter.loss:.3f}"
            )
        case CuratedEvent():
            total = record.total
            return Node(
                f"curated {total.rows:,} rows, {total.selected:,} of {total.requested:,} tokens"
            )
        case FailedEvent():
            kind = f" ({record.failure})" if record.failure else ""
            calls = [_call(call) for call in record.calls]
            return Node(f"{record.step} failed{kind}", record.reason, calls)
        case ReplacedEvent():
            return Node(f"{record.planner} replaced by {record.by}", record.reason)
    payload = record.json_data()
    return Node(str(payload.pop("kind")), json.dumps(payload))


def _worst_slices(store: Store, digest: str) -> list[Node]:
    """The slices furthest from the top, if the observation can still be read."""
    try:
        seen = Observation.model_validate(store.get_json(digest))
    except MosaicError:
        return []
    scored = [s for s in seen.profile.slices if s.score.mean is not None]
    nodes = []
    for s in scored[:WORST]:
        mean = f"{s.objective} {s.slice}: mean {s.score.mean:.2f}"
        nodes.append(Node(f"{mean}, reliability {s.reliability}"))
    return nodes


def _checked(record: CheckedEvent) -> Node:
    found = record.violations
    title = "checked: no violations"
    if found:
        title = f"checked: {len(found)} violation" + ("s" if len(found) > 1 else "")
    children = []
    for v in found:
        children.append(Node(f"{v.path}: {v.rule}", f"{v.value} against {v.limit}; {v.hint}"))
    return Node(title, children=children)


def _measured(record: MeasuredEvent) -> Node:
    verdict = "accepted" if record.accepted else "not accepted"
    children = []
    for line in record.forecast:
        outcome = f"expected {_signed(line.expected)}, measured {_signed(line.actual)}"
        children.append(Node(f"{line.objective}: {outcome}"))
    return Node(f"{verdict}: {record.reason}", children=children)


def _plan_node(title: str, plan: ActionPlan) -> Node:
    parts = [Node("rationale", plan.rationale), Node("ratios", _weights(plan.ratios))]
    for dataset, weights in plan.bucket_weights.items():
        parts.append(Node(f"buckets of {dataset}", _weights(weights)))
    for dataset, focus in plan.focus.items():
        parts.append(Node(f"focus of {dataset}", json.dumps(focus.json_data())))
    parts.append(Node("expected", json.dumps(plan.expected)))
    return Node(title, children=parts)


def _call(call: TraceEntry) -> Node:
    if isinstance(call, Conclusion):
        return Node(f"concluded: {call.conclusion}")
    title = f"asked {call.tool} {json.dumps(call.arguments)}"
    return Node(title, json.dumps(call.result))


def _weights(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * w:.1f} %" for name, w in weights.items())


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.2f}"


def tree_text(nodes: Sequence[Node], limit: int = LINE) -> str:
    """The tree as indented lines for a terminal; a plan's rationale is never cut."""
    lines: list[str] = []

    def add(node: Node, depth: int) -> None:
        text = f"{node.title}: {node.details}" if node.details else node.title
        if node.title != "rationale" and len(text) > limit:
            text = text[: limit - 3] + "..."
        lines.append("  " * depth + safe(text))
        for child in node.children:
            add(child, depth + 1)

    for node in nodes:
        add(node, 0)
    return "\n".join(lines)


def follow(
    folder: Path, number: int | None = None, wait: Callable[[float], None] = time.sleep
) -> Iterator[JsonObject]:
    """Events as they are recorded, of all rounds or of one, until the run is audited.

    If it was extended after an audit: until it is audited for good.
    """
    last, store = 0, Store(folder)
    while True:
        journal = Journal.open(folder)
        try:
            events = journal.events(after=last)
        finally:
            journal.close()
        for event in events:
            last = event.seq
            if number is None or event.place.round == number:
                yield {**event_data(event), "text": tree_text([event_node(event, store)])}
        if any(event.kind == "audited" for event in events):
            journal, state = load(folder)
            journal.close()
            if state.audit:
                return
        if not events:
            wait(POLL)
