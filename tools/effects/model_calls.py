"""Questions to a model as steps of the journal: a filed answer is replayed, never asked for again.

What was asked for in vain is filed too, as a charge: an outage has cost what its requests cost, and
limits and report count it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from eval.chat.client import ChatUnavailable
from eval.chat.reply import Attempt, sent
from mosaic.core.rows import Calls, SmallStep
from mosaic.core.steps import Outcome, Steps
from mosaic.core.types.base import JsonObject
from mosaic.core.types.records import (
    AskPlanner,
    CallsCharged,
    ChargeCalls,
    ChooseMark,
    GivenUp,
    GiveUp,
    MarkChosen,
    PlannerAnswer,
)
from tools.effects.transcripts import file_messages

Inputs = TypeVar("Inputs", AskPlanner, ChooseMark, GiveUp)
Spent = PlannerAnswer | CallsCharged


@dataclass(frozen=True)
class Request:
    """What a call sends, without the key: messages, and the tools or the schema that go with them."""

    messages: list[JsonObject]
    offered: JsonObject


class Ask(Protocol):
    """Asks for a planner. What a planner has asked belongs to a conversation, named in each call."""

    def at(self, round_: int) -> Ask:
        """The same for the conversations of one round."""
        ...

    def answer(
        self, inputs: AskPlanner, request: Request, effect: Callable[[], PlannerAnswer]
    ) -> PlannerAnswer:
        """The answer of the effect, or the one that is filed under these inputs.

        The request is filed before it is sent.
        """
        ...

    def give_up(self, inputs: GiveUp) -> None:
        """File that the model found no plan: the next conversation has fresh limits."""
        ...

    def mark(self, inputs: ChooseMark, draw: Callable[[], str]) -> str:
        """The mark that was drawn for these inputs, now or before."""
        ...

    def earlier(self, conversation: str) -> Sequence[Spent]:
        """What was filed in this round before this conversation began."""
        ...

    def charges(self, conversation: str, call: int) -> Sequence[Spent]:
        """What this call of this conversation has cost in outages."""
        ...


class _Uncached:
    def at(self, round_: int) -> Ask:
        return self

    def answer(
        self, inputs: AskPlanner, request: Request, effect: Callable[[], PlannerAnswer]
    ) -> PlannerAnswer:
        return effect()

    def give_up(self, inputs: GiveUp) -> None:
        """Nothing to file it in."""

    def mark(self, inputs: ChooseMark, draw: Callable[[], str]) -> str:
        return draw()

    def earlier(self, conversation: str) -> Sequence[Spent]:
        return []

    def charges(self, conversation: str, call: int) -> Sequence[Spent]:
        return []


# Ask without a journal, for tests and for looking ahead. Nothing is kept.
uncached = _Uncached()


def journaled(steps: Steps) -> Ask:
    """Ask through the journal of one run."""
    return _Journaled(steps)


@dataclass(frozen=True)
class _Journaled:
    """Asks through the journal of one run.

    An answer belongs to its run, its round and its session. A planner that gave up and paused the
    run begins a new session, with fresh limits, when the run is resumed; one that was interrupted
    takes up the old one. Who only looks ahead holds no lock, and files nothing.
    """

    steps: Steps

    def at(self, round_: int) -> Ask:
        return _Journaled(self.steps.at(round_)) if self.steps.journal.fence else uncached

    def answer(
        self, inputs: AskPlanner, request: Request, effect: Callable[[], PlannerAnswer]
    ) -> PlannerAnswer:
        full, store = self._placed(inputs), self.steps.store

        def counted() -> Outcome[PlannerAnswer]:
            filed = {
                "sent": file_messages(store, request.messages),
                "offered": store.put_json(request.offered),
            }
            said = effect().model_copy(update=filed)
            calls = Calls("planner", 1, said.attempts, said.charged)
            return Outcome(said, calls=[calls])

        started = time.monotonic()
        try:
            return self.steps.run(full, counted)
        except ChatUnavailable as error:
            whose = ChargeCalls(
                who="planner",
                run=full.run,
                number=0,
                round=full.round,
                session=full.session,
                conversation=full.conversation,
                call=full.call,
            )
            charge_attempts(self.steps, whose, error.attempts, time.monotonic() - started)
            raise

    def give_up(self, inputs: GiveUp) -> None:
        self.steps.run(self._placed(inputs), lambda: Outcome(GivenUp()))

    def mark(self, inputs: ChooseMark, draw: Callable[[], str]) -> str:
        return self.steps.run(self._placed(inputs), lambda: Outcome(MarkChosen(mark=draw()))).mark

    def earlier(self, conversation: str) -> Sequence[Spent]:
        filed = self._filed()
        own = [seq for seq, whose, _ in filed if whose == conversation]
        began = min(own, default=None)
        return [spent for seq, _, spent in filed if began is None or seq < began]

    def charges(self, conversation: str, call: int) -> Sequence[Spent]:
        found = []
        for step in self.steps.journal.steps(ChargeCalls, self.steps.place.round):
            inputs = step.inputs
            mine = inputs.conversation == conversation and inputs.session == self._session()
            if mine and inputs.call == call:
                found.append(step.result)
        return found

    def _placed(self, inputs: Inputs) -> Inputs:
        """The inputs with the run, round and session they belong to."""
        where = {
            "run": self.steps.journal.run,
            "round": self.steps.place.round,
            "session": self._session(),
        }
        return inputs.model_copy(update=where)

    def _filed(self) -> list[tuple[int, str, Spent]]:
        """(number, conversation, what it cost) of this session's calls and outages, in order."""
        journal, round_, session = self.steps.journal, self.steps.place.round, self._session()
        found: list[tuple[int, str, Spent]] = []
        for call in journal.steps(AskPlanner, round_):
            if call.inputs.session == session:
                found.append((call.seq, call.inputs.conversation, call.result))
        for charge in journal.steps(ChargeCalls, round_):
            if charge.inputs.conversation is not None and charge.inputs.session == session:
                found.append((charge.seq, charge.inputs.conversation, charge.result))
        return sorted(found, key=lambda one: one[0])

    def _session(self) -> int:
        return len(self.steps.journal.steps(GiveUp, self.steps.place.round))


def charge_attempts(
    steps: Steps, whose: ChargeCalls, attempts: Sequence[Attempt], seconds: float
) -> None:
    """File what was asked for in vain. What found no server is not filed: nothing was asked."""
    tokens = sum(a.charged for a in attempts)
    charge_calls(steps, whose, sent(attempts), tokens, seconds)


def charge_calls(
    steps: Steps,
    whose: ChargeCalls,
    requests: int,
    tokens: int,
    seconds: float,
    exchanges: str = "",
) -> None:
    """File requests and charged tokens that led to no answer which a step could hold.

    `exchanges` is the digest of what was asked and said, if that is filed.
    """
    if not requests:
        return
    # The number tells one outage from the next, which would have the same inputs.
    number = len(steps.journal.steps(ChargeCalls))
    took = round(seconds, 4)
    inputs = whose.model_copy(update={"number": number})
    result = CallsCharged(attempts=requests, charged=tokens, seconds=took, exchanges=exchanges)
    calls = [Calls(whose.who, requests=requests, tokens=tokens)]
    steps.record([SmallStep(inputs, result, took)], calls)
