"""Whether a checker of IFEval reads a constraint's own words as they stand.

The library puts the words of a constraint into regular expressions, unescaped. `$5` is then never
found, `C++` is found in every C, and `.NET` between word boundaries is found in no text at all.
Which words come to harm cannot be read off a list of characters. Each checker is therefore tried on
its own words: on texts that hold them and on texts that all but hold them, where plain reading
leaves no doubt whether the constraint is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

# Where a word may stand. What stands round it, here `so` and `Some`, is replaced by a word that
# shares no letter with it.
CONTEXTS = ("so {} so", "{} so", "so {}", "so {}, so", "so {}. Some", "so ({}) so", 'so "{}" so')
FILLERS = "zqxjkvwybfgh7390жщ"
# A near miss has one character changed, left out or doubled: of longer words at so many places.
MAX_PLACES = 64
SHOWN = 60

Params = Mapping[str, object]
Follows = Callable[[str], bool]


class Attempt(NamedTuple):
    """A text, whether it meets the constraint when read plainly, and the word it is about."""

    text: str
    follows: bool
    word: str


def misread(identifier: str, params: Params, follows: Follows) -> str | None:
    """How a checker misreads a constraint's own words, or None.

    `params` are complete and of the right types; `follows` is the checker, built with them.
    """
    for attempt in _attempts(identifier, params):
        if follows(attempt.text) != attempt.follows:
            what = "refuses" if attempt.follows else "accepts"
            text = " ".join(attempt.text.split())
            shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
            return (
                f"{identifier}: the checker does not read {attempt.word!r} as it stands: it {what} "
                f"an answer such as {shown!r}"
            )
    return None


def _attempts(identifier: str, params: Params) -> Iterator[Attempt]:
    """Texts to try a checker on; none for checkers without words of their own."""
    if identifier == "keywords:existence":
        yield from _existence(_texts(params["keywords"]))
    elif identifier == "keywords:forbidden_words":
        yield from _forbidden(_texts(params["forbidden_words"]))
    elif identifier == "keywords:frequency":
        count = _number(params["frequency"])
        yield from _frequency(str(params["keyword"]), count, str(params["relation"]))
    elif identifier == "detectable_content:postscript":
        yield from _around(str(params["postscript_marker"]), "Some so.\n\n{} so.")
    elif identifier == "detectable_format:multiple_sections":
        yield from _sections(str(params["section_spliter"]), _number(params["num_sections"]))
    elif identifier == "startend:end_checker":
        yield from _around(str(params["end_phrase"]), "Some so. {}")
    elif identifier == "combination:repeat_prompt":
        yield from _around(str(params["prompt_to_repeat"]), "{}\n\nSome so.")
    elif identifier == "length_constraints:nth_paragraph_first_word":
        yield from _first_word(params)


# -- one kind of checker each ---------------------------------------------------------------------


def _existence(words: Sequence[str]) -> Iterator[Attempt]:
    """All words must stand in the answer, as parts of others or by themselves."""
    for word in words:
        others = " ".join(other for other in words if other != word)
        for context in CONTEXTS:
            text = _filled(context, word) + f"\n{others}\n"
            yield Attempt(text, True, word)
        for text in _near_texts(word, "so {} so", others):
            yield Attempt(text, False, word)


def _forbidden(words: Sequence[str]) -> Iterator[Attempt]:
    """None of the words may stand in the answer by itself."""
    for word in words:
        for context in CONTEXTS:
            yield Attempt(_filled(context, word), False, word)
        for text in _near_texts(word, "so {} so"):
            if not any(_contains(text, other) for other in words):
                yield Attempt(text, True, word)


def _frequency(word: str, count: int, relation: str) -> Iterator[Attempt]:
    """The word stands in the answer at least `count` times, or fewer."""
    if count < 1:
        return
    word = word.strip()
    at_least = relation == "at least"
    for context in CONTEXTS:
        part = _filled(context, word) + "\n"
        yield Attempt(part * count, at_least, word)
        yield Attempt(f"{_filler(word)}.\n" + part * (count - 1), not at_least, word)
    for text in _near_texts(word, "so {} so"):
        yield Attempt(f"{text}\n" * count, not at_least, word)


def _around(word: str, context: str) -> Iterator[Attempt]:
    """The words stand at a certain place of the answer."""
    word = word.strip()
    yield Attempt(_filled(context, word), True, word)
    for text in _near_texts(word, context):
        yield Attempt(text, False, word)


def _sections(word: str, count: int) -> Iterator[Attempt]:
    """So many sections begin with the word and a number."""
    if count < 1:
        return
    word = word.strip()

    def sections(begin: str, number: int) -> str:
        words = f"{_filler(word)}.\n"
        return words + "".join(f"{begin} {place}\n{words}" for place in range(1, number + 1))

    yield Attempt(sections(word, count), True, word)
    yield Attempt(sections(word, count - 1), False, word)
    for near in _near_misses(word):
        text = sections(near, count)
        if not _contains(text, word):
            yield Attempt(text, False, word)


def _first_word(params: Params) -> Iterator[Attempt]:
    """One of so many paragraphs begins with the word."""
    word = str(params["first_word"])
    count, place = _number(params["num_paragraphs"]), _number(params["nth_paragraph"])

    def paragraphs(first: str) -> str:
        filler = _filler(word)
        parts = [f"{filler} {filler}."] * count
        parts[place - 1] = f"{first} {filler}."
        return "\n\n".join(parts)

    if 1 <= place <= count:
        yield Attempt(paragraphs(word), True, word)
        for near in _near_misses(word):
            if near.strip() and near.split()[0].lower() != word.lower():
                yield Attempt(paragraphs(near), False, word)


# -- texts ----------------------------------------------------------------------------------------


def _near_texts(word: str, context: str, others: str = "") -> Iterator[str]:
    """Texts that all but hold a word; `others` stand beside it."""
    for near in _near_misses(word):
        text = _filled(context, near, word) + (f"\n{others}" if others else "")
        if not _contains(text, word):
            yield text


def _near_misses(word: str) -> Iterator[str]:
    """The word with one character changed, left out or doubled."""
    other = _filler(word)[0]
    step = max(1, -(-len(word) // MAX_PLACES))
    for place in range(0, len(word), step):
        before, character, after = word[:place], word[place], word[place + 1 :]
        for changed in (other, "", 2 * character):
            if (before + changed + after).strip():
                yield before + changed + after


def _filled(context: str, word: str, unlike: str = "") -> str:
    """The context round a word; what fills it up shares no letter with the word or `unlike`."""
    filler = _filler(unlike or word)
    return context.replace("so", filler).replace("Some", filler.capitalize()).replace("{}", word)


def _filler(word: str) -> str:
    """A word that shares no letter with the given one, as far as there is one."""
    for letter in FILLERS:
        if letter not in word.lower():
            return letter * 3
    return FILLERS[0] * 3


def _contains(text: str, word: str) -> bool:
    return word.lower() in text.lower()


def _texts(value: object) -> list[str]:
    """The texts of a list. A flag that checkers set anyway is not part of a word."""
    return [str(text).removeprefix("(?i)") for text in value] if isinstance(value, list) else []


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
