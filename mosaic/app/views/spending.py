"""What models have taken of the limits on money and tokens, for reports and for `status`."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from eval.chat.prices import MILLION
from mosaic.app.config import RunConfig
from mosaic.app.shapes import Limit
from mosaic.core.journal import Journal
from tools.effects.spending import recorded_spending


def spending_of(journal: Journal, config: RunConfig) -> dict[str, Limit]:
    """What models have taken against the limits on money and tokens, by the limit's name.

    Nothing if nothing was ever counted.
    """
    spending = recorded_spending(journal)
    if spending is None:
        return {}
    found: dict[str, Limit] = {}
    money = Decimal(spending.money) / MILLION
    if money or config.budget.money is not None:
        found["money"] = _limit(money, config.budget.money)
    planner = spending.planner.used.planned + spending.planner.held.planned
    judge = spending.judge.used.judged + spending.judge.held.judged
    if config.planner.kind == "llm":
        found["planner_tokens"] = _limit(Decimal(planner), config.budget.planner_tokens)
    if config.judge.kind == "llm":
        found["judge_tokens"] = _limit(Decimal(judge), config.budget.judge_tokens)
    return found


def _limit(used: Decimal, limit: float | None) -> Limit:
    if limit is None:
        return Limit(used=float(used), limit=None, left=None)
    left = max(Decimal(0), Decimal(repr(limit)) - used)
    return Limit(used=float(used), limit=limit, left=float(left))


def spending_lines(limits: Mapping[str, Limit]) -> list[str]:
    """A line for each limit."""
    lines = []
    for name, limit in limits.items():
        line = f"{name.replace('_', ' ')}: {_amount(limit.used)} used"
        if limit.limit is not None and limit.left is not None:
            left = _amount(limit.left)
            line += f" of {_amount(limit.limit)}, {left} left (budget.{name})"
        lines.append(line)
    return lines


def _amount(value: float) -> str:
    """A number of tokens, or a sum of money to a millionth.

    >>> _amount(1234567.0), _amount(0.0125)
    ('1,234,567', '0.0125')
    """
    text = f"{Decimal(repr(value)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
