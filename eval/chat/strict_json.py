"""Strict reading of text that somebody else wrote: unambiguous JSON, then strict validation.

`json.loads` alone takes the last of two equal keys, reads NaN, and follows any depth. The reply of
a model and the file of a person may do none of this. Pure, no heavy imports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from mosaic.core.types.base import JsonObject

if TYPE_CHECKING:
    from pydantic import JsonValue
    from pydantic_core import ErrorDetails

MAX_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_PROBLEMS = 20
Model = TypeVar("Model", bound=BaseModel)


class NotStrict(ValueError):
    """Text that is not strict JSON. The message says what is wrong and where."""


class Invalid(ValueError):
    """Well-formed JSON that does not fit its model.

    `problems` are `field.path: what is wrong`, one each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def strict_json(
    text: str,
    max_bytes: int = MAX_BYTES,
    max_depth: int = MAX_DEPTH,
    *,
    quote: bool = False,
    constants: bool = False,
) -> Any:
    """The value of one JSON text.

    Raises NotStrict for a text above the size or depth, a key that occurs twice in one object, a
    number that is not finite, a lone surrogate, or anything that is not JSON.

    Messages never quote the text, which may come from a model or a hostile server. With `quote`
    they do, for a person who reads about a file of their own. With `constants` NaN, Infinity and
    numbers beyond the range of a double are let through as floats: stored items may hold such
    numbers, and then it is the item that is not scored.

    >>> strict_json('{"x": [1, 2.5]}')
    {'x': [1, 2.5]}
    >>> strict_json('{"x": 1, "x": 2}')
    Traceback (most recent call last):
    eval.chat.strict_json.NotStrict: a key occurs twice in one object
    >>> strict_json('{"x": 1, "x": 2}', quote=True)
    Traceback (most recent call last):
    eval.chat.strict_json.NotStrict: the key 'x' occurs twice in one object
    """
    if len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise NotStrict(f"longer than {max_bytes:,} bytes")
    if depth_of(text) > max_depth:
        raise NotStrict(f"nested deeper than {max_depth} levels")
    try:
        value = strict_decoder(quote=quote, constants=constants).decode(text)
        # A lone surrogate can be decoded but never written to a file again.
        json.dumps(value, ensure_ascii=False).encode()
    except NotStrict:
        raise
    except json.JSONDecodeError as error:
        place = error if quote else f"{error.msg} at character {error.pos}"
        raise NotStrict(f"not valid JSON: {place}") from None
    except UnicodeEncodeError:
        raise NotStrict("a lone surrogate, which is not text") from None
    except (ValueError, RecursionError) as error:
        raise NotStrict(f"not valid JSON: {error if quote else type(error).__name__}") from None
    return value


def strict_decoder(*, quote: bool, constants: bool = False) -> json.JSONDecoder:
    """A decoder without bounds of size or depth, for readers that take a long file piece by piece.

    See `strict_json`.
    """
    return json.JSONDecoder(
        object_pairs_hook=_unique_keys(quote),
        parse_constant=float if constants else _no_constant,
        parse_float=float if constants else _finite,
    )


def parse_strict(text: str, model: type[Model]) -> Model:
    """A model from JSON text.

    Raises NotStrict if the text is not strict JSON, Invalid if it does not fit the model.
    """
    return validate_strict(strict_json(text), model)


def validate_strict(value: JsonValue, model: type[Model]) -> Model:
    """A model from a plain JSON value, without any coercion.

    Raises Invalid with field paths if it does not fit.
    """
    try:
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise Invalid([_problem(p) for p in problems][:MAX_PROBLEMS]) from None


def _problem(problem: ErrorDetails) -> str:
    path = ".".join(map(str, problem["loc"]))[:120] or "(whole)"
    return f"{path}: {problem['msg'].removeprefix('Value error, ')[:300]}"


def depth_of(text: str) -> int:
    """The greatest nesting of brackets outside strings, counted without recursion.

    >>> depth_of('{"a": [1, "[[["]}')
    2
    """
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


def _unique_keys(quote: bool) -> Callable[[list[tuple[str, JsonValue]]], JsonObject]:
    def unique(pairs: list[tuple[str, JsonValue]]) -> JsonObject:
        values: JsonObject = {}
        for key, value in pairs:
            if key in values:
                which = f"the key {key!r}" if quote else "a key"
                raise NotStrict(f"{which} occurs twice in one object")
            values[key] = value
        return values

    return unique


def _no_constant(name: str) -> NoReturn:
    raise NotStrict(f"{name} is not a number here")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotStrict("a number beyond the range of a double")
    return number
