"""JSON in an answer, checked against a schema of the suite.

    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    check_schema(schema)                       # once, when the suite is loaded
    fits({"city": "Lyon"}, schema)             # True

Schemas are read as JSON Schema draft 2020-12. They stay within themselves: a `$ref` begins with
`#`, and nothing is fetched. `pattern` runs under a time limit (`eval.objectives.patterns`);
`patternProperties` is refused, since the library would run it without one. `format` is not checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from eval.chat.strict_json import NotStrict, strict_json
from eval.objectives.base import Malformed, Unchecked
from eval.objectives.patterns import check_pattern, matches
from mosaic.core.types.base import JsonObject, canonical_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator
    from pydantic import JsonValue

# Keywords whose value maps names to schemas, and those whose value is plain data.
NAMED = ("properties", "$defs", "definitions", "dependentSchemas")
DATA = ("const", "enum", "default", "examples", "dependentRequired")
REFERENCES = ("$ref", "$dynamicRef")
FENCE = "```"


def json_texts(text: str) -> list[str]:
    """The JSON texts that an answer may mean: the whole of it, or else what its fences hold.

    >>> json_texts('{"a": 1}')
    ['{"a": 1}']
    >>> json_texts('Here you are:\\n```json\\n{"a": 1}\\n```\\nAnything else?')
    ['{"a": 1}']
    >>> json_texts("It is one.")
    []
    """
    whole = text.strip()
    if _is_json(whole):
        return [whole]
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in whole.splitlines():
        if not line.startswith(FENCE):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            blocks.append("\n".join(inside))
            inside = None
    return blocks


def _is_json(text: str) -> bool:
    try:
        strict_json(text)
    except NotStrict:
        return False
    return True


def check_schema(schema: JsonValue) -> None:
    """Raise Malformed, with the path, unless a schema can be used as it is."""
    if not isinstance(schema, dict):
        raise Malformed(f"{schema!r} is not a JSON schema, which is an object")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise Malformed(f"not a JSON schema at {error.json_path}: {error.message[:200]}") from None
    own = Registry().with_resource("", DRAFT202012.create_resource(schema)).resolver()
    for part in _subschemas(schema):
        for keyword in ("patternProperties", "$id", "$schema"):
            if keyword in part and not (keyword == "$schema" and part is schema):
                raise Malformed(f"a JSON schema with {keyword} is not supported; leave it out")
        for keyword in REFERENCES:
            reference = part.get(keyword)
            if reference is None:
                continue
            if not isinstance(reference, str) or not reference.startswith("#"):
                raise Malformed(f"{keyword} {reference!r} leaves the schema; it begins with #")
            try:
                own.lookup(reference)
            except Unresolvable as error:
                raise Malformed(f"{keyword} {reference!r} leads nowhere: {error}") from None
        if "pattern" in part:
            check_pattern(str(part["pattern"]))
    try:  # a reference that leads back to itself is found by any value
        fits(None, schema)
    except Unchecked as error:
        raise Malformed(str(error)) from None


def _subschemas(schema: JsonObject) -> Iterator[JsonObject]:
    """A schema and all schemas inside of it, without the data that it quotes."""
    waiting: list[JsonValue] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        if not isinstance(part, dict):
            continue
        yield part
        for keyword, value in part.items():
            if keyword in NAMED and isinstance(value, dict):
                waiting += value.values()
            elif keyword not in DATA:
                waiting.append(value)


def fits(value: JsonValue, schema: JsonObject) -> bool:
    """Whether a value is valid under a checked schema. Raises Unchecked if that cannot be told."""
    validator = _validator(canonical_json(schema))
    try:
        return bool(validator.is_valid(value))
    except RecursionError:
        raise Unchecked("the JSON schema refers to itself without end") from None
    except OverflowError:
        raise Unchecked("the answer holds a number beyond the range of a double") from None


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Validator:
    """A validator of a schema, given as JSON text, that fetches nothing and bounds patterns."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend
    from referencing import Registry

    def pattern(
        validator: Validator, wanted: str, instance: JsonValue, schema: JsonObject
    ) -> Iterator[ValidationError]:
        if isinstance(instance, str):
            if not matches(wanted, instance, full=False, ignore_case=False):
                yield ValidationError(f"does not match {wanted!r}")

    bounded = extend(Draft202012Validator, {"pattern": pattern})
    return bounded(
        strict_json(schema, max_bytes=16 * 1024 * 1024, max_depth=1000), registry=Registry()
    )
