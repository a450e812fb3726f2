"""What every noun is made of: the frozen model, strict numbers, canonical JSON and digests."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

SCALE = (1.0, 5.0)
SUM_TOLERANCE = 1e-6
# What binary fractions add to a sum of decimals: three times 0.333333 is within the tolerance.
ROUNDING = 1e-12
# A name that may stand in a prompt as it is: short, and without the signs that could close an envelope.
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,39}")
NAMES = "1 to 40 letters, digits and _ . : -, a letter or digit first"
# Plain JSON data. `JsonObject` is what a stranger sent, or what is handed on unread.
JsonObject = dict[str, JsonValue]

_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: object) -> str:
    """One text for one value: sorted keys, no spaces.

    Raises ValueError for numbers that are not finite, TypeError for what JSON cannot hold.

    >>> canonical_json({"b": 1, "a": [0.5, None]})
    '{"a":[0.5,null],"b":1}'
    """
    return _canonical.encode(value)


def canonical_object(fields: Mapping[str, str]) -> str:
    """The canonical JSON of an object whose values are canonical JSON already.

    >>> canonical_object({"b": canonical_json([1]), "a": canonical_json(None)})
    '{"a":null,"b":[1]}'
    """
    parts = [f"{canonical_json(name)}:{fields[name]}" for name in sorted(fields)]
    return "{" + ",".join(parts) + "}"


def digest_of(value: object) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class FrozenModel(BaseModel):
    """What all nouns share: frozen, no unknown fields, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def json_data(self) -> dict[str, Any]:
        """Plain JSON data, for the journal and for digests."""
        return self.model_dump(mode="json")

    @property
    def content_digest(self) -> str:
        return digest_of(self.json_data())


def _no_lookalike(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("a number is wanted")
    return value


StrictInt = Annotated[int, BeforeValidator(_no_lookalike)]
Scalar = str | int | float | bool


def _one_message(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:  # one for each kind that it is not
        raise ValueError("a text, a number, a boolean or a list of these is wanted") from None


Attribute = Annotated[Scalar | list[Scalar], WrapValidator(_one_message)]


def check_weights(path: str, weights: dict[str, float]) -> None:
    """Raise ValueError naming the path unless the weights are finite, not negative and sum to 1 within 1e-6."""
    for name, weight in weights.items():
        if isinstance(weight, bool) or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{path}.{name}: {weight!r} is not a finite weight of at least 0")
    total = math.fsum(weights.values())
    if abs(total - 1) > SUM_TOLERANCE + ROUNDING:
        raise ValueError(f"{path}: weights sum to {total:.6f}, not to 1")
