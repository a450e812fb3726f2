"""The seam of planning: a planner proposes plans, given an observation and tools to look closer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, Protocol

from pydantic import Field

from eval.chat.client import ChatConfig
from eval.chat.prices import Prices
from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel
from mosaic.core.types.plans import ActionPlan
from mosaic.core.types.runs import Observation
from tools.planning.toolbox import Toolbox


class Planner(Protocol):
    """Proposes the next plans. `kind` names it in journal and report.

    A planner is a function of the observation, which holds the whole history, and of what the
    tools answer. Whatever it proposes is checked again before it runs.
    """

    kind: str

    def propose(self, observation: Observation, toolbox: Toolbox, n: int = 1) -> list[ActionPlan]:
        """Propose `n` plans for `observation.round`.

        Raises BoundaryError if the planner fails, UsageError if no plan is allowed or if it
        cannot propose as many as `n`.
        """
        ...


def require_one_plan(kind: str, n: int) -> None:
    """Raise UsageError unless `n` is 1, for planners that propose one plan a round."""
    if n != 1:
        raise UsageError(
            f"planner {kind}: this planner proposes one plan a round, not {n}; set candidates: 1 "
            "or take another planner"
        )


# Who plans instead if a planner fails; `stop` ends the run.
OnFailure = Literal["need", "static", "random", "profile", "stop"]


class PlannerSettings(FrozenModel):
    """What the config says of a planner that needs nothing but its settings: they make it.

    Such a planner is one file, with its settings beside it, and a member of
    `agent.planners.kinds.PlannerConfig`. Each has a `kind` of its own.
    """

    on_failure: OnFailure = "need"
    max_repairs: int = Field(default=3, ge=0, le=10)

    @abstractmethod
    def build(self) -> Planner:
        """The planner that these settings describe."""


class LlmPlannerConfig(FrozenModel):
    """A language model with the tools.

    The limits are for one round, however many of its plans were refused, and count failed
    attempts: `max_calls` requests that reached a server, `max_tokens` charged tokens,
    `max_seconds` seconds, `max_repairs` corrections.

    `on_failure` says who plans if the model finds no plan within the limits; `pause` stops the
    run until it is resumed, `stop` ends it. `tool_calls: false` asks for the plan at once, for a
    server that has a grammar but no tools. `explore_share` is the share of a run's rounds in which a
    plan may run that the surrogate predicts clearly worse than its own best. `show_text` lets the
    model read up to 300 characters of each answer that it asks to see. `prices` are those of the
    provider.
    """

    kind: Literal["llm"] = "llm"
    chat: ChatConfig = ChatConfig()
    prices: Prices | None = Field(default=None, exclude_if=lambda prices: prices is None)
    on_failure: Literal["need", "static", "random", "profile", "stop", "pause"] = "profile"
    max_repairs: int = Field(default=3, ge=0, le=3)
    max_calls: int = Field(default=16, ge=1, le=100)
    max_tokens: int = Field(default=400_000, ge=1)
    max_seconds: float = Field(default=1800.0, gt=0)
    tool_calls: bool = True
    show_text: bool = False
    explore_share: float = Field(default=0.4, ge=0, le=1)
