"""Prompts with known answers: the objective `kind: reference`, checked by code.

    {kind: reference, match: number, tolerance: {relative: 0.01}, slice_from: level}

A prompt holds its known answer in `answer`. The last answer of the conversation is compared with it
(`match`):

* `exact`: the whole answer is the known text, less blanks around it.
* `number`: the number that the answer gives (`eval.objectives.reading.read_number`) is the known
  one, within the tolerance.
* `choice`: the option that the answer names (`read_choice`) is the known one. The attribute
  `options` of a prompt may list the texts of A, B, C, ...; the known answer is a letter or a text.
* `regex`: the known answer is a pattern that some part of the answer matches, or all of it with
  `full_match`.
* `json_schema`: the known answer is a schema. The whole answer, or the one fenced block in it, is
  strict JSON that is valid under it.

A right answer scores 5, any other 1. With `parts` the known answer is a list, and the score is
1 + 4 x the share of its parts that are right. Numbers, choices and exact texts are read from the
answer as from a list (`read_parts`) and compared in order; patterns and schemas are each tried on
the whole answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from eval.chat.strict_json import NotStrict, strict_json
from eval.objectives.base import (
    Channel,
    Channels,
    Constraints,
    Line,
    Malformed,
    Side,
    Unchecked,
    attribute_slice,
    count_labels,
    need,
    slice_of_line,
    unscored,
)
from eval.objectives.config import ReferenceConfig
from eval.objectives.json_schema import check_schema, fits, json_texts
from eval.objectives.patterns import MAX_TEXT, check_pattern, matches
from eval.objectives.reading import (
    LETTERS,
    Reading,
    number_value,
    read_choice,
    read_number,
    read_parts,
)
from mosaic.core.types.base import canonical_json, digest_of
from mosaic.core.types.evaluation import Prompt, Response, Scored
from prompts.load import Prompt as PromptFile

VERSION = 1
# Letters of prompts that do not list their options.
UNLISTED = LETTERS[:8]
MAX_READ = 500

Result = Literal["right", "wrong", "no_answer", "ambiguous"]


class ReferenceObjective:
    """5 for the known answer, 1 for any other; with parts, by the share that is right."""

    evidence: Literal["answers", "likelihood"] = "answers"
    answers: tuple[Channel, ...] = ()
    request: tuple[Channel, ...] = ()
    fields: Mapping[str, object] = {
        "slice": Annotated[str, Field(min_length=1)],
        "right": Annotated[list[bool], Field(min_length=1)],
        "read": list[str | list[str] | None],
    }

    def __init__(self, name: str, config: ReferenceConfig) -> None:
        self.name = name
        self.config = config
        # Without the defaults: an option that is added later leaves known judgments known.
        own = set(ReferenceConfig.model_fields)
        settings = config.model_dump(mode="json", exclude_defaults=True, include=own)
        self.rules = digest_of(["reference", VERSION, settings])

    def words(self, side: Side) -> PromptFile:
        raise ValueError(f"{self.name} is checked by code: no model is asked")

    def stored(self, prompt: Prompt, items: Channels) -> dict[str, object]:
        return {"items": dict(items)}

    def labels(self, prompt: Prompt) -> tuple[str, int, int]:
        """The slice, weight 1, valid. Malformed if the known answer cannot be compared with."""
        for place, known in enumerate(self._known(prompt)):
            try:
                self._check_known(known, prompt)
            except Malformed as error:
                where = f"answer.{place}" if self.config.parts else "answer"
                raise Malformed(f"{where}: {error}") from None
        return attribute_slice(prompt, self.config.slice_from), 1, 1

    def prompt_side(
        self, prompt_items: Channels, turns: int, constraints: Constraints
    ) -> tuple[str, int, int]:
        """See `Objective`. Malformed if the slice is an attribute, which items do not tell."""
        if self.config.slice_from is not None:
            raise Malformed(f"the slice of {self.name} is the attribute {self.config.slice_from}")
        return "all", 1, 1

    def check(self, prompt: Prompt, response: Response) -> dict[str, object]:
        """What was read of the last answer, and whether it is right: one entry per part."""
        try:
            known = self._known(prompt)
            slice_ = attribute_slice(prompt, self.config.slice_from)
            answer = response.answers[-1]
            if len(answer) > MAX_TEXT:
                raise Unchecked(f"the answer has more than {MAX_TEXT:,} characters")
            read = self._read(prompt, answer, len(known))
            right = [self._is_right(r, k, prompt) for r, k in zip(read, known, strict=True)]
        except Malformed as error:
            raise Unchecked(str(error)) from None
        return {"slice": slice_, "right": right, "read": [_shortened(r) for r in read]}

    def score(self, line: Line) -> Scored:
        try:
            slice_ = slice_of_line(line)
            results = results_of(line)
            if len(results) != 1 and not self.config.parts:
                raise Malformed(f"right has {len(results)} entries for one answer")
        except Malformed as error:
            return unscored(line, str(error))
        score = score_of(results.count("right"), len(results))
        return Scored(
            id=str(line["id"]),
            status="ok",
            slice=slice_,
            weight=1,
            label={"result": results if self.config.parts else results[0]},
            score=score,
            need=need(score, 1, 1),
            failed=score < 3,
        )

    def breakdown(self, scored: Sequence[Scored]) -> dict[str, dict[str, int]]:
        return count_labels(scored, ("result",))

    # Known answers

    def _known(self, prompt: Prompt) -> list[JsonValue]:
        """The known parts of a prompt; one if it has no parts. Malformed if there are none."""
        if prompt.answer is None:
            raise Malformed("answer is missing: this objective compares with known answers")
        if not self.config.parts:
            return [prompt.answer]
        if not isinstance(prompt.answer, list) or not prompt.answer:
            raise Malformed("answer is not a list of parts, which `parts: true` wants")
        return prompt.answer

    def _check_known(self, known: JsonValue, prompt: Prompt) -> None:
        match = self.config.match
        if match == "json_schema":
            check_schema(known)
        elif match == "number":
            known_number(known)
        elif not isinstance(known, str) or not known.strip():
            raise Malformed(f"{known!r} is not a text, which `match: {match}` compares with")
        elif match == "choice":
            known_choice(known, options_of(prompt))
        elif match == "regex":
            check_pattern(known)

    # Answers

    def _read(self, prompt: Prompt, text: str, count: int) -> list[Reading]:
        """What an answer says to each of `count` known parts."""
        if self.config.match == "regex":
            return [self._stripped(text)] * count
        if self.config.match == "json_schema":
            return [_read_json(text)] * count
        if not self.config.parts:
            return [self._read_one(prompt, text)]
        parts = read_parts(text, count)
        if parts is None:
            return [[text]] * count
        read = [self._read_one(prompt, part) for part in parts]
        return read + [None] * (count - len(read))

    def _read_one(self, prompt: Prompt, text: str) -> Reading:
        if self.config.match == "number":
            return read_number(text)
        if self.config.match == "choice":
            return read_choice(text, options_of(prompt))
        return self._stripped(text)

    def _stripped(self, text: str) -> str | None:
        text = text.strip() if self.config.strip else text
        return text or None

    def _is_right(self, read: Reading, known: JsonValue, prompt: Prompt) -> bool:
        if not isinstance(read, str):
            return False
        config = self.config
        if config.match == "number":
            return config.tolerance.allows(number_value(read), known_number(known))
        if config.match == "choice":
            return read == known_choice(str(known), options_of(prompt))
        if config.match == "json_schema":
            return isinstance(known, dict) and fits(strict_json(read), known)
        if config.match == "regex":
            case = config.ignore_case
            return matches(str(known), read, full=config.full_match, ignore_case=case)
        wanted = self._stripped(str(known)) or ""
        return read.casefold() == wanted.casefold() if config.ignore_case else read == wanted


def score_of(right: int, parts: int) -> float:
    """1 + 4 x the share of parts that are right, to two decimals; 5 only if all are.

    Two of three parts, one of three, and all but one of a thousand:

    >>> score_of(2, 3), score_of(1, 3), score_of(999, 1000)
    (3.67, 2.33, 4.99)
    """
    if right == parts:
        return 5
    return min(4.99, round(1 + 4 * right / parts, 2))


def results_of(line: Line) -> list[Result]:
    """What each part of a stored line came to. Malformed if `right` and `read` do not fit."""
    right, read = line.get("right"), line.get("read")
    if not isinstance(right, list) or not right:
        raise Malformed("right is not a list of booleans")
    if not isinstance(read, list) or len(read) != len(right):
        raise Malformed(f"read is not a list of {len(right)} entries")
    results: list[Result] = []
    for place, (is_right, what) in enumerate(zip(right, read, strict=True)):
        if not isinstance(is_right, bool):
            raise Malformed(f"right.{place} is {is_right!r}, not a boolean")
        results.append(_result(f"read.{place}", is_right, what))
    return results


def _result(path: str, is_right: bool, what: object) -> Result:
    if isinstance(what, str):
        return "right" if is_right else "wrong"
    if is_right:
        raise Malformed(f"{path} is {what!r}, which cannot be right")
    if what is None:
        return "no_answer"
    if not isinstance(what, list):
        raise Malformed(f"{path} is {what!r}, not a text, null or a list of texts")
    return "ambiguous"


def known_number(known: JsonValue) -> Fraction:
    """A known number, given as one or as a text. Malformed otherwise.

    >>> known_number("1,000") == known_number(1000) == 1000
    True
    """
    if isinstance(known, int | float) and not isinstance(known, bool):
        return Fraction(repr(known))
    read = read_number(known) if isinstance(known, str) else None
    if not isinstance(read, str):
        raise Malformed(f"{known!r} is not a number")
    return number_value(read)


def options_of(prompt: Prompt) -> dict[str, str]:
    """Letter -> text of the options that a prompt lists; letters A to H without texts otherwise.

    Raises Malformed if the attribute `options` does not list options that can be told apart.
    """
    listed = prompt.attributes.get("options")
    if listed is None:
        return dict.fromkeys(UNLISTED, "")
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(LETTERS):
        raise Malformed(f"attributes.options is not a list of 2 to {len(LETTERS)} options")
    texts = [str(option).strip() for option in listed]
    if len({text.casefold() for text in texts}) != len(texts):
        raise Malformed("attributes.options lists the same option twice")
    options = dict(zip(LETTERS, texts, strict=False))
    for letter, text in options.items():
        if not text or (text.upper() in options and text.upper() != letter):
            raise Malformed(f"attributes.options: {text!r} cannot be told from an option's letter")
    return options


def known_choice(known: str, options: Mapping[str, str]) -> str:
    """The letter of a known option, given as a letter or as its text. Malformed otherwise."""
    wanted = known.strip()
    if wanted.upper() in options:
        return wanted.upper()
    for letter, text in options.items():
        if text.casefold() == wanted.casefold():
            return letter
    raise Malformed(f"{known!r} is not one of the options; there are {', '.join(options)}")


def _read_json(text: str) -> Reading:
    """The JSON of an answer as one text; a list of texts if it has several blocks."""
    texts = json_texts(text)
    if len(texts) > 1:
        return list(texts)
    if not texts:
        return None
    try:
        return canonical_json(strict_json(texts[0]))
    except NotStrict:
        return None


def _shortened(read: Reading) -> Reading:
    """A reading as it is stored: long texts are cut, since the answer itself is filed too."""
    if read is None:
        return None
    if isinstance(read, str):
        return read[:MAX_READ]
    return [text[:MAX_READ] for text in read[:10]]
