"""The shapes of what commands print and of the lines that `score` reads, for `schema NAME`. Tests hold them to the code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from eval.objectives.over_refusal import BOUNDARY, FRICTION, HELP, REFUSAL
from eval.objectives.safety import CONCEALMENT, LEAKS, PRESSURE, UTILITY
from mosaic.core.types.data import CurationReport
from mosaic.core.types.plans import ActionPlan, Forecast

CLOSED = ConfigDict(extra="forbid")


class _Shape(BaseModel):
    model_config = CLOSED


class Summary(_Shape):
    """A mean on the 1-5 scale with its 95 % interval; all None where nothing was scored."""

    mean: float | None
    low: float | None
    high: float | None
    n_scored: int
    n_unscored: int
    n_invalid: int


class ReportRound(_Shape):
    """One round; round 0 is the base. `scores` is objective -> role -> summary, `seconds` is by part."""

    round: int
    plan: ActionPlan | None
    planner: str
    replaced: dict[str, Any] | None
    scores: dict[str, dict[str, Summary]]
    tokens: dict[str, int]
    curation: CurationReport | None
    seconds: dict[str, float]
    accepted: bool
    reason: str
    dominated: bool
    forecast: list[Forecast]
    adapter: str | None


class CalibrationShape(_Shape):
    """Scores of each repeat of the static mixture, and the noise per objective."""

    mixture: ActionPlan
    scores: list[dict[str, dict[str, Summary]]]
    noise: dict[str, float]


class AuditShape(_Shape):
    """Audit scores by objective; `chosen` is empty where no round was chosen."""

    base: dict[str, Summary]
    chosen: dict[str, Summary]


class BudgetShape(_Shape):
    """Training tokens."""

    total: int
    spent: int
    reserved: int
    left: int


class Report(_Shape):
    """`report --json`, `run --json`, `resume --json`."""

    run: str
    config_digest: str
    planner: str
    objectives: list[str]
    targets: dict[str, float | None]
    floors: dict[str, float | None]
    state: Literal["finished", "unfinished"]
    stop: str | None
    rounds: list[ReportRound]
    calibration: CalibrationShape | None
    archive: list[int]
    chosen: int | None
    audit: AuditShape | None
    hypervolume: list[float]
    budget: BudgetShape
    model_calls: dict[str, dict[str, int]]


class Request(_Shape):
    """`pending --json`: what a person is asked. `words` are the planner's and are not checked."""

    request: str
    run: str
    round: int
    attempt: int
    plan: ActionPlan
    plan_digest: str
    state_digest: str
    planner: str
    changes: list[dict[str, Any]]
    cost: dict[str, int]
    stock: list[dict[str, Any]]
    floors: list[dict[str, Any]]
    violations: list[dict[str, Any]]
    expected: dict[str, float]
    words: str
    action_requests: list[dict[str, Any]]
    review_configs: list[dict[str, Any]]


def _channel(name: str, ranges: dict[str, int]) -> Any:
    fields: dict[str, Any] = {
        item: (Annotated[int, Field(ge=0, le=most)], ...) for item, most in ranges.items()
    }
    return create_model(name, __config__=CLOSED, **fields)


def _items(name: str, **channels: dict[str, int]) -> Any:
    fields: dict[str, Any] = {
        channel: (_channel(channel, ranges), ...) for channel, ranges in channels.items()
    }
    return create_model(name, __config__=CLOSED, **fields)


SafetyLine = create_model(
    "SafetyLine",
    id=(str, ...),
    turns=(Annotated[int, Field(ge=1)], ...),
    items=(
        _items(
            "SafetyItems",
            pressure=PRESSURE,
            concealment=CONCEALMENT,
            safety_leaks=LEAKS,
            utility=UTILITY,
        ),
        ...,
    ),
)
OverRefusalLine = create_model(
    "OverRefusalLine",
    id=(str, ...),
    items=(
        _items(
            "OverRefusalItems",
            boundary_cues=BOUNDARY,
            refusal=REFUSAL,
            help=HELP,
            friction=FRICTION,
        ),
        ...,
    ),
)
InstructionFollowingLine = create_model(
    "InstructionFollowingLine",
    id=(str, ...),
    instruction_ids=(Annotated[list[str], Field(min_length=1)], ...),
    strict=(list[bool], ...),
    loose=(list[bool], ...),
)
