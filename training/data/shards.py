"""Parts of the rows of files, for work on several machines: each part knows its rows by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from mosaic.core.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One of several parts of the rows, which are dealt out in turn: `number` of `of`, from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`2/8` as a part. Raises UsageError for anything else.

        >>> Part.parse("2/8")
        Part(number=2, of=8)
        """
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UsageError(f"--shard {text}: write it as I/N, from 1/N to N/N, such as 2/8")

    def of_rows(self, rows: Iterable[T]) -> Iterator[T]:
        """The rows of the part.

        >>> list(Part(2, 3).of_rows("abcdefgh"))
        ['b', 'e', 'h']
        """
        return islice(rows, self.number - 1, None, self.of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Part(1, 1)
