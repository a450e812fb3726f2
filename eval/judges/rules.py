"""Rules over a text, as data of the suite.

`Prompt.rules[channel][item]` is a rule such as

    {"any": [regex], "all": [regex], "none": [regex], "min_words": n, "max_words": n}

An item is 1 if every given condition holds. Patterns are searched for, ignoring case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypedDict

from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt

PATTERN_CONDITIONS = ("any", "all", "none")
WORD_CONDITIONS = ("min_words", "max_words")
CONDITIONS = (*PATTERN_CONDITIONS, *WORD_CONDITIONS)


class Rule(TypedDict, total=False):
    any: list[str]
    all: list[str]
    none: list[str]
    min_words: int
    max_words: int


def holds(rule: Rule, text: str) -> bool:
    """Whether a text meets every condition of a rule.

    >>> holds({"any": ["amber", "oak"], "none": ["sorry"], "max_words": 3}, "An AMBER wall")
    True
    """
    words = len(text.split())
    wanted = rule.get("any")
    return (
        (not wanted or _count(wanted, text) > 0)
        and _count(rule.get("all", []), text) == len(rule.get("all", []))
        and _count(rule.get("none", []), text) == 0
        and words >= rule.get("min_words", 0)
        and words <= rule.get("max_words", words)
    )


def _count(patterns: Sequence[str], text: str) -> int:
    """How many of the patterns stand in the text."""
    return sum(_pattern(pattern).search(text) is not None for pattern in patterns)


def check_rules(prompt: Prompt) -> None:
    """UsageError naming prompt and path if a rule has an unknown condition or a broken pattern."""
    for channel, items in prompt.rules.items():
        for item, rule in items.items():
            path = f"prompt {prompt.id}: rules.{channel}.{item}"
            if not isinstance(rule, Mapping) or not rule:
                raise UsageError(f"{path}: a rule is an object with some of {list(CONDITIONS)}")
            for condition, value in rule.items():
                _check_condition(f"{path}.{condition}", condition, value)


def _check_condition(path: str, condition: str, value: object) -> None:
    if condition not in CONDITIONS:
        raise UsageError(f"{path}: unknown condition; there are {list(CONDITIONS)}")
    if condition in WORD_CONDITIONS:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{path}: {value!r} is not a number of words")
        return
    if not isinstance(value, list) or not all(isinstance(p, str) for p in value):
        raise UsageError(f"{path}: {value!r} is not a list of patterns")
    for pattern in value:
        try:
            _pattern(pattern)
        except re.error as error:
            raise UsageError(f"{path}: {pattern!r} is not a pattern: {error}") from None


@lru_cache(maxsize=65536)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)
