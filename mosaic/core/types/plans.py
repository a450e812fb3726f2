"""What an agent says and what is said back to it: plans, violations, decisions, limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from mosaic.core.types.base import FrozenModel, check_weights
from mosaic.core.types.data import Focus


class ActionPlan(FrozenModel):
    """A planner's proposal. Rationale first, so that a model reasons before it commits to numbers."""

    rationale: str = Field(max_length=8000)
    ratios: dict[str, float]
    bucket_weights: dict[str, dict[str, float]] = {}
    focus: dict[str, Focus] = {}
    expected: dict[str, float] = Field(
        default={}, description="objective -> expected change of the selection mean"
    )

    @model_validator(mode="after")
    def _weights(self) -> ActionPlan:
        check_weights("ratios", self.ratios)
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


class Decision(FrozenModel):
    """What the approver said about one plan. `executes` is the digest of an edited plan that runs instead."""

    kind: Literal["approve", "edit", "reject"]
    by: str
    plan_digest: str
    reason: str = ""
    executes: str | None = None


class Limits(FrozenModel):
    """Bounds every plan must respect. Steps are L1 distances between weight vectors (0-2); None is no limit."""

    max_ratio_step: float | None = Field(default=0.6, gt=0, le=2)
    max_bucket_step: float | None = Field(default=1.0, gt=0, le=2)
    near_repeat: float = Field(default=0.02, ge=0, lt=2)
    min_quality: int = Field(default=4, ge=1, le=5)
    max_repeat: int = Field(default=1, ge=1)


class ObjectiveSpec(FrozenModel):
    """An objective as the agent sees it."""

    name: str
    datasets: list[str]
    floor: float | None = None
    target: float | None = None


class Forecast(FrozenModel):
    """What a plan expected of one objective and what was measured."""

    objective: str
    expected: float
    actual: float | None
