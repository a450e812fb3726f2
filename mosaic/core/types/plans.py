"""What an agent says and what is said back to it: plans, violations, decisions, limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mosaic.core.types.base import FrozenModel, check_weights
from mosaic.core.types.data import Focus


def _is_empty(value: object) -> bool:
    return not value


class ActionPlan(FrozenModel):
    """A planner's proposal. Rationale first, so that a model reasons before it commits to numbers.

    `method_shares` is method -> share of the round's tokens, `practice_weights` says which practice
    prompts (`objective/slice` -> weight) the methods that sample draw. A plan that names none takes
    the config's shares, and the prompts in their own proportions.
    """

    rationale: str = Field(max_length=8000)
    ratios: dict[str, float]
    bucket_weights: dict[str, dict[str, float]] = {}
    focus: dict[str, Focus] = {}
    expected: dict[str, float] = Field(
        default={}, description="objective -> expected change of the selection mean"
    )
    # Left out of what is written if there are none: the digests of plans without them stay.
    explores: bool = Field(
        default=False,
        exclude_if=lambda explores: not explores,
        description="predicted worse than the surrogate's best by more than its interval",
    )
    method_shares: dict[str, float] = Field(default={}, exclude_if=_is_empty)
    practice_weights: dict[str, float] = Field(default={}, exclude_if=_is_empty)

    @model_validator(mode="after")
    def _weights(self) -> ActionPlan:
        check_weights("ratios", self.ratios)
        for name in ("method_shares", "practice_weights"):
            if getattr(self, name):
                check_weights(name, getattr(self, name))
        for dataset, weights in self.bucket_weights.items():
            check_weights(f"bucket_weights.{dataset}", weights)
        return self


class Violation(FrozenModel):
    """Why a plan may not run: where, which rule, what was there, what is allowed, what to do."""

    path: str
    rule: str
    value: Any = None
    limit: Any = None
    hint: str = ""


class Change(FrozenModel):
    """One weight or focus of a plan against the plan executed last."""

    path: str
    before: float | Focus | None
    after: float | Focus | None


class Demand(FrozenModel):
    """Tokens that a plan asks of a bucket, and what the bucket holds."""

    dataset: str
    bucket: str
    asked: int
    stock: int


class Prediction(FrozenModel):
    """What the surrogate expects of a selection mean against the plan executed last, in points.

    `low` is the lower end of the change: 95 % of outcomes are believed to lie above it.
    """

    objective: str
    change: float
    low: float


class ProposedPlan(FrozenModel):
    """A plan as a question shows it. `expected` and `rationale` are the planner's own words."""

    plan: ActionPlan
    plan_digest: str
    changes: list[Change]
    stock: list[Demand]
    expected: dict[str, float]
    rationale: str
    predicted: list[Prediction] = []
    violations: list[Violation] = []


class Cost(FrozenModel):
    """Training tokens that a round costs, and what is left of the budget before and after it."""

    tokens: int
    left_before: int
    left_after: int


# The floor of an objective that may not fall below the base.
BASE_FLOOR: Literal["base"] = "base"
# A selection mean, 1 to 5, or the base's.
Floor = Annotated[float, Field(ge=1, le=5)] | Literal["base"]


class FloorState(FrozenModel):
    """An objective with a floor, and whether it is below it now."""

    objective: str
    floor: Floor
    below: bool


class ApprovalRequest(FrozenModel):
    """The question to a person. `request` is its id: a decision answers this question and no other.

    The id covers run, round, attempt, plans, observation, and the experiment: the digest of what
    the plans will be trained and measured with.
    """

    request: str
    run: str
    round: int
    attempt: int
    experiment: str
    observation: str
    planner: str
    plans: list[ProposedPlan] = Field(min_length=1)
    cost: Cost
    floors: list[FloorState]


class Decision(FrozenModel):
    """The answer to one request, by a person or by a rule.

    `respond` approves nothing and refuses nothing: the planner is told the reason as a comment, and
    plans again. `plans` are the digests of the plans that the question showed. `edited` are the plans that run
    in their place: given with `edit`, and with nothing else. `kept` are those of the shown plans that
    run as they are, where some were dropped or edited; without it all are approved, or all replaced.
    """

    request: str
    run: str
    round: int
    kind: Literal["approve", "edit", "reject", "respond"]
    by: str
    reason: str = ""
    plans: list[str] = Field(min_length=1)
    edited: list[ActionPlan] = []
    # Left out of what is written if there are none: the digests of other decisions stay.
    kept: list[str] = Field(default=[], exclude_if=_is_empty)

    @model_validator(mode="after")
    def _edited(self) -> Decision:
        if (self.kind == "edit") != bool(self.edited):
            raise ValueError("edited plans are given with kind `edit`, and only with it")
        if self.kept and self.kind not in ("approve", "edit"):
            raise ValueError("kept plans are given with kind `approve` or `edit`")
        if len({*self.kept}) < len(self.kept) or not {*self.kept} <= {*self.plans}:
            raise ValueError("kept plans are plans that the question showed, each once")
        return self

    @property
    def executes(self) -> list[str]:
        """Digests of the plans that may run."""
        if self.kind in ("reject", "respond"):
            return []
        edited = [plan.content_digest for plan in self.edited]
        return [*self.kept, *edited] or self.plans

    @property
    def dropped(self) -> list[str]:
        """Digests of the shown plans that do not run as they are, where some of the question run.

        None where each shown plan was replaced by one of its own.
        """
        if self.kept or 0 < len(self.edited) < len(self.plans):
            return [digest for digest in self.plans if digest not in self.kept]
        return []


METHOD_STEP = 1.0


class Limits(FrozenModel):
    """Bounds every plan must respect. Steps are L1 distances between weight vectors (0-2); None means unlimited."""

    max_ratio_step: float | None = Field(default=0.6, gt=0, le=2)
    max_bucket_step: float | None = Field(default=1.0, gt=0, le=2)
    # Left out of what is written if it is the default: the digests of other limits stay.
    max_method_step: float | None = Field(
        default=METHOD_STEP, gt=0, le=2, exclude_if=lambda step: step == METHOD_STEP
    )
    near_repeat: float = Field(default=0.02, ge=0, lt=2)
    min_quality: int = Field(default=4, ge=1, le=5)
    max_repeat: int = Field(default=1, ge=1)


class ObjectiveSpec(FrozenModel):
    """An objective as the agent sees it.

    One without data sets is a constraint: its floor must hold, and it takes no part in dominance
    and hypervolume, since no plan can spend tokens on it. With the floor `base` it may not fall
    below the base by more than the noise of a training.
    """

    name: str
    datasets: list[str]
    floor: Floor | None = None
    target: float | None = None

    @property
    def traded(self) -> bool:
        """Whether plans spend tokens on it, so that it is weighed against the others."""
        return bool(self.datasets)


class Forecast(FrozenModel):
    """What a plan expected of one objective and what was measured."""

    objective: str
    expected: float
    actual: float | None


class Note(FrozenModel):
    """A person's standing guidance to the planner, and who gave it."""

    by: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1, max_length=4000)
