"""Questions to a model as steps of the journal: an answer that is filed is replayed, never asked for again.

What was asked for in vain is filed too, as a `charge`: an outage has cost what its requests cost, and limits and report
count it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eval.chat.client import ChatUnavailable
from eval.chat.reply import Attempt, sent
from mosaic.core.journal import Step
from mosaic.core.steps import Outcome, Steps

Effect = Callable[[], dict[str, Any]]
CALL = "plan_call"
GAVE_UP = "plan_given_up"
CHARGE = "charge"
VERSION = 1


class Ask(Protocol):
    """Asks for a planner. What a planner has asked belongs to a conversation, named in the inputs of each call."""

    def __call__(self, kind: str, inputs: dict[str, Any], effect: Effect) -> dict[str, Any]:
        """The answer of the effect, or the one that is filed under these inputs."""
        ...

    def earlier(self, conversation: str) -> list[dict[str, Any]]:
        """What was filed in this round before this conversation began: `attempts`, `charged`, `seconds` each."""
        ...

    def charges(self, conversation: str, call: int) -> list[dict[str, Any]]:
        """What this call of this conversation has cost in outages, in the same shape."""
        ...


class _Uncached:
    def __call__(self, kind: str, inputs: dict[str, Any], effect: Effect) -> dict[str, Any]:
        return effect()

    def earlier(self, conversation: str) -> list[dict[str, Any]]:
        return []

    def charges(self, conversation: str, call: int) -> list[dict[str, Any]]:
        return []


# Ask without a journal: for tests and for looking ahead. Nothing is remembered.
uncached = _Uncached()


def journaled(steps: Steps) -> Ask:
    """Ask through the journal of one run."""
    return _Journaled(steps)


@dataclass(frozen=True)
class _Journaled:
    """Asks through the journal of one run.

    An answer belongs to its run, its round and its trial: a planner that gave up and paused the run begins a new
    conversation, with fresh limits, when the run is resumed, while one that was interrupted takes up the old one. Who
    only looks ahead holds no lock, and files nothing.
    """

    steps: Steps

    def __call__(self, kind: str, inputs: dict[str, Any], effect: Effect) -> dict[str, Any]:
        if not self.steps.journal.fence:
            return uncached(kind, inputs, effect)
        full = {
            **inputs,
            "run": self.steps.journal.run,
            "round": self.steps.round,
            "trial": self._trial(),
        }
        started = time.monotonic()
        try:
            return dict(self.steps.run(kind, full, lambda: Outcome(effect())).result or {})
        except ChatUnavailable as error:
            whose: dict[str, Any] = {
                name: full[name]
                for name in ("round", "trial", "conversation", "call")
                if name in full
            }
            charge(self.steps, "planner", whose, error.attempts, time.monotonic() - started)
            raise

    def earlier(self, conversation: str) -> list[dict[str, Any]]:
        filed = self._filed()
        own = [s.seq for s in filed if s.inputs["conversation"] == conversation]
        return [s.result for s in filed if s.result and s.seq < min(own, default=s.seq + 1)]

    def charges(self, conversation: str, call: int) -> list[dict[str, Any]]:
        mine = [
            s
            for s in self._filed()
            if s.kind == CHARGE and s.inputs["conversation"] == conversation
        ]
        return [s.result for s in mine if s.result and s.inputs["call"] == call]

    def _trial(self) -> int:
        return sum(s.state == "done" for s in self.steps.journal.steps(GAVE_UP, self.steps.round))

    def _filed(self) -> list[Step]:
        """Calls and charges of this trial, in the order in which they were begun."""
        journal, round_ = self.steps.journal, self.steps.round
        if not journal.fence:
            return []
        trial = self._trial()
        steps = [
            s
            for kind in (CALL, CHARGE)
            for s in journal.steps(kind, round_)
            if "conversation" in s.inputs
        ]
        return sorted((s for s in steps if s.inputs["trial"] == trial), key=lambda s: s.seq)


def charge(
    steps: Steps, who: str, whose: dict[str, Any], attempts: Sequence[Attempt], seconds: float
) -> None:
    """File what `who` (planner or judge) asked for in vain. What found no server is not filed: nothing was asked."""
    spend(steps, who, whose, sent(attempts), sum(a.charged for a in attempts), seconds)


def spend(
    steps: Steps, who: str, whose: dict[str, Any], requests: int, tokens: int, seconds: float
) -> None:
    """File requests and charged tokens that led to no answer which a step could hold."""
    if not requests:
        return
    # The number tells one outage from the next, which would have the same inputs.
    number = len(steps.journal.steps(CHARGE))
    inputs = {"who": who, "run": steps.journal.run, **whose, "number": number, "version": VERSION}
    result = {"attempts": requests, "charged": tokens, "seconds": round(seconds, 4)}
    steps.journal.record(CHARGE, [(inputs, result, round(seconds, 4))], steps.round)
