"""What people read in a trace: a class for every kind of event."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, JsonValue, TypeAdapter

from mosaic.core.types.base import FrozenModel, JsonObject
from mosaic.core.types.data import BucketReport
from mosaic.core.types.evaluation import IndependentScores, Score
from mosaic.core.types.look_records import Look
from mosaic.core.types.plans import ActionPlan, Decision, Forecast, Note, Violation
from mosaic.core.types.preferences import JudgedReport, PairReport
from mosaic.core.types.runs import Adapter


class EventRecord(FrozenModel):
    """What happened, as people read it in a trace."""

    kind: str


class ToolCall(FrozenModel):
    """One call of a planner's tool, or one message of its model, with the answer."""

    tool: str
    arguments: JsonObject
    result: JsonValue = None


class Conclusion(FrozenModel):
    """What a planner concluded, in its own words."""

    conclusion: str


TraceEntry = ToolCall | Conclusion
TRACE: TypeAdapter[list[TraceEntry]] = TypeAdapter(list[TraceEntry])


class ObservedEvent(EventRecord):
    kind: Literal["observed"] = "observed"
    observation: str


class PlannedEvent(EventRecord):
    kind: Literal["planned"] = "planned"
    planner: str
    plan: ActionPlan
    plan_digest: str
    calls: list[TraceEntry]


class CheckedEvent(EventRecord):
    kind: Literal["checked"] = "checked"
    plan: str
    violations: list[Violation]


class ReplacedEvent(EventRecord):
    kind: Literal["replaced"] = "replaced"
    planner: str
    by: str
    reason: str


class AskedEvent(EventRecord):
    kind: Literal["asked"] = "asked"
    request: str
    plan_digests: list[str]


class DecidedEvent(EventRecord):
    kind: Literal["decided"] = "decided"
    decision: Decision


class CuratedEvent(EventRecord):
    kind: Literal["curated"] = "curated"
    training_set: str
    total: BucketReport


class PairedEvent(EventRecord):
    """Preference pairs were formed; they are filed under `pairs`."""

    kind: Literal["paired"] = "paired"
    pairs: str
    report: PairReport


class JudgedAnswersEvent(EventRecord):
    """Answers were judged for a reward model; they are filed under `answers`."""

    kind: Literal["judged_answers"] = "judged_answers"
    answers: str
    report: JudgedReport


class TrainedEvent(EventRecord):
    kind: Literal["trained"] = "trained"
    adapter: Adapter


class MeasuredEvent(EventRecord):
    """What a trial came to. `trial` is its id if the round has several; the one that counts is first."""

    kind: Literal["measured"] = "measured"
    accepted: bool
    reason: str
    forecast: list[Forecast]
    trial: str = Field(default="", exclude_if=lambda trial: not trial)


class CalibratedEvent(EventRecord):
    kind: Literal["calibrated"] = "calibrated"
    noise: dict[str, float]
    adapters: list[str]


class LookedEvent(EventRecord):
    """Mixtures that were tried cheaply before a round was planned; `note` says what was left out."""

    kind: Literal["looked"] = "looked"
    looks: list[Look]
    note: str = ""


class AuditedEvent(EventRecord):
    kind: Literal["audited"] = "audited"
    chosen: int | None
    stop: str
    base: dict[str, Score]
    scores: dict[str, Score]
    independent: dict[str, IndependentScores] = Field(
        default={}, exclude_if=lambda found: not found
    )


class DroppedEvent(EventRecord):
    """What retention deleted: adapters, and so many groups of requests to judges."""

    kind: Literal["dropped"] = "dropped"
    adapters: list[str]
    requests: int = Field(default=0, exclude_if=lambda count: count == 0)


class GoldCheckedEvent(EventRecord):
    kind: Literal["gold_checked"] = "gold_checked"
    objective: str
    asked: int
    agreement: float
    attempts: int
    charged: int


class FailedEvent(EventRecord):
    """An effect that failed. `failure` says how a training did, `calls` what a planner had asked."""

    kind: Literal["failed"] = "failed"
    step: str
    reason: str
    failure: str | None = None
    planner: str | None = None
    calls: list[TraceEntry] = []


class ChangedEvent(EventRecord):
    """What a person accepted as changed, a line `path: old -> new` per field."""

    kind: Literal["changed"] = "changed"
    changes: list[str]


class NotedEvent(EventRecord):
    """What a person wants the planner to know from the next observation on."""

    kind: Literal["noted"] = "noted"
    note: Note


AnyEvent = Annotated[
    ObservedEvent
    | PlannedEvent
    | CheckedEvent
    | ReplacedEvent
    | AskedEvent
    | DecidedEvent
    | CuratedEvent
    | PairedEvent
    | JudgedAnswersEvent
    | TrainedEvent
    | MeasuredEvent
    | CalibratedEvent
    | LookedEvent
    | AuditedEvent
    | DroppedEvent
    | GoldCheckedEvent
    | FailedEvent
    | ChangedEvent
    | NotedEvent,
    Field(discriminator="kind"),
]
EVENT_KINDS: tuple[type[EventRecord], ...] = get_args(get_args(AnyEvent)[0])
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
