"""IFEval's verifiers (lm-evaluation-harness), offline and without chance.

The only importer of `lm_eval`.

The library downloads nltk data when it is imported, and draws random parameters if one is missing
or not to its liking. Here the first is prevented by an empty data folder of our own, and the second
refused: a constraint without its parameters, or with some that its checker cannot use, is
unverifiable.

A constraint is `{"id": checker id, "params": {name: value}}`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

from eval.ifeval_words import misread
from mosaic.core.types.base import canonical_json

# These two split sentences with nltk's punkt data, which is not installed with the library.
NEEDS_PUNKT = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
PUNKT = "python -m nltk.downloader punkt_tab"
# Parameters that are lists of texts, and parts of the names of those that are numbers.
LISTS = frozenset({"keywords", "forbidden_words"})
NUMBERS = ("num_", "nth_", "frequency")
# Checkers look at some parameters only if an answer has several paragraphs.
PROBE = "one two , three .\n\nfour\n\n* five\n\nsix"

Constraint = Mapping[str, object]


class Checker(Protocol):
    """A checker of the library."""

    def build_description(self, **params: object) -> str: ...
    def check_following(self, value: str) -> bool: ...


class CheckerClass(Protocol):
    def __call__(self, identifier: str) -> Checker: ...

    build_description: Callable[..., str]


class _ChanceError(Exception):
    """The library asked for a random number."""


class CannotRead(ValueError):
    """A checker broke on an answer."""


class _NoChance:
    """Stands in for `random` in the library."""

    def __getattr__(self, name: str) -> object:
        raise _ChanceError


@cache
def _registry() -> dict[str, CheckerClass]:
    """Checker id -> class. Imports the library without output and without a download."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizers" / "punkt_tab").mkdir(parents=True)
        with _nltk_data(folder), _silence():
            import nltk

            nltk.data.path.insert(0, folder)
            from lm_eval.tasks.ifeval import (
                instructions,
                instructions_registry,
                instructions_util,
            )

            nltk.data.path.remove(folder)
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    instructions.random = instructions_util.random = _NoChance()
    # It logs whole answers, which a terminal would obey.
    instructions.logger.disabled = True
    return dict(instructions_registry.INSTRUCTION_DICT)


