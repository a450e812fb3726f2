"""The kinds of planners that a config may name. A new one is an import and a member of the union."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from agent.planners.base import LlmPlannerConfig, PlannerSettings
from agent.planners.baselines import NeedPlannerConfig, RandomPlannerConfig, StaticPlannerConfig
from agent.planners.ideal import IdealPlannerConfig
from agent.planners.surrogate import SurrogatePlannerConfig

PlannerConfig = Annotated[
    SurrogatePlannerConfig
    | IdealPlannerConfig
    | StaticPlannerConfig
    | RandomPlannerConfig
    | NeedPlannerConfig
    | LlmPlannerConfig,
    Field(discriminator="kind"),
]
DEFAULT_PLANNER = SurrogatePlannerConfig()


def settings_by_kind() -> dict[str, type[PlannerSettings | LlmPlannerConfig]]:
    """The settings class of each kind, in the order of the union."""
    union, _ = get_args(PlannerConfig)
    return {member.model_fields["kind"].default: member for member in get_args(union)}
