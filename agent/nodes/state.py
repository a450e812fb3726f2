"""What travels between nodes: ids and scalars as plain JSON."""

from __future__ import annotations

from typing import TypedDict

from mosaic.core.types.base import JsonObject
from mosaic.core.types.plans import Violation


class State(TypedDict, total=False):
    """Digests point into the store.

    `attempt` counts plans of the round, `repairs` those in a row that broke a constraint.
    `rejected` are the plans that a person or a rule refused, with the reason, and comments. `plans`
    are those that the round is about to try, one trial each. `decided` are the digests of those that
    were approved, or given in their place. `fallback` says why the planner was replaced, `stop` why no further round is planned.
    """

    round: int
    attempt: int
    repairs: int
    rejected: list[JsonObject]
    request: str | None
    decided: list[str] | None
    observation: str
    plans: list[str]
    planner: str
    violations: list[JsonObject]
    fallback: str | None
    stop: str


def fresh(number: int) -> State:
    """The state at the start of a round."""
    return {
        "round": number,
        "attempt": 0,
        "repairs": 0,
        "fallback": None,
        "violations": [],
        "rejected": [],
        "request": None,
        "decided": None,
    }


def feedback_of(state: State) -> list[Violation]:
    """What the planner is told about earlier attempts.

    Plans that were refused, then the violations of the last one.
    """
    told = [*state["rejected"], *state.get("violations", [])]
    return [Violation.model_validate(entry) for entry in told]
