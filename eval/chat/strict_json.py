"""Strict reading of text that somebody else wrote: bounded, unambiguous JSON, then strict validation.

`json.loads` alone takes the last of two equal keys, reads NaN, and follows any depth; a reply of a model may do none of
this. Pure, no heavy imports.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
Model = TypeVar("Model", bound=BaseModel)


class NotStrict(ValueError):
    """Text that is no strict JSON; the message says what and where, and never quotes the text."""


class Invalid(ValueError):
    """Well-formed JSON that breaks its model. `problems` are `field.path: what is wrong`, one each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def strict_json(text: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of one JSON text. NotStrict above the size or depth, for a repeated key, a non-finite number, a lone
    surrogate, or what is no JSON."""
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise NotStrict(f"longer than {max_bytes} bytes")
    if depth_of(text) > max_depth:
        raise NotStrict(f"nested deeper than {max_depth} levels")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite
        )
        # A lone surrogate can be decoded but never written to a file again.
        json.dumps(value, ensure_ascii=False).encode()
    except NotStrict:
        raise
    except json.JSONDecodeError as error:
        raise NotStrict(f"no JSON: {error.msg} at character {error.pos}") from None
    except UnicodeEncodeError:
        raise NotStrict("a lone surrogate, which is no text") from None
    except (ValueError, RecursionError) as error:
        raise NotStrict(f"no JSON: {type(error).__name__}") from None
    return value


def parse_strict(text: str, model: type[Model]) -> Model:
    """A model from JSON text. NotStrict where the text is no strict JSON, Invalid with field paths where it does not fit."""
    return validate_strict(strict_json(text), model)


def validate_strict(value: Any, model: type[Model]) -> Model:
    """A model from a plain JSON value, without any coercion. Invalid with field paths where it does not fit."""
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise Invalid(
            [_problem(p) for p in error.errors(include_url=False, include_context=False)][:20]
        ) from None


def _problem(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])[:120] or "(whole)"
    return f"{path}: {problem['msg'].removeprefix('Value error, ')[:300]}"


def depth_of(text: str) -> int:
    """Greatest nesting of brackets outside strings, counted without recursion."""
    here = deepest = 0
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside:
            escaped = character == "\\"
            inside = character != '"'
        elif character == '"':
            inside = True
        elif character in "[{":
            here += 1
            deepest = max(deepest, here)
        elif character in "]}":
            here -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise NotStrict("an object names a key twice")
        found[key] = value
    return found


def _constant(name: str) -> Any:
    raise NotStrict(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrict("a number beyond the range of a double")
    return number
