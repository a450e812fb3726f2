"""Limits on what planner and judge may take of their providers over a whole run.

Before each attempt its worst case is held, after it what it took is counted. What is used and held
stands in the journal, in one row that is replaced. A flush to disk per attempt would cost more than
some attempts, so more than one worst case is held at a time:

    what the journal says is used and held  >=  what was taken, and what attempts under way may take

A process that is killed leaves what it held. Some of it may have been paid for, so all of it counts
as used from then on: a limit is never passed, and a resume does not begin a new count.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from eval.chat.failures import LimitReached
from eval.chat.metering import Tokens
from eval.chat.prices import Prices, money_text
from mosaic.core.journal import Journal
from mosaic.core.types.spending import Account, Payer, Spending, Usage

NOTE = "spending"
# Worst cases that are held at once.
HELD_AT_ONCE = 16
# Seconds after which somebody who waits for others looks again.
TICK = 1.0
NOTHING = Usage()


@dataclass(frozen=True)
class Limits:
    """The most that may be used: `money` in millionths, `tokens` by who asks. None means unlimited."""

    money: int | None = None
    tokens: Mapping[Payer, int | None] = field(default_factory=dict)


def recorded_spending(journal: Journal) -> Spending | None:
    """What a run has used and holds, None if nothing was ever counted."""
    text = journal.note(NOTE)
    return None if text is None else Spending.model_validate_json(text)


class Purse:
    """What one run may still take. Safe to share between threads."""

    def __init__(
        self, journal: Journal, limits: Limits, prices: Mapping[Payer, Prices | None]
    ) -> None:
        """`journal` must be held by this process: what an earlier one held is counted as used."""
        self.limits = limits
        self._journal = journal
        self._prices = prices
        self._turn = threading.Condition()
        self._used: dict[Payer, Usage] = {}
        self._under_way: dict[Payer, Usage] = {"planner": NOTHING, "judge": NOTHING}
        self._held: dict[Payer, Usage] = {"planner": NOTHING, "judge": NOTHING}
        before = recorded_spending(journal) or Spending()
        requested = {calls.who: calls.tokens for calls in journal.calls()}
        for who in self._held:
            account = before.of(who)
            used = account.used + account.held
            # What was charged before anybody counted it here.
            more = max(0, requested.get(who, 0) - _tokens_of(used))
            self._used[who] = used + self._bound(who, more)
        self._write()

    def meter(self, who: Payer) -> _PurseMeter:
        """What the chat model of planner or judge is given."""
        return _PurseMeter(self, who)

    def usage(self, who: Payer, tokens: Tokens) -> Usage:
        """Tokens of planner or judge, and what they cost."""
        prices = self._prices.get(who)
        money = prices.cost(tokens) if prices else 0
        return _usage(who, tokens.total, money)

    def reserve(self, who: Payer, most: Usage) -> None:
        """Hold what an attempt may take; wait for attempts under way if they leave no room.

        Raises LimitReached if nothing is under way and it still does not fit.
        """
        with self._turn:
            while True:
                problem = self._problem(who, most)
                if not problem:
                    break
                if not any(map(_tokens_of, self._under_way.values())):
                    self._write()
                    raise LimitReached(problem)
                self._turn.wait(TICK)
            self._under_way[who] += most
            if not _within(self._under_way[who], self._held[who]):
                self._hold_more(who, most)

    def settle(self, who: Payer, most: Usage, taken: Usage) -> None:
        """Give back what `reserve` held, and count what the attempt took."""
        with self._turn:
            self._under_way[who] = self._under_way[who] - most
            self._used[who] += taken
            if not _tokens_of(self._under_way[who]):
                self._held[who] = NOTHING
                self._write()
            elif not _within(taken, most):  # a server that took more than was held for it
                self._hold_more(who, most)
            else:  # the journal holds for the others what this one left
                self._held[who] = self._held[who] - taken
            self._turn.notify_all()

    # -- inside a turn ----------------------------------------------------------------------------

    def _hold_more(self, who: Payer, most: Usage) -> None:
        """Write down what is used, and hold what is under way and some worst cases more.

        The other one keeps what it has under way: both share the money.
        """
        self._held = dict(self._under_way)
        held = self._under_way[who]
        for _ in range(HELD_AT_ONCE):
            if self._problem(who, most, held - self._under_way[who]):
                break
            held += most
        self._held[who] = held
        self._write()

    def _problem(self, who: Payer, more: Usage, besides: Usage = NOTHING) -> str:
        """Which limit does not allow so much more, "" if all do."""
        taken = self._used[who] + self._under_way[who] + besides
        limit = self.limits.tokens.get(who)
        if limit is not None and _tokens_of(taken + more) > limit:
            used, most = _tokens_of(taken), _tokens_of(more)
            left = f"{max(0, limit - used):,}"
            return self._said(
                f"budget.{who}_tokens", who, f"{most:,} tokens", f"{limit:,}", f"{used:,}", left
            )
        money = self.limits.money
        if money is None:
            return ""
        used = besides.money
        for name in self._used:
            used += self._used[name].money + self._under_way[name].money
        if used + more.money <= money:
            return ""
        need, total, taken_so_far = map(money_text, (more.money, money, used))
        left = money_text(max(0, money - used))
        return self._said("budget.money", who, need, total, taken_so_far, left)

    def _said(self, key: str, who: Payer, most: str, limit: str, used: str, left: str) -> str:
        return (
            f"{key}: the next request of the {who} may take {most}; of {limit} are {used} used, "
            f"{left} left; to go on: python -m mosaic resume {self._journal.folder} "
            f"--set {key}=MORE --accept-changes"
        )

    def _bound(self, who: Payer, tokens: int) -> Usage:
        prices = self._prices.get(who)
        return _usage(who, tokens, prices.at_most(tokens) if prices else 0)

    def _write(self) -> None:
        spending = Spending(
            planner=Account(used=self._used["planner"], held=self._held["planner"]),
            judge=Account(used=self._used["judge"], held=self._held["judge"]),
        )
        self._journal.keep(NOTE, spending.model_dump_json())


@dataclass(frozen=True)
class _PurseMeter:
    """The purse as one chat model sees it (`eval.chat.metering.Meter`)."""

    purse: Purse
    who: Payer

    def reserve(self, most: Tokens) -> None:
        self.purse.reserve(self.who, self.purse.usage(self.who, most))

    def settle(self, most: Tokens, taken: Tokens) -> None:
        usage = self.purse.usage
        self.purse.settle(self.who, usage(self.who, most), usage(self.who, taken))


def _usage(who: Payer, tokens: int, money: int) -> Usage:
    if who == "planner":
        return Usage(planned=tokens, money=money)
    return Usage(judged=tokens, money=money)


def _tokens_of(usage: Usage) -> int:
    return usage.judged + usage.planned


def _within(usage: Usage, limit: Usage) -> bool:
    return _tokens_of(usage) <= _tokens_of(limit) and usage.money <= limit.money
