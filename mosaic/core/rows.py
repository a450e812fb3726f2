"""What the journal hands out: steps, events, and what was asked of language models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.events import EVENT, AnyEvent
from mosaic.core.types.step_inputs import StepInputs

S_co = TypeVar("S_co", bound=StepInputs[Any], covariant=True)
R = TypeVar("R", bound=FrozenModel)
State = Literal["intent", "done", "failed"]


@dataclass(frozen=True)
class Place:
    """Where a step belongs: its round and, if it is part of one, its trial.

    A label for people. It is not part of the step's identity.
    """

    round: int
    trial: str = ""


@dataclass(frozen=True)
class Event:
    """One line of the trace. `at` is wall time in seconds since 1970: a label, never an order."""

    seq: int
    place: Place
    at: float
    record: AnyEvent

    @property
    def round(self) -> int:
        return self.place.round

    @property
    def kind(self) -> str:
        return self.record.kind


@dataclass(frozen=True)
class Step(Generic[S_co]):
    """One finished effect. `seconds` is a label, not an input."""

    seq: int
    place: Place
    inputs: S_co
    stored: FrozenModel
    seconds: float

    @property
    def result(self: Step[StepInputs[R]]) -> R:
        return cast(R, self.stored)


@dataclass(frozen=True)
class StepRow:
    """A step without its contents.

    `state` is intent (begun, unknown outcome), done or failed. `result` is JSON text.
    """

    seq: int
    key: str
    place: Place
    kind: str
    state: State
    seconds: float | None
    result: str | None = None


@dataclass(frozen=True)
class Calls:
    """What planner or judge asked of language models.

    `answers` that arrived, `requests` that reached a server, model `tokens` that were charged,
    `cached` answers that another run had paid for.
    """

    who: Literal["planner", "judge"]
    answers: int = 0
    requests: int = 0
    tokens: int = 0
    cached: int = 0


@dataclass(frozen=True)
class SmallStep:
    """A small effect that is safe to repeat: written, when it is over, as a finished step."""

    inputs: StepInputs[Any]
    result: FrozenModel
    seconds: float


def step_row(row: tuple[Any, ...]) -> StepRow:
    """A row of the table of steps."""
    seq, key, round_, trial, kind, _, state, result, seconds, _ = row
    return StepRow(seq, key, Place(round_, trial), kind, state, seconds, result)


def event_of(row: tuple[Any, ...]) -> Event:
    """A row of the table of events."""
    seq, _, round_, trial, kind, payload, at = row
    record = EVENT.validate_python({"kind": kind, **json.loads(payload)})
    return Event(seq, Place(round_, trial), at, record)


def kind_of(step: type[StepInputs[Any]]) -> str:
    """The word under which a class of steps is filed."""
    return str(step.model_fields["kind"].default)