@contextlib.contextmanager
def _nltk_data(folder: str) -> Iterator[None]:
    """The environment variable NLTK_DATA names this folder, and then what it named before."""
    before = os.environ.get("NLTK_DATA")
    os.environ["NLTK_DATA"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["NLTK_DATA"]
        else:
            os.environ["NLTK_DATA"] = before


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """What checkers would warn of is not shown: it may quote what a model wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def checker_ids() -> list[str]:
    """All checker ids of the library."""
    return sorted(_registry())


@cache
def _parameters(identifier: str) -> tuple[str, ...]:
    """The names of the parameters that a checker takes."""
    signature = inspect.signature(_registry()[identifier].build_description)
    names = []
    for name, parameter in signature.parameters.items():
        if name != "self" and parameter.kind != parameter.VAR_KEYWORD:
            names.append(name)
    return tuple(names)


def verifiable(constraint: Constraint) -> str | None:
    """Why a constraint cannot be verified, or None.

    The checker is built, and tried on the constraint's own words (`eval.ifeval_words`).
    """
    identifier, params = constraint.get("id"), constraint.get("params") or {}
    if not isinstance(identifier, str) or identifier not in _registry():
        return f"unknown checker {identifier!r}"
    if _lacks_punkt(identifier):
        return f"{identifier} needs nltk's punkt data, which is not installed; install it: {PUNKT}"
    if isinstance(params, Mapping):
        for name in _parameters(identifier):
            if params.get(name) is None:
                return f"{identifier}: parameter {name!r} is missing; it would be drawn at random"
    reason = unusable(constraint)
    return reason or _misread(identifier, canonical_json(params))


def unusable(constraint: Constraint) -> str | None:
    """What is wrong with the parameters that a constraint gives, or None.

    Missing parameters and unknown checkers are not a matter of this function.
    """
    identifier, params = constraint.get("id"), constraint.get("params") or {}
    if not isinstance(identifier, str) or identifier not in _registry():
        return None
    if not isinstance(params, Mapping):
        return f"{identifier}: params is {type(params).__name__}, not an object"
    names = _parameters(identifier)
    unknown = sorted(set(params) - set(names))
    if unknown:
        return f"{identifier}: unknown parameter {unknown[0]!r}; it takes {list(names)}"
    for name, value in params.items():
        wanted = _misfit(name, value)
        if wanted:
            return f"{identifier}: parameter {name!r} is {value!r}, not {wanted}"
    complete = all(params.get(name) is not None for name in names)
    if not complete or _lacks_punkt(identifier):
        return None
    return _trial(identifier, canonical_json(params))


def _misfit(name: str, value: object) -> str | None:
    """What a parameter must be, if its value is something else; the library does not check types.

    None if the value fits, or is None itself, which stands for a missing one.
    """
    if value is None:
        return None
    if name in LISTS:
        fits = _is_list_of_texts(value)
        around = r"\b" if name == "forbidden_words" else ""
        if fits and isinstance(value, list):
            fits = all(_is_pattern(f"{around}{text}{around}") for text in value)
        return None if fits else "a list of texts that are regular expressions"
    if any(part in name for part in NUMBERS):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float):
            whole = value.is_integer()
        return None if whole else "a whole number"
    return None if isinstance(value, str) and value else "a text"


def _is_list_of_texts(value: object) -> bool:
    """Whether a value is a list of at least one text, none of them empty."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(text, str) and text for text in value)


def _is_pattern(value: str) -> bool:
    """Whether a text is a regular expression.

    The checkers read each text of a list as one, and only if an answer has the one before it.
    """
    try:
        re.compile(value)
    except (re.error, ValueError, OverflowError, RecursionError):
        return False
    return True


@cache
def _trial(identifier: str, params: str) -> str | None:
    """Build a checker and let it read a text: why it cannot, or None."""
    try:
        with _no_warnings():
            _checker(identifier, params).check_following(PROBE)
    except _ChanceError:
        return (
            f"{identifier}: the checker does not take {params} "
            "and would draw other parameters at random"
        )
    except Exception as error:  # the library checks no parameters and fails with any exception
        return f"{identifier}: the checker cannot use {params} ({type(error).__name__}: {error})"
    return None


@cache
def _misread(identifier: str, params: str) -> str | None:
    """How a checker misreads its own words, or None."""
    words = json.loads(params).get("keywords", [])
    if len(words) > 1:  # each is looked for by itself: the one that is misread is named
        for word in words:
            reason = _misread(identifier, canonical_json({"keywords": [word]}))
            if reason:
                return reason
    checker = _checker(identifier, params)
    with _no_warnings():
        return misread(identifier, json.loads(params), lambda t: bool(checker.check_following(t)))


def _lacks_punkt(identifier: str) -> bool:
    return identifier in NEEDS_PUNKT and not _has_punkt()


@cache
def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


@cache
def _checker(identifier: str, params: str) -> Checker:
    checker = _registry()[identifier](identifier)
    checker.build_description(**_whole_numbers(json.loads(params)))
    return checker


def _whole_numbers(params: Mapping[str, object]) -> dict[str, object]:
    """Parameters with 5.0 as 5: published items hold floats where checkers count.

    >>> _whole_numbers({"num_paragraphs": 5.0, "language": "de"})
    {'num_paragraphs': 5, 'language': 'de'}
    """
    return {
        name: int(value) if isinstance(value, float) else value for name, value in params.items()
    }


def _built(constraint: Constraint) -> Checker:
    return _checker(str(constraint["id"]), canonical_json(constraint.get("params") or {}))


def describe(constraint: Constraint) -> str:
    """The library's own words for a constraint."""
    params = constraint.get("params") or {}
    assert isinstance(params, Mapping)
    return str(_built(constraint).build_description(**_whole_numbers(params)))


def variants(response: str) -> list[str]:
    """The eight texts that loose checking accepts.

    Those are the response, and the response without its first line, its last line, and both, each
    with and without asterisks.
    """
    lines = response.split("\n")
    plain = [response]
    for part in (lines[1:], lines[:-1], lines[1:-1]):
        plain.append("\n".join(part).strip())
    return plain + [text.replace("*", "") for text in plain]


def check(constraints: Sequence[Constraint], response: str) -> tuple[list[bool], list[bool]]:
    """(strict, loose) per constraint. An empty response fails.

    Every constraint must be verifiable (ValueError). CannotRead if a checker breaks on this
    response all the same.
    """
    strict, loose = [], []
    with _no_warnings():
        for constraint in constraints:
            reason = verifiable(constraint)
            if reason:
                raise ValueError(reason)
            checker = _built(constraint)
            passed = _passes(checker, response)
            strict.append(passed)
            loose.append(passed or any(_passes(checker, text) for text in variants(response)[1:]))
    return strict, loose


def _passes(checker: Checker, text: str) -> bool:
    try:
        return bool(text.strip()) and bool(checker.check_following(text))
    except Exception as error:  # the library's checkers raise whatever they meet in an answer
        raise CannotRead(
            f"the checker cannot read this answer ({type(error).__name__}: {error})"
        ) from error


def complexity(ids: Sequence[str]) -> int:
    """1-5: one more for at least 2 and 3 constraints, and for at least 2 and 3 groups of them.

    A constraint's group is the part before the colon. Two constraints of two groups: 1 + 1 + 1.

    >>> complexity(["keywords:existence", "punctuation:no_comma"])
    3
    """
    count, groups = len(ids), len({i.split(":", 1)[0] for i in ids})
    return min(5, 1 + (count >= 2) + (count >= 3) + (groups >= 2) + (groups >= 3))
