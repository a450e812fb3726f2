"""`--slice-from FIELD`: a category that the data has of its own becomes bucket or slice."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mosaic.core.types.base import LABEL, NAMES
from training.data.importers.fields import Unusable
from training.data.importers.where import MISSING, as_written, field_of

UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.:-]+")
LONGEST = 40


def slice_of(row: Mapping[str, object], field: str) -> str:
    """The name that a row's field gives. Raises Unusable if it has none.

    >>> slice_of({"type": "Real group / nons. discr"}, "type")
    'Real_group_nons._discr'
    """
    value = field_of(row, field)
    text = None if value is MISSING else as_written(value)
    if not text:
        raise Unusable(f"{field}: no text or number to take the slice from")
    name = UNNAMEABLE.sub("_", text.strip()).strip("_.:-")[:LONGEST]
    if not LABEL.fullmatch(name):
        raise Unusable(f"{field}: {text[:60]!r} cannot be a name: {NAMES}")
    return name
