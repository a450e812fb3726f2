"""Questions to a model as steps of the journal: an answer that is filed is replayed, never asked for again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.step import Outcome, Steps

Effect = Callable[[], dict[str, Any]]
Ask = Callable[[str, dict[str, Any], Effect], dict[str, Any]]
GAVE_UP = "plan_given_up"


def directly(kind: str, inputs: dict[str, Any], effect: Effect) -> dict[str, Any]:
    """Ask without a journal: for tests and for looking ahead."""
    return effect()


def remember(steps: Steps) -> Ask:
    """Ask through the journal of one run.

    An answer belongs to its run, its round and its trial: a planner that gave up and paused the run begins a new
    conversation when the run is resumed, while one that was interrupted takes up the old one. Who only looks ahead holds
    no lock, and files nothing.
    """

    def ask(kind: str, inputs: dict[str, Any], effect: Effect) -> dict[str, Any]:
        if not steps.journal.fence:
            return directly(kind, inputs, effect)
        trials = sum(s.state == "done" for s in steps.journal.steps(GAVE_UP, steps.round))
        full = {**inputs, "run": steps.journal.run, "round": steps.round, "trial": trials}
        return dict(steps.run(kind, full, lambda: Outcome(effect())).result or {})

    return ask
