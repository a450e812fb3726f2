"""Slices that a suite has of its own, instead of those that the objective's rules derive.

A public data set often knows better than any rule how its prompts fall apart: XSTest has ten
types. Such a prompt carries the name of its field in the attribute `slice_from`, and the field's
value in an attribute of that name.
"""

from __future__ import annotations

import re

from mosaic.core.types.base import LABEL, NAMES
from mosaic.core.types.evaluation import Prompt

SLICE_FROM = "slice_from"
UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.:-]+")
LONGEST = 40


def slice_name(value: object) -> str:
    """The name of the slice for a value of a field. Raises ValueError if it has no letter or digit.

    >>> slice_name("real group / nons. discr")
    'real_group_nons._discr'
    """
    text = str(value)
    name = UNNAMEABLE.sub("_", text).strip("_.:-")[:LONGEST]
    if not LABEL.fullmatch(name):
        raise ValueError(f"{text[:60]!r} cannot be a name: {NAMES}")
    return name


def own_slice(prompt: Prompt) -> str | None:
    """The slice that a prompt brings, or None if the objective's rules give it.

    Raises ValueError if its field is missing or cannot be a name.
    """
    field = prompt.attributes.get(SLICE_FROM)
    if field is None:
        return None
    if not isinstance(field, str) or field not in prompt.attributes:
        raise ValueError(f"attributes.{SLICE_FROM}: {field!r} is not an attribute of the prompt")
    value = prompt.attributes[field]
    if isinstance(value, list):
        raise ValueError(f"attributes.{field}: a list, which cannot be a slice")
    return slice_name(value)
