"""Models that are asked for a plan outside of a run: nothing is journalled, so no limit counts it."""

from __future__ import annotations

from collections.abc import Callable

from agent.planners.base import LlmPlannerConfig
from mosaic.app.config import RunConfig
from mosaic.core.errors import UsageError


def uncounted(config: RunConfig) -> str | None:
    """What a proposal of the config's planner takes that no limit counts; None if it asks no model."""
    planner = config.planner
    if not isinstance(planner, LlmPlannerConfig):
        return None
    return (
        f"a plan asks the model {planner.chat.model} in up to {planner.max_calls} calls, which the limits "
        "of the run do not count and which may cost money"
    )


def check_consent(config: RunConfig, agreed: bool, say: Callable[[str], None]) -> None:
    """Say what no limit counts. Raises UsageError if the config sets one and nobody `agreed`."""
    told = uncounted(config)
    if told is None:
        return
    budget = config.budget
    limited = budget.money is not None or budget.planner_tokens is not None
    if limited and not agreed:
        raise UsageError(f"{told}; to ask it all the same, add --may-cost-money")
    say(told)
