"""What a run has paid to the providers of its models, as it stands in the journal."""

from __future__ import annotations

from typing import Literal

from mosaic.core.types.base import FrozenModel
from mosaic.core.types.runs import Usage

Payer = Literal["planner", "judge"]


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
