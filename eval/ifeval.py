"""IFEval's verifiers (lm-evaluation-harness), offline and without chance. The only importer of `lm_eval`.

The library downloads nltk data when imported and draws random parameters where one is missing. Here the first is
prevented by an empty data folder of our own, and the second refused: a constraint without its parameters is
unverifiable.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# These two split sentences with nltk's punkt data, which is not installed with the library.
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})


@cache
def _registry() -> dict[str, Any]:
    """Checker id -> class. Imports the library with stdout and stderr kept clean and no download."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizers" / "punkt_tab").mkdir(parents=True)
        before = os.environ.get("NLTK_DATA")
        os.environ["NLTK_DATA"] = folder
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                import nltk

                nltk.data.path.insert(0, folder)
                from lm_eval.tasks.ifeval import instructions_registry

                nltk.data.path.remove(folder)
        finally:
            if before is None:
                del os.environ["NLTK_DATA"]
            else:
                os.environ["NLTK_DATA"] = before
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0
    return dict(instructions_registry.INSTRUCTION_DICT)


def checker_ids() -> list[str]:
    """All checker ids of the library."""
    return sorted(_registry())


@cache
def _parameters(identifier: str) -> tuple[str, ...]:
    signature = inspect.signature(_registry()[identifier].build_description)
    return tuple(name for name, p in signature.parameters.items() if name != "self" and p.kind != p.VAR_KEYWORD)


def verifiable(constraint: Mapping[str, Any]) -> str | None:
    """Why a constraint `{"id", "params"}` cannot be verified, or None."""
    identifier, params = constraint.get("id"), constraint.get("params") or {}
    if not isinstance(identifier, str) or identifier not in _registry():
        return f"unknown checker {identifier!r}"
    if identifier in NEEDS_PUNKT and not _has_punkt():
        return f"{identifier} needs nltk's punkt data, which is not installed"
    names = _parameters(identifier)
    missing = [name for name in names if params.get(name) is None]
    if missing:
        return f"{identifier}: parameter {missing[0]!r} is missing; it would be drawn at random"
    unknown = sorted(set(params) - set(names))
    if unknown:
        return f"{identifier}: unknown parameter {unknown[0]!r}; it takes {list(names)}"
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
    import json

    checker = _registry()[identifier](identifier)
    values = json.loads(params)
    checker.build_description(**values)
    return checker


def _instance(constraint: Mapping[str, Any]) -> Any:
    from mosaic.types import canonical_json

    return _checker(str(constraint["id"]), canonical_json(constraint.get("params") or {}))


def describe(constraint: Mapping[str, Any]) -> str:
    """The library's own words for a constraint."""
    return str(_instance(constraint).build_description(**(constraint.get("params") or {})))


def variants(response: str) -> list[str]:
    """The eight texts that loose checking accepts: with and without asterisks, first line, last line."""
    lines = response.split("\n")
    first, last, both = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    plain = [response, first, last, both]
    return plain + [text.replace("*", "") for text in plain]


def check(constraints: Sequence[Mapping[str, Any]], response: str) -> tuple[list[bool], list[bool]]:
    """(strict, loose) per constraint. An empty response fails. Every constraint must be verifiable (ValueError)."""
    strict, loose = [], []
    for constraint in constraints:
        reason = verifiable(constraint)
        if reason:
            raise ValueError(reason)
        checker = _instance(constraint)

        def passes(text: str, checker: Any = checker) -> bool:
            return bool(text.strip()) and bool(checker.check_following(text))

        strict.append(passes(response))
        loose.append(strict[-1] or any(passes(text) for text in variants(response)[1:]))
    return strict, loose
