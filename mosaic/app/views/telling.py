"""Journal -> the story of a run: each event as a sentence, and what belongs to it. Reads, never runs.

A planner's conversation is told turn by turn (`turns`); everything else is told here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.state import RunState
from mosaic.app.comments import read_comments
from mosaic.app.runs import config_of
from mosaic.app.views.commented import commented
from mosaic.app.views.parts import (
    changes,
    count,
    figure,
    outcome_table,
    paths_of,
    plan_change,
    problem_of,
    signed,
    slice_bars,
)
from mosaic.app.views.report_data import load
from mosaic.app.views.story import (
    Bar,
    Bars,
    Chapter,
    Entry,
    Messages,
    Move,
    Part,
    PlanChange,
    Raw,
    Span,
    Story,
    Table,
    Words,
)
from mosaic.app.views.telling_audit import audited
from mosaic.app.views.telling_looks import looked
from mosaic.app.views.telling_practice import judged_answers, learnt, paired
from mosaic.app.views.tool_turns import Conversation
from mosaic.app.views.turns import Turns, said_messages
from mosaic.core.errors import DamageError, MosaicError, UsageError
from mosaic.core.journal import Journal
from mosaic.core.rows import Event
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Score
from mosaic.core.types.events import (
    AskedEvent,
    AuditedEvent,
    CalibratedEvent,
    ChangedEvent,
    CheckedEvent,
    CuratedEvent,
    DecidedEvent,
    DroppedEvent,
    FailedEvent,
    GoldCheckedEvent,
    JudgedAnswersEvent,
    LookedEvent,
    MeasuredEvent,
    NotedEvent,
    ObservedEvent,
    PairedEvent,
    PlannedEvent,
    ReplacedEvent,
    TrainedEvent,
)
from mosaic.core.types.plans import ActionPlan, ApprovalRequest
from mosaic.core.types.records import AskApproval, CheckGold, CloseRound, Observe
from mosaic.core.types.runs import Observation, Round
from tools.effects.transcripts import read_exchanges

# Steps that take time of their own: a verdict's is part of its judging, a model call's of planning.
TIMED = (
    "plan",
    "curate",
    "train",
    "influence",
    "sample",
    "score_practice",
    "generate",
    "likelihood",
    "judge",
)
COUNTED = (*TIMED, "verdict")


def chapter_title(number: int) -> str:
    return "base and calibration" if number == 0 else f"round {number}"


def story_of(folder: Path, number: int | None = None) -> Story:
    """A run, or one round of it. Raises UsageError for a round that has not begun."""
    journal, state = load(folder)
    try:
        check_round(journal, state, number)
        numbers = [number] if number is not None else journal.begun_rounds()
        teller = Teller(journal, Store(folder))
        config = config_of(journal)
        return Story(
            run=folder.name,
            planner=config.planner.kind,
            objectives=list(config.objectives),
            chapters=[teller.chapter(n) for n in numbers],
        )
    finally:
        journal.close()


def check_round(journal: Journal, state: RunState, number: int | None) -> None:
    """Raise UsageError for a round that has neither begun nor been recorded."""
    if number is None or number in journal.begun_rounds():
        return
    raise UsageError(f"--round {number}: recorded are 0 to {len(state.rounds) - 1}")


def entry_of(folder: Path, seq: int) -> Entry:
    """One event. Raises UsageError if there is none of this number."""
    journal = Journal.open(folder)
    try:
        return Teller(journal, Store(folder)).entry(event_of(journal, seq))
    finally:
        journal.close()


def turn_of(folder: Path, id_: str) -> Entry:
    """One event by its number, or one turn of it: `12` or `12.3`. Raises UsageError."""
    number, _, turn = id_.partition(".")
    if not number.isdecimal() or (turn and not turn.isdecimal()):
        raise UsageError(f"{id_!r} is not the id of an event; ids are like 12 or 12.3")
    found = entry_of(folder, int(number))
    if not turn:
        return found
    for each in found.turns:
        if each.id == id_:
            return each
    raise UsageError(f"event {number} has {len(found.turns)} turns, and no turn {turn}")


def event_of(journal: Journal, seq: int) -> Event:
    """The event of a number. Raises UsageError if there is none."""
    events = journal.events(after=seq - 1, before=seq + 1)
    if not events:
        raise UsageError(f"no event {seq} is recorded")
    return events[0]


def spans_of(journal: Journal, number: int) -> list[Span]:
    """What took how long in a round, in the order of a round."""
    found = []
    for kind, number_of, seconds in journal.counts(number):
        if kind in COUNTED:
            found.append(Span(kind=kind, count=number_of, seconds=seconds))
    return sorted(found, key=lambda span: COUNTED.index(span.kind))


class Teller:
    """Tells the events of one run. Keeps what it read of a round, since neighbours need it too."""

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._turns = Turns(journal, store)
        self._observations: dict[int, Observation | None] = {}
        self._rounds: dict[int, Round] | None = None
        self._comments = read_comments(journal.folder)

    def chapter(self, number: int) -> Chapter:
        """One round, in order."""
        return Chapter(
            round=number,
            title=chapter_title(number),
            spans=spans_of(self._journal, number),
            entries=[self.entry(event) for event in self._journal.events(number)],
        )

    def entry(self, event: Event) -> Entry:
        """One event. What cannot be read any more is left out of it."""
        made = self._told(event)
        raw = Raw(title="the record as JSON", data=event.record.json_data())
        place = {"id": str(event.seq), "kind": event.kind, "round": event.round, "at": event.at}
        placed = made.model_copy(update={**place, "parts": [*made.parts, raw]})
        return commented(placed, self._comments)

    def _told(self, event: Event) -> Entry:
        match event.record:
            case ObservedEvent() as record:
                return self._observed(event, record)
            case PlannedEvent() as record:
                return self._planned(event, record)
            case CheckedEvent() as record:
                return self._checked(event, record)
            case AskedEvent() as record:
                return self._asked(event, record)
            case DecidedEvent() as record:
                return self._decided(event, record)
            case MeasuredEvent() as record:
                return self._measured(event, record)
            case GoldCheckedEvent() as record:
                return self._gold(event, record)
            case FailedEvent() as record:
                return self._failed(event, record)
            case _:
                return _plain(event)

    # -- the observation --------------------------------------------------------------------------

    def _observation(self, number: int) -> Observation | None:
        """What the planner of a round was told, if it can still be read."""
        if number not in self._observations:
            self._observations[number] = None
            for step in self._journal.steps(Observe, number):
                self._observations[number] = self._read(step.result.observation)
        return self._observations[number]

    def _read(self, digest: str) -> Observation | None:
        try:
            return Observation.model_validate(self._store.get_json(digest))
        except (MosaicError, ValueError):
            return None

    def _observed(self, event: Event, record: ObservedEvent) -> Entry:
        seen = self._read(record.observation)
        if seen is None:
            return _entry("observed; what was observed cannot be read any more", failed=True)
        scored = sum(s.score.mean is not None for s in seen.profile.slices)
        title = f"observed {count(len(seen.objectives), 'objective')} and {count(scored, 'slice')}"
        if seen.below_floor:
            title += f"; below the floor: {', '.join(seen.below_floor)}"
        facts = [
            f"{seen.budget_left:,} training tokens left",
            f"{seen.cost_of_candidates:,} a round",
        ]
        if seen.candidates > 1:
            facts.append(f"{seen.candidates} plans wanted")
        parts: list[Part] = [
            Bars(title="objectives, selection mean", bars=_objective_bars(seen)),
            Bars(title="slices, steering mean, worst first", bars=slice_bars(seen)),
        ]
        if seen.influence is not None:
            parts.append(_influence(seen))
        return _entry(title, facts=facts, objectives=seen.names, parts=parts)

    # -- the plan ---------------------------------------------------------------------------------

    def _conversation(self, event: Event) -> Conversation:
        seen = self._observation(event.round)
        return Conversation(event.round, event.seq, seen)

    def _planned(self, event: Event, record: PlannedEvent) -> Entry:
        turns = self._turns.of(record.calls, self._conversation(event))
        seen = self._observation(event.round)
        change = plan_change("the plan against the one executed last", record.plan, seen)
        parts: list[Part] = [
            Words(
                by=record.planner, label="why, in the planner's words", text=record.plan.rationale
            ),
            change,
        ]
        if record.plan.expected:
            rows = [[name, signed(value)] for name, value in record.plan.expected.items()]
            parts.append(
                Table(
                    title="what the planner expects, change of the selection mean",
                    header=["objective", "expected"],
                    rows=rows,
                    folded=False,
                )
            )
        title = f"{record.planner} proposed plan {record.plan_digest[:12]}"
        looks = sum(turn.kind == "tool" for turn in turns)
        if looks:
            title += f" after {count(looks, 'look')}"
        return _entry(title, parts=parts, turns=turns)

    def _checked(self, event: Event, record: CheckedEvent) -> Entry:
        found = record.violations
        if not found:
            return _entry(f"plan {record.plan[:12]} keeps every limit")
        parts: list[Part] = []
        plan = self._plan(record.plan)
        if plan is not None:
            seen = self._observation(event.round)
            parts.append(plan_change("what breaks a limit", plan, seen, found))
        else:
            moves = [
                Move(path=v.path, before=None, after=None, problems=[problem_of(v)]) for v in found
            ]
            parts.append(PlanChange(title="what breaks a limit", moves=moves))
        for violation in found:
            if violation.rule == "rejected" and violation.hint:
                parts.append(
                    Words(by="a person", label="why it was turned down", text=violation.hint)
                )
        title = f"plan {record.plan[:12]} breaks {count(len(found), 'limit')}"
        return _entry(title, failed=True, parts=parts)

    def _plan(self, digest: str) -> ActionPlan | None:
        try:
            return ActionPlan.model_validate(self._store.get_json(digest))
        except (MosaicError, ValueError):
            return None

    # -- approval ---------------------------------------------------------------------------------

    def _request(self, number: int, request: str) -> ApprovalRequest | None:
        for step in self._journal.steps(AskApproval, number):
            if step.result.request == request:
                return step.result
        return None

    def _asked(self, event: Event, record: AskedEvent) -> Entry:
        asked = self._request(event.round, record.request)
        parts: list[Part] = []
        for shown in asked.plans if asked else []:
            rows = []
            predicted = {p.objective: p for p in shown.predicted}
            for name in dict.fromkeys([*predicted, *shown.expected]):
                known = predicted.get(name)
                rows.append(
                    [
                        name,
                        signed(known.change if known else None),
                        signed(known.low if known else None),
                        signed(shown.expected.get(name)),
                    ]
                )
            of = f" by plan {shown.plan_digest[:12]}" if len(record.plan_digests) > 1 else ""
            parts.append(
                Table(
                    title=f"what is expected{of}, change of the selection mean",
                    header=["objective", "by the surrogate", "at least", "by the planner"],
                    rows=rows,
                    folded=False,
                )
            )
        plans = ", ".join(digest[:12] for digest in record.plan_digests)
        word = "plan" if len(record.plan_digests) == 1 else "plans"
        title = f"asked for approval of {word} {plans} (question {record.request[:12]})"
        facts = [f"costs {asked.cost.tokens:,} training tokens"] if asked else []
        return _entry(title, facts=facts, parts=parts)

    def _decided(self, event: Event, record: DecidedEvent) -> Entry:
        decision = record.decision
        parts: list[Part] = []
        if decision.reason:
            parts.append(Words(by=decision.by, label=f"{decision.by} said", text=decision.reason))
        for given in decision.edited:
            parts.append(Words(by=decision.by, label="why, as given", text=given.rationale))
            if len(decision.plans) == 1:
                before = self._plan(decision.plans[0])
                title = f"plan {given.content_digest[:12]}, given in its place"
                parts.append(changes(title, paths_of(before) if before else {}, paths_of(given)))
            else:
                title = f"plan {given.content_digest[:12]}, given in place of one of them"
                parts.append(plan_change(title, given, self._observation(event.round)))
        # Names of deciders are what they typed: cut to what a title can hold.
        who = " ".join(decision.by.split())[:60]
        title = f"{decision.kind} by {who}"
        if decision.kind == "respond":
            title = f"comment by {who}, who asks for another plan"
        if decision.dropped:
            left_out = ", ".join(digest[:12] for digest in decision.dropped)
            title += f"; not run as proposed: {left_out}"
        return _entry(title, failed=decision.kind == "reject", parts=parts)

    # -- what came of it --------------------------------------------------------------------------

    def _closed(self, number: int) -> Round | None:
        if self._rounds is None:
            self._rounds = {}
            for step in self._journal.steps(CloseRound):
                self._rounds[step.result.round.round] = step.result.round
        return self._rounds.get(number)

    def _measured(self, event: Event, record: MeasuredEvent) -> Entry:
        closed, candidate = self._closed(event.round), ""
        if closed is not None and record.trial:
            for number, one in enumerate(closed.by_trial, 1):
                if one.trial.id == record.trial:
                    counts = ", which counts" if one.trial.id == closed.counts else ""
                    closed, candidate = one, f"candidate {number}{counts}: "
        parts: list[Part] = []
        if closed is not None:
            bars = []
            for objective, roles in closed.scores.items():
                score = roles.get("selection")
                if score is not None:
                    bars.append(
                        Bar(label=objective, mean=score.mean, low=score.low, high=score.high)
                    )
            parts.append(Bars(title="selection mean, as measured", bars=bars))
        parts += learnt(closed.trial.stages if closed is not None else [])
        if record.forecast:
            parts.append(outcome_table(record.forecast))
        verdict = "accepted" if record.accepted else "not accepted"
        title = candidate + (f"{verdict}: {record.reason}" if record.reason else verdict)
        names = [line.objective for line in record.forecast]
        return _entry(title, failed=not record.accepted, objectives=names, parts=parts)

    def _gold(self, event: Event, record: GoldCheckedEvent) -> Entry:
        title = (
            f"checked the judge of {record.objective} on {record.asked} known answers: "
            f"{100 * record.agreement:.0f} % right"
        )
        facts = [f"{record.attempts} requests", f"{record.charged:,} tokens"]
        parts: list[Part] = []
        for step in self._journal.steps(CheckGold, event.round):
            known = step.result
            same = (known.objective, known.attempts, known.charged, known.agreement) == (
                record.objective,
                record.attempts,
                record.charged,
                record.agreement,
            )
            if same and known.exchanges:
                parts = self._exchanges(known.exchanges)
                break
        return _entry(title, facts=facts, objectives=[record.objective], parts=parts)

    def _exchanges(self, digest: str) -> list[Part]:
        """What a judge was asked and said; nothing if retention dropped it."""
        try:
            exchanges = read_exchanges(self._store, digest)
        except (DamageError, ValueError):
            return []
        parts: list[Part] = []
        for number, exchange in enumerate(exchanges, start=1):
            said = said_messages(exchange.messages)
            parts.append(Messages(title=f"question {number} and its answer", messages=said))
        return parts

    def _failed(self, event: Event, record: FailedEvent) -> Entry:
        turns = self._turns.of(record.calls, self._conversation(event))
        kind = f" ({record.failure})" if record.failure else ""
        who = f" of {record.planner}" if record.planner else ""
        words = Words(by="MOSAIC", label="why", text=record.reason)
        return _entry(f"{record.step}{who} failed{kind}", failed=True, parts=[words], turns=turns)


# -- events that need nothing but themselves -------------------------------------------------------


def _plain(event: Event) -> Entry:
    record = event.record
    match record:
        case CuratedEvent():
            total = record.total
            title = (
                f"selected {total.rows:,} rows, {total.selected:,} tokens; the plan's shares, rounded down, "
                f"are {total.requested:,}"
            )
            return _entry(title)
        case PairedEvent():
            title, facts, table = paired(record)
            return _entry(title, facts=facts, parts=[table])
        case JudgedAnswersEvent():
            title, facts, table = judged_answers(record)
            return _entry(title, facts=facts, parts=[table])
        case TrainedEvent():
            adapter = record.adapter
            title = f"trained {count(adapter.steps, 'step')} on {adapter.tokens:,} tokens"
            facts = [f"loss {adapter.loss:.3f}", f"{adapter.seconds:.0f} s"]
            return _entry(title, facts=facts)
        case ReplacedEvent():
            words = Words(by="MOSAIC", label="why", text=record.reason)
            title = f"{record.by} plans in place of {record.planner}"
            return _entry(title, failed=True, parts=[words])
        case CalibratedEvent():
            rows = [[name, figure(noise)] for name, noise in record.noise.items()]
            noise_table = Table(
                title="noise: standard deviation of a selection mean from training to training",
                header=["objective", "points"],
                rows=rows,
                folded=False,
            )
            title = (
                f"calibrated on {count(len(record.adapters), 'training')} of the pools' own mixture"
            )
            return _entry(title, objectives=list(record.noise), parts=[noise_table])
        case LookedEvent():
            title, facts, table = looked(record)
            return _entry(title, facts=facts, parts=[table])
        case AuditedEvent():
            title, parts = audited(record)
            return _entry(title, objectives=list(record.base), parts=parts)
        case DroppedEvent():
            dropped = []
            if record.adapters:
                dropped.append(count(len(record.adapters), "adapter"))
            if record.requests:
                dropped.append(count(record.requests, "group") + " of requests to the judge")
            return _entry(f"deleted {' and '.join(dropped) or 'nothing'}")
        case NotedEvent():
            words = Words(by=record.note.by, label="a note to the planner", text=record.note.text)
            return _entry(f"{record.note.by} left a note to the planner", parts=[words])
        case ChangedEvent():
            lines = Words(by="a person", label="what changed", text="\n".join(record.changes))
            return _entry(
                f"{count(len(record.changes), 'change')} of the config accepted", parts=[lines]
            )
    return _entry(str(event.kind))


def _entry(
    title: str,
    *,
    facts: Sequence[str] = (),
    objectives: Sequence[str] = (),
    failed: bool = False,
    parts: Sequence[Part] = (),
    turns: Sequence[Entry] = (),
) -> Entry:
    """An entry whose place is filled in by `Teller.entry`."""
    return Entry(
        id="0",
        kind="",
        round=0,
        title=title,
        facts=list(facts),
        objectives=list(objectives),
        failed=failed,
        parts=list(parts),
        turns=list(turns),
    )


def _objective_bars(seen: Observation) -> list[Bar]:
    """Selection means of the mixture executed last, beside targets and floors.

    Before the first planned round that is the first repeat of the calibration.
    """
    scores: Mapping[str, Mapping[str, Score]] = seen.history[-1].scores if seen.history else {}
    if seen.calibration and seen.history and seen.history[-1].plan is None:
        scores = seen.calibration.scores[0]
    noise: Mapping[str, float] = seen.calibration.noise if seen.calibration else {}
    bars = []
    for objective in seen.objectives:
        name = objective.name
        score = scores.get(name, {}).get("selection")
        notes = []
        if objective.floor is not None:
            floor = objective.floor
            notes.append(f"floor {floor if isinstance(floor, str) else f'{floor:g}'}")
        if objective.target is not None:
            notes.append(f"target {objective.target:g}")
        if name in noise:
            notes.append(f"noise {noise[name]:.2f}")
        bars.append(
            Bar(
                label=name,
                mean=score.mean if score else None,
                low=score.low if score else None,
                high=score.high if score else None,
                target=objective.target,
                note=", ".join(notes),
            )
        )
    return bars


def _influence(seen: Observation) -> Table:
    assert seen.influence is not None
    rows = []
    for found in seen.influence.buckets:
        effect = found.mean
        rows.append(
            [
                f"{found.dataset} {found.bucket}",
                f"{effect.value:+.4f}",
                f"{effect.standard_error:.4f}",
                "clear" if effect.is_clear else "",
            ]
        )
    return Table(
        title="influence of a little more of each bucket on the mean steering loss",
        header=["bucket", "fall of the loss per percent", "standard error", ""],
        rows=rows,
    )
