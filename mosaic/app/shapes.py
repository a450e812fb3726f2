"""The shapes of what commands print and of the lines that `score` reads, for `schema NAME`. Tests hold them to the code."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model

from eval.objectives.over_refusal import BOUNDARY, FRICTION, HELP, REFUSAL
from eval.objectives.safety import CONCEALMENT, LEAKS, PRESSURE, UTILITY
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.data import CurationReport
from mosaic.core.types.plans import ActionPlan, Forecast
from mosaic.core.types.records import PlannerReplaced

CLOSED = ConfigDict(extra="forbid")


class Summary(FrozenModel):
    """A mean on the 1-5 scale with its 95 % interval; all None if nothing was scored."""

    mean: float | None
    low: float | None
    high: float | None
    n_scored: int
    n_unscored: int
    n_invalid: int


class RoundTokens(FrozenModel):
    """Training tokens of a round: the budget, what was selected and trained, what was short.

    `supervised` are those of the selected ones that the loss counts, in one epoch.
    """

    budget: int = 0
    selected: int = 0
    trained: int = 0
    supervised: int = 0
    short: int = 0


class ReportRound(FrozenModel):
    """One round; round 0 is the base.

    `trial` is the id of the trial that stands for the round, `scores` is objective -> role ->
    summary, `seconds` is by part.
    """

    round: int
    trial: str
    plan: ActionPlan | None
    planner: str
    replaced: PlannerReplaced | None
    scores: dict[str, dict[str, Summary]]
    tokens: RoundTokens
    curation: CurationReport | None
    seconds: dict[str, float]
    accepted: bool
    reason: str
    dominated: bool
    forecast: list[Forecast]
    adapter: str | None


class CalibrationShape(FrozenModel):
    """Scores of each repeat of the static mixture, and the noise per objective."""

    mixture: ActionPlan
    trials: list[str]
    scores: list[dict[str, dict[str, Summary]]]
    noise: dict[str, float]


class AuditShape(FrozenModel):
    """Audit scores by objective; `chosen` is empty if no round was chosen."""

    base: dict[str, Summary]
    chosen: dict[str, Summary]


class AuditOpening(FrozenModel):
    """One opening of the audit suites: after which round, what was chosen, what came later.

    `decided_after` are rounds that were planned after this opening: decisions that may have seen
    what the audit said.
    """

    after_round: int
    chosen: int | None
    stop: str
    decided_after: list[int]


class BudgetShape(FrozenModel):
    """Training tokens."""

    total: int
    spent: int
    reserved: int
    left: int


class ModelCalls(FrozenModel):
    """What planner or judges asked of language models: answers, requests with retries, tokens.

    Gold checks and what an outage left without an answer count as requests and tokens.
    `from_cache` are verdicts that another run had paid for.
    """

    answers: int
    requests: int
    tokens: int
    from_cache: int = 0


class Report(FrozenModel):
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
    audits: list[AuditOpening]
    hypervolume: list[float]
    budget: BudgetShape
    model_calls: dict[str, ModelCalls]


class Status(FrozenModel):
    """`status --json`: where a run stands."""

    run: str
    state: Literal["finished", "waiting for approval", "unfinished"]
    rounds: str
    calibrated: bool
    archive: list[int]
    last: str | None
    begun: str | None
    tokens_spent: int
    tokens_left: int


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
