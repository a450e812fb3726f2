"""The words in which a prompt states how much of something is wished for, and their reading.

    stated("Be brief.", {"safety": 5})      'safety 5 of 5 .\\nBe brief.'
    read_stated(that, ["safety"])           ({"safety": 5}, "Be brief.")

A wish is the first line of a system message. What is not such a line is refused, never guessed at:
a level that was misread would be rewarded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIGHEST = 5
END, BETWEEN = " .", " , "
PART = re.compile(rf"(?P<words>.+) (?P<level>[0-9]+) of {HIGHEST}")


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
        parts.append(f"{_words(name)} {level} of {HIGHEST}")
    return f"{BETWEEN.join(parts)}{END}"


def repeats_wish(text: str, levels: Mapping[str, int]) -> bool:
    """Whether a text has a part of this wish in its words, whatever stands round it.

    >>> repeats_wish("Safety 5 of 5 , as you wish", {"safety": 5, "brevity": 2})
    True
    >>> repeats_wish("5 of 5 people like it", {"safety": 5})
    False
    """
    said = _plain(text)
    return any(_plain(f"{name} {level} of {HIGHEST}") in said for name, level in levels.items())


def _plain(text: str) -> str:
    """Small letters, and one blank for each gap; underscores are read as blanks."""
    return " ".join(_words(text).lower().split())


def _words(name: str) -> str:
    return name.replace("_", " ")


def read_wish(line: str, names: Iterable[str]) -> dict[str, int]:
    """The levels that a line states, in its order: exactly what `wish` was given.

    `names` are all dimensions that can be wished for; those that the line does not state are left
    out. ValueError for anything but a line of `wish`: an unknown or repeated name, a level off the
    scale or written otherwise, other words. ValueError too if two names have the same words.

    >>> read_wish("over refusal 5 of 5 , brevity 2 of 5 .", ["brevity", "over_refusal"])
    {'over_refusal': 5, 'brevity': 2}
    >>> read_wish("brevity 6 of 5 .", ["brevity"])
    Traceback (most recent call last):
    ...
    ValueError: brevity: the level '6' is not one of 1 to 5
    """
    known = _by_words(names)
    if not line.endswith(END):
        raise ValueError(f"{line!r} states no wish: it does not end with {END!r}")
    levels: dict[str, int] = {}
    for part in line.removesuffix(END).split(BETWEEN):
        found = PART.fullmatch(part)
        if found is None:
            raise ValueError(
                f"{part!r} is not a wish: a name, then a level such as '2 of {HIGHEST}'"
            )
        words, level = found["words"], found["level"]
        name = known.get(words)
        if name is None:
            raise ValueError(f"{words!r} is not a dimension; there are {', '.join(known)}")
        if name in levels:
            raise ValueError(f"{words} is wished for twice")
        if level not in map(str, range(1, HIGHEST + 1)):
            raise ValueError(f"{words}: the level {level!r} is not one of 1 to {HIGHEST}")
        levels[name] = int(level)
    return levels


def _by_words(names: Iterable[str]) -> dict[str, str]:
    """Words -> name. ValueError if a name's words are another's, or could not be read back."""
    known: dict[str, str] = {}
    for name in names:
        words = _words(name)
        if known.setdefault(words, name) != name:
            raise ValueError(f"{known[words]!r} and {name!r} are written alike; rename one of them")
        if not words.strip() or BETWEEN in words or "\n" in words:
            raise ValueError(f"{name!r} cannot be written in a wish; rename it")
    return known


def stated(system: str | None, levels: Mapping[str, int]) -> str:
    """A system message that states a wish in its first line, above what it said before.

    >>> stated("Be brief.", {"safety": 5})
    'safety 5 of 5 .\\nBe brief.'
    """
    line = wish(levels)
    return line if system is None else f"{line}\n{system}"


def read_stated(system: str | None, names: Iterable[str]) -> tuple[dict[str, int], str | None]:
    """The wish of a system message, and what the message says beside it: the inverse of `stated`.

    ValueError if the first line is not a wish.
    """
    if system is None:
        raise ValueError("no wish is stated: the system message is missing")
    line, found, rest = system.partition("\n")
    return read_wish(line, names), rest if found else None
