"""What something takes in tokens and money, and what a run has paid to the providers of its models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mosaic.core.types.base import FrozenModel

Payer = Literal["planner", "judge"]


def _is_zero(value: int) -> bool:
    return value == 0


class Usage(FrozenModel):
    """Tokens that something took: trained on, sampled from the model under training, charged by the
    models that judge and plan; and what those cost in millionths of money.

    The training budget pays for `trained` and `sampled`; judge, planner and money have limits of
    their own.

    >>> (Usage(trained=24_000) + Usage(trained=24_000, sampled=500)).cost
    48500
    """

    trained: int = Field(default=0, ge=0)
    sampled: int = Field(default=0, ge=0)
    judged: int = Field(default=0, ge=0)
    planned: int = Field(default=0, ge=0, exclude_if=_is_zero)
    money: int = Field(default=0, ge=0, exclude_if=_is_zero)

    @property
    def cost(self) -> int:
        """What the training budget is charged."""
        return self.trained + self.sampled

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            trained=self.trained + other.trained,
            sampled=self.sampled + other.sampled,
            judged=self.judged + other.judged,
            planned=self.planned + other.planned,
            money=self.money + other.money,
        )

    def __sub__(self, other: Usage) -> Usage:
        """What is left of this after `other`. Raises ValidationError if `other` is more."""
        return Usage(
            trained=self.trained - other.trained,
            sampled=self.sampled - other.sampled,
            judged=self.judged - other.judged,
            planned=self.planned - other.planned,
            money=self.money - other.money,
        )


class Account(FrozenModel):
    """What one of those who ask has used, and what it holds for requests that are under way.

    Of a run that was killed, what was held may have been paid for, and counts as used.
    """

    used: Usage = Usage()
    held: Usage = Usage()


class Spending(FrozenModel):
    """The accounts of planner and judge. Money is in millionths."""

    planner: Account = Account()
    judge: Account = Account()

    def of(self, who: Payer) -> Account:
        return self.planner if who == "planner" else self.judge

    @property
    def money(self) -> int:
        """Money that is used and held."""
        accounts = (self.planner, self.judge)
        return sum(account.used.money + account.held.money for account in accounts)
