"""What a model's tokens cost, in millionths of somebody's currency: exact, and rounded up once."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

from pydantic import Field

from eval.chat.metering import Tokens
from mosaic.core.types.base import FrozenModel

MILLION = 1_000_000


class Prices(FrozenModel):
    """Money per million tokens: those that a model reads (`input`) and writes (`output`).

    The currency is whatever the provider bills in. Prices are taken as the decimals that stand in
    the config.
    """

    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def cost(self, tokens: Tokens) -> int:
        """What these tokens cost in millionths, each call rounded up.

        A price per million tokens is a price in millionths per token:

        >>> Prices(input=0.15, output=0.6).cost(Tokens(read=1000, written=101))
        211
        """
        read = Decimal(repr(self.input)) * tokens.read
        written = Decimal(repr(self.output)) * tokens.written
        return int((read + written).to_integral_value(ROUND_CEILING))

    def at_most(self, tokens: int) -> int:
        """What so many tokens cost in millionths if all of them were of the dearer kind."""
        dearer = max(self.input, self.output)
        return Prices(input=dearer, output=0).cost(Tokens(read=tokens))


def micros(money: float) -> int:
    """A sum of money in millionths, rounded down: a limit is never raised.

    >>> micros(12.5)
    12500000
    """
    return int(Decimal(repr(money)) * MILLION)


def money_text(millionths: int) -> str:
    """A sum of money as people write it.

    >>> money_text(12_500_000), money_text(211), money_text(0)
    ('12.5', '0.000211', '0')
    """
    text = f"{Decimal(millionths) / MILLION:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
