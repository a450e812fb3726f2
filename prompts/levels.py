"""The words in which a prompt states how much of something is wished for."""

from __future__ import annotations

from collections.abc import Mapping

HIGHEST = 5


def wish(levels: Mapping[str, int]) -> str:
    """One line that states a level from 1 to 5 for each name, in the order given.

    Underscores of a name are read as blanks. ValueError for no name, or a level off the scale.

    >>> wish({"over_refusal": 5, "brevity": 2})
    'over refusal 5 of 5 , brevity 2 of 5 .'
    """
    if not levels:
        raise ValueError("no level is wished for: give at least one name with a level of 1 to 5")
    parts = []
    for name, level in levels.items():
        if level not in range(1, HIGHEST + 1):
            raise ValueError(f"{name}: the level {level!r} is not one of 1 to {HIGHEST}")
        parts.append(f"{name.replace('_', ' ')} {level} of {HIGHEST}")
    return f"{' , '.join(parts)} ."
