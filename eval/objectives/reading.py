r"""Reading an answer out of what a model wrote: a number, a choice, or a list of parts.

Where a text marks its answer, nothing but the marked place is read: the last `\boxed{...}` or the
last line `Answer: ...` (also `Final answer: ...` and `The answer is: ...`, in any case, with
Markdown around it), whichever begins later. Without a mark the whole text is read, and what stands
last in it counts.

A reading is the text of what was read, None if there was nothing to read, or a list if it could not
be told what is meant: the candidates. A candidate is never picked: an answer that hedges is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

Reading = str | None | list[str]

ANSWER_LINE = re.compile(
    r"^[ \t*_#>-]*(?:the[ ]+)?(?:final[ ]+)?answer(?:[ ]+is)?[ \t*_]*:[\s*_]*(.*)$",
    re.IGNORECASE | re.MULTILINE,
)
BOXED = r"\boxed{"


def marked(text: str) -> str | None:
    r"""What stands in the place that a text marks as its answer. None if it marks none.

    >>> marked("First 3.\n**Answer:** 42 apples\nGood luck!")
    '42 apples'
    >>> marked(r"Answer: $\boxed{\frac{1}{2}}$")
    '\\frac{1}{2}'
    """
    lines = list(ANSWER_LINE.finditer(text))
    box = text.rfind(BOXED)
    if lines and lines[-1].start() > box:
        return lines[-1].group(1)
    return None if box < 0 else _inside_braces(text[box + len(BOXED) :])


def _inside_braces(text: str) -> str:
    """What stands before the brace that closes an open one; all of it if none does."""
    depth = 1
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:position]
    return text


# Numbers

MAX_DIGITS = 400
NUMBER = re.compile(
    r"""
    (?P<name> [^\W\d_]\w* (?: (?<=[0-9]) (?:[.,][0-9]+)+ )? )  # x2, v1.2: digits of a name
    | (?P<sign> (?<![\w)\]}.,]) [-+−] )?
      (?: \\?[$€£¥] [ ]? )?
      (?P<inner> (?<![\w$€£¥)\]}.,]) [-+−] )?       # $-5
      (?P<digits>
        (?: (?<![\w.]) \. )? (?<![^\W_]) [0-9] (?: [0-9] | [.,](?=[0-9]) )*
      )
      (?: [eE] (?P<exponent> [-+−]?[0-9]{1,3} ) (?![0-9])
        | [ \t]* (?: [×x*·] | \\times | \\cdot ) [ \t]*
          10 [ ]? \^ [ ]? \{? (?P<power> [-+−]?[0-9]{1,3} ) \}?
      )?
      (?P<suffix> \w* )                             # 10km, 3rd
    """,
    re.VERBOSE,
)
# Thousands that are set apart by LaTeX or by a blank that does not break.
SPACED = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!]|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?|\.[0-9]+|[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")
# Two numbers with an operator between them are an expression, a date, a time or a range.
OPERATOR = re.compile(r"[ \t]*(?:\*{1,2}|[-+/:^×÷·–−]|\\times|\\cdot|\\div|\}[ ]?\{)[ \t]*[({]?")
BEFORE = re.compile(r"(?:\^[({]?|√|\\sqrt\{)$")
AFTER = re.compile(r"[ \t]*[\^/÷√⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|[ \t]*\\(?:pi|sqrt|d?frac|tfrac)\b")


def read_number(text: str) -> Reading:
    r"""The number that an answer gives: the last one of the marked place, or else of the text.

    A number may have a sign, a currency, commas between groups of three digits, a decimal point, an
    exponent (`1e3`, `6.02 × 10^23`), and a unit behind it. A percent sign changes nothing. What
    stands last but is not one plain number (`1/2`, `\frac{1}{2}`, `3-4`, `10:30`, `1,5`, `2^10`) is
    a list with that text.

    >>> read_number("We have 3 boxes of 4, so $1,234.50 in total.")
    '1,234.50'
    >>> read_number("About 3 in 10, or 1/2."), read_number("None.")
    (['1/2'], None)
    """
    region = marked(text)
    region = SPACED.sub(",", text if region is None else region)
    found = [match for match in NUMBER.finditer(region) if not match["name"]]
    if not found:
        return None
    start, end = _expression(region, found)
    last = found[-1]
    if start == last.start() and _is_plain(region, last):
        return _number_text(last)
    return [region[start:end].strip()]


def _expression(text: str, found: list[re.Match[str]]) -> tuple[int, int]:
    """Where the last number begins and ends, with the numbers that operators tie to it."""
    position = len(found) - 1
    while position > 0:
        between = text[found[position - 1].end() : found[position].start()]
        tied = OPERATOR.fullmatch(between) is not None
        if not tied and between not in ("", " "):  # 5 -3, 1 1/2 and 1 234 are not clear either
            break
        position -= 1
    return found[position].start(), found[-1].end()


def _is_plain(text: str, match: re.Match[str]) -> bool:
    """Whether a match is one number by itself, and well formed."""
    digits = match["digits"]
    return (
        len(digits) <= MAX_DIGITS
        and PLAIN.fullmatch(digits) is not None
        and not (match["sign"] and match["inner"])
        and not any(character.isdigit() for character in match["suffix"])
        and BEFORE.search(text[max(0, match.start() - 8) : match.start()]) is None
        and AFTER.match(text, match.end()) is None
    )


def _number_text(match: re.Match[str]) -> str:
    """A plain match as text: sign, digits as they were written, exponent."""
    sign = "-" if (match["sign"] or match["inner"]) in ("-", "−") else ""
    exponent = match["exponent"] or match["power"]
    if not exponent:
        return sign + match["digits"]
    return f"{sign}{match['digits']}e{exponent.replace('−', '-')}"


def number_value(text: str) -> Fraction:
    """The exact value of what `read_number` read.

    >>> number_value("1,234.50"), number_value("2e-1")
    (Fraction(2469, 2), Fraction(1, 5))
    """
    return Fraction(text.replace(",", ""))


# Choices

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# A letter that may be a word is a choice before one of these, as in "A is right".
VERBS = ("is", "was", "seems", "and", "or", "because", "since")
# Nothing but this between two choices: a list of them, or a hedge.
LISTED = re.compile(r"[\W_]*(?:(?:and|or|and/or)\b[\W_]*)?", re.IGNORECASE)


class Mention(NamedTuple):
    """A place of a text that names an option."""

    start: int
    end: int
    letter: str


def read_choice(text: str, options: Mapping[str, str]) -> Reading:
    """The letter of the option that an answer names last. `options` is letter -> its text or "".

    An option is named by its capital letter standing alone, by its small letter in brackets or as
    the whole answer, or by its text in any case. `A` and `I` before a small word are words. It
    is a list of letters if the marked place names several options, or if the last one stands in a
    list with others ("A or B", "B) Paris" where Paris is A).

    >>> letters = {"A": "Paris", "B": "Rome", "C": "Lyon"}
    >>> read_choice("A is tempting, but I choose (b).", letters)
    'B'
    >>> read_choice("It was Rome", letters), read_choice("?", letters)
    ('B', None)
    >>> read_choice("A or B", letters)
    ['A', 'B']
    """
    region = marked(text)
    found = _mentions(text if region is None else region, options)
    if not found:
        return None
    named = {found[-1].letter}
    for earlier, later in zip(found[-2::-1], found[:0:-1], strict=True):
        if region is None and not LISTED.fullmatch(text, earlier.end, later.start):
            break
        named.add(earlier.letter)
    return found[-1].letter if len(named) == 1 else sorted(named)


def _mentions(text: str, options: Mapping[str, str]) -> list[Mention]:
    """All mentions of options, in the order of the text."""
    whole = text.strip(" \t\n.*_()[]:$\"'`").upper()
    if whole in options:
        return [Mention(0, len(text), whole)]
    found = []
    for match in _named_options(tuple(options.items())).finditer(text):
        letter = (match["letter"] or match["small"] or match.lastgroup or "").upper()
        if match["letter"] is None or not _is_word(text, match):
            found.append(Mention(match.start(), match.end(), letter))
    return found


@lru_cache(maxsize=4096)
def _named_options(options: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """What names an option. Each text is a group called by its letter, the longest text first."""
    parts = []
    for letter, text in sorted(options, key=lambda option: -len(option[1])):
        if text:
            parts.append(
                rf"(?<!\w)(?<![0-9][.,])(?P<{letter}>(?i:{re.escape(text)}))(?!\w|[.,][0-9])"
            )
    letters = "".join(letter for letter, _ in options)
    parts.append(rf"(?<![\w'’-])(?P<letter>[{letters}])(?![\w'’]|-\w)")
    parts.append(rf"(?<=\()(?P<small>[{letters.lower()}])(?=\))")
    return re.compile("|".join(parts))


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether a letter is the article A or the pronoun I: a small word follows that is not a verb."""
    if match.group() not in ("A", "I"):
        return False
    following = re.match(r"[ \t]+([a-z]+)", text[match.end() : match.end() + 40])
    return following is not None and (match.group() == "I" or following.group(1) not in VERBS)


