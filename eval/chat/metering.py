"""What a model's attempts may take: asked before each attempt, settled after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from eval.chat.fault import TokenCounts


@dataclass(frozen=True)
class Tokens:
    """Tokens that an attempt reads and writes."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        return self.read + self.written

    def counted(self, usage: TokenCounts) -> Tokens:
        """What the server counted; these, which are a bound, for what it did not count.

        >>> Tokens(900, 512).counted(TokenCounts(prompt=700, completion=None))
        Tokens(read=900, written=512)
        """
        if usage.prompt is None or usage.completion is None:
            return self
        return Tokens(usage.prompt, usage.completion)


class Meter(Protocol):
    """Somebody's limit on what attempts may take. Safe to share between threads."""

    def reserve(self, most: Tokens) -> None:
        """Hold what an attempt may take. Raises ChatUnavailable if a limit does not allow it."""
        ...

    def settle(self, most: Tokens, taken: Tokens) -> None:
        """Give back what `reserve` held, and count what the attempt took."""
        ...


class _Unlimited:
    def reserve(self, most: Tokens) -> None:
        """Allowed."""

    def settle(self, most: Tokens, taken: Tokens) -> None:
        """Not counted."""


UNLIMITED = _Unlimited()
