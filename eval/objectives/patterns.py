"""Regular expressions of a suite, run on text that a model wrote.

A pattern such as `(a+)+b` takes a time that doubles with every letter of some texts. Such patterns
cannot be told by their looks, and no cap on the text makes them safe. They are therefore run by the
`regex` package, which `transformers` brings too: it reads what `re` reads and stops at a time
limit. An answer on which the limit is reached is not scored, and the reason says why.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from eval.objectives.base import Malformed, Unchecked

if TYPE_CHECKING:
    import regex

SECONDS = 2.0
MAX_PATTERN = 2_000
MAX_TEXT = 100_000
# What `{m,n}` may multiply to in one pattern: compiling `((a{999}){999}){999}` takes all memory.
MAX_COPIES = 10_000
COUNTED = re.compile(r"\{(\d*),?(\d*)\}")


def check_pattern(pattern: str) -> None:
    """Raise Malformed if a pattern does not compile, or would be too large to compile.

    >>> check_pattern("(a")
    Traceback (most recent call last):
    eval.objectives.base.Malformed: '(a' is not a regular expression: missing ) at position 2
    """
    if len(pattern) > MAX_PATTERN:
        raise Malformed(f"a regular expression has at most {MAX_PATTERN:,} characters")
    copies = 1
    for least, most in COUNTED.findall(pattern):
        for count in (least, most):
            if len(count) > len(str(MAX_COPIES)):
                copies = MAX_COPIES + 1
        if copies <= MAX_COPIES:
            copies *= max(1, int(least or 0), int(most or 0))
    if copies > MAX_COPIES:
        raise Malformed(
            f"{pattern[:80]!r}: its counts multiply to more than {MAX_COPIES:,}; use smaller ones"
        )
    import regex

    try:
        _compiled(pattern, False)
    except (regex.error, ValueError, RecursionError) as error:
        raise Malformed(f"{pattern[:80]!r} is not a regular expression: {error}") from None


def matches(pattern: str, text: str, *, full: bool, ignore_case: bool) -> bool:
    """Whether a checked pattern matches the whole text (`full`), or some part of it.

    Raises Unchecked if the text is too long, or the pattern takes too long on it.
    """
    if len(text) > MAX_TEXT:
        raise Unchecked(f"the answer has more than {MAX_TEXT:,} characters")
    compiled = _compiled(pattern, ignore_case)
    search = compiled.fullmatch if full else compiled.search
    try:
        return search(text, timeout=SECONDS) is not None
    except (TimeoutError, MemoryError):
        raise Unchecked(
            f"the pattern {pattern[:80]!r} takes more than {SECONDS:g} seconds on this answer; "
            "give it fewer repeats"
        ) from None


@lru_cache(maxsize=4096)
def _compiled(pattern: str, ignore_case: bool) -> regex.Pattern[str]:
    import regex

    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