# Lists

SEPARATOR = re.compile(r"[ \t]*;[ \t]*|,[ \t]+(?:and[ \t]+)?|[ \t]+and[ \t]+")
LIST_MARK = re.compile(r"^[ \t]*(?:[-*•][ \t]+|\(?[0-9]{1,2}[.)][ \t]+)")


def read_parts(text: str, count: int) -> list[str] | None:
    r"""The parts of an answer that should have `count` of them, in order, less missing ones.

    The marked place is split at `;`, at commas with a blank behind them, and at `and`. Without a
    mark the last `count` lines that are not empty are the parts, less their bullets or numbers; a
    text of fewer lines is split as a marked place is, its last line only. None if there are more
    parts than `count`: nobody can tell which ones are meant.

    >>> read_parts("Answer: 3, 5 and 1,000", 3)
    ['3', '5', '1,000']
    >>> read_parts("The roots:\n1. 3\n2. 5", 2)
    ['3', '5']
    """
    region = marked(text)
    lines = [line for line in text.splitlines() if line.strip()]
    if region is None and count > 1 and len(lines) >= count:
        return [LIST_MARK.sub("", line).strip() for line in lines[-count:]]
    if region is None:
        region = lines[-1] if lines else ""
    parts = [part for part in SEPARATOR.split(region) if part.strip()]
    return parts if len(parts) <= count else None
