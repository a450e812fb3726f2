"""IFEval's verifiers (lm-evaluation-harness), offline and without chance. The only importer of `lm_eval`.

The library downloads nltk data when imported and draws random parameters where one is missing or not to its liking.
Here the first is prevented by an empty data folder of our own, and the second refused: a constraint without its
parameters, or with some that its checker cannot use, is unverifiable.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mosaic.core.types.base import canonical_json

# These two split sentences with nltk's punkt data, which is not installed with the library.
NEEDS_PUNKT = frozenset(
    {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
)
LISTS = frozenset({"keywords", "forbidden_words"})
NUMBERS = ("num_", "nth_", "frequency")
# Checkers look at some parameters only where an answer has several paragraphs.
PROBE = "one two , three .\n\nfour\n\n* five\n\nsix"


class _Drawn(Exception):
    """The library asked for chance."""


class CannotRead(ValueError):
    """A checker broke on an answer."""


class _NoChance:
    """Stands in for `random` in the library."""

    def __getattr__(self, name: str) -> Any:
        raise _Drawn


@cache
def _registry() -> dict[str, Any]:
    """Checker id -> class. Imports the library with stdout and stderr kept clean and no download."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizers" / "punkt_tab").mkdir(parents=True)
        before = os.environ.get("NLTK_DATA")
        os.environ["NLTK_DATA"] = folder
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                import nltk

                nltk.data.path.insert(0, folder)
                from lm_eval.tasks.ifeval import (
                    instructions,
                    instructions_registry,
                    instructions_util,
                )

                nltk.data.path.remove(folder)
        finally:
            if before is None:
                del os.environ["NLTK_DATA"]
            else:
                os.environ["NLTK_DATA"] = before
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    instructions.random = instructions_util.random = _NoChance()
    return dict(instructions_registry.INSTRUCTION_DICT)


def checker_ids() -> list[str]:
    """All checker ids of the library."""
    return sorted(_registry())


@cache
def _parameters(identifier: str) -> tuple[str, ...]:
    signature = inspect.signature(_registry()[identifier].build_description)
    return tuple(
        name
        for name, p in signature.parameters.items()
        if name != "self" and p.kind != p.VAR_KEYWORD
    )


def verifiable(constraint: Mapping[str, Any]) -> str | None:
    """Why a constraint `{"id", "params"}` cannot be verified, or None: the checker is built and tried."""
    identifier, params = constraint.get("id"), constraint.get("params") or {}
    if not isinstance(identifier, str) or identifier not in _registry():
        return f"unknown checker {identifier!r}"
    if identifier in NEEDS_PUNKT and not _has_punkt():
        return f"{identifier} needs nltk's punkt data, which is not installed"
    names = _parameters(identifier)
    missing = [name for name in names if isinstance(params, Mapping) and params.get(name) is None]
    if missing:
        return f"{identifier}: parameter {missing[0]!r} is missing; it would be drawn at random"
    return unusable(constraint)


def unusable(constraint: Mapping[str, Any]) -> str | None:
    """What is wrong with the parameters that a constraint gives, or None; missing ones are no matter of this, nor is
    an unknown checker."""
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
    if any(params.get(name) is None for name in names) or (
        identifier in NEEDS_PUNKT and not _has_punkt()
    ):
        return None
    return _trial(identifier, canonical_json(params))


def _misfit(name: str, value: Any) -> str | None:
    """What a parameter must be where its value is something else; the library does not check types. None is missing."""
    if value is None:
        return None
    if name in LISTS:
        fits = (
            isinstance(value, list) and bool(value) and all(isinstance(v, str) and v for v in value)
        )
        around = r"\b" if name == "forbidden_words" else ""
        patterns = fits and all(_is_pattern(around + v + around) for v in value)
        return None if patterns else "a list of texts that are regular expressions"
    if any(part in name for part in NUMBERS):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (
            None if whole or (isinstance(value, float) and value.is_integer()) else "a whole number"
        )
    return None if isinstance(value, str) and value else "a text"


def _is_pattern(value: str) -> bool:
    """The checkers read each text of a list as a regular expression, and only where an answer has the one before it."""
    try:
        re.compile(value)
    except (re.error, ValueError, OverflowError, RecursionError):
        return False
    return True


@cache
def _trial(identifier: str, params: str) -> str | None:
    """Build a checker and let it read a text: why it cannot, or None."""
    try:
        _checker(identifier, params).check_following(PROBE)
    except _Drawn:
        return f"{identifier}: the checker does not take {params} and would draw other parameters at random"
    except (
        Exception
    ) as error:  # whatever the library raises for parameters that it was not written for
        return f"{identifier}: the checker cannot use {params} ({type(error).__name__}: {error})"
    return None


@cache
def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


@cache
def _checker(identifier: str, params: str) -> Any:
    checker = _registry()[identifier](identifier)
    checker.build_description(**_whole(json.loads(params)))
    return checker


def _whole(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with 5.0 as 5: published items hold such numbers as floats, and checkers count paragraphs by them."""
    return {
        name: int(value) if isinstance(value, float) else value for name, value in params.items()
    }


def _instance(constraint: Mapping[str, Any]) -> Any:
    return _checker(str(constraint["id"]), canonical_json(constraint.get("params") or {}))


def describe(constraint: Mapping[str, Any]) -> str:
    """The library's own words for a constraint."""
    return str(_instance(constraint).build_description(**_whole(constraint.get("params") or {})))


def variants(response: str) -> list[str]:
    """The eight texts that loose checking accepts: with and without asterisks, first line, last line."""
    lines = response.split("\n")
    first, last, both = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    plain = [response, first, last, both]
    return plain + [text.replace("*", "") for text in plain]


def check(constraints: Sequence[Mapping[str, Any]], response: str) -> tuple[list[bool], list[bool]]:
    """(strict, loose) per constraint. An empty response fails. Every constraint must be verifiable (ValueError); CannotRead
    where a checker breaks on this response all the same."""
    strict, loose = [], []
    for constraint in constraints:
        reason = verifiable(constraint)
        if reason:
            raise ValueError(reason)
        checker = _instance(constraint)

        def passes(text: str, checker: Any = checker) -> bool:
            try:
                return bool(text.strip()) and bool(checker.check_following(text))
            except (
                Exception
            ) as error:  # the library's checkers raise whatever they meet in an answer
                raise CannotRead(
                    f"the checker cannot read this answer ({type(error).__name__}: {error})"
                ) from error

        strict.append(passes(response))
        loose.append(strict[-1] or any(passes(text) for text in variants(response)[1:]))
    return strict, loose
