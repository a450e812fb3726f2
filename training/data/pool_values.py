"""Which values the attributes of a pool have: counted when it is built, so that no run scans it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mosaic.core.types.base import Attribute

MAX_VALUES = 64

Values: TypeAlias = dict[str, dict[str, list[Attribute]]]
"""Quality (as text) -> attribute -> its first texts, sorted, or for numbers the least and greatest."""


def add_values(values: Values, index: pa.Table, kinds: Mapping[str, str]) -> None:
    """Count in the rows of an index table; `values` is that of their data set."""
    quality = index["quality"].to_numpy()
    for grade in np.unique(quality).tolist():
        rows = index.filter(pa.array(quality == grade))
        known = values.setdefault(str(grade), {})
        for name, kind in kinds.items():
            found = _distinct(rows[f"attribute:{name}"], kind)
            if found:
                known[name] = _joined([known.get(name, []), found], kind)


def values_from(
    values: Values, kinds: Mapping[str, str], min_quality: int
) -> dict[str, list[Attribute]]:
    """Attribute -> its values among rows of the quality or a better one."""
    found: dict[str, list[Attribute]] = {}
    for name, kind in kinds.items():
        parts = []
        for grade, known in values.items():
            if int(grade) >= min_quality and name in known:
                parts.append(known[name])
        if parts:
            found[name] = _joined(parts, kind)
    return found


def _distinct(column: pa.ChunkedArray, kind: str) -> list[Attribute]:
    """The first texts of a column, sorted; for numbers the least and the greatest."""
    if kind == "number":
        numbers: npt.NDArray[np.float64] = column.to_numpy()
        numbers = numbers[~np.isnan(numbers)]
        return [float(numbers.min()), float(numbers.max())] if len(numbers) else []
    texts = pc.unique(pc.list_flatten(column) if kind == "list" else column)
    return sorted(text for text in texts.to_pylist() if text is not None)[:MAX_VALUES]


def _joined(parts: Iterable[list[Attribute]], kind: str) -> list[Attribute]:
    """The values of several parts as those of all of them."""
    every: list[Any] = [value for part in parts for value in part]
    if kind == "number":
        return [min(every), max(every)]
    return sorted(set(every))[:MAX_VALUES]
