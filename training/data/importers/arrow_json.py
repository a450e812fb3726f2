"""Arrow's extension type `arrow.json`, decoded wherever it stands in a column.

`datasets` 5 writes it for a column whose values are of several kinds, such as a content that is a
text in one row and a list of parts in another. Read as it lies there, each value is a text of JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from eval.chat.strict_json import strict_decoder

JSON = "arrow.json"
LISTS = (
    pa.ListType,
    pa.LargeListType,
    pa.FixedSizeListType,
    pa.ListViewType,
    pa.LargeListViewType,
)
Decode = Callable[[Any], Any]
_decoder = strict_decoder(quote=True)


def json_decoder(schema: pa.Schema) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """A function that decodes the JSON in plain rows of a schema; None if there is none in it.

    The function raises ValueError for a text that is not JSON.
    """
    return _of_fields({field.name: _of_type(field.type) for field in schema})


def _of_type(kind: pa.DataType) -> Decode | None:
    """How the plain value of a type is decoded, or None if it is as it should be."""
    if isinstance(kind, pa.BaseExtensionType):
        return _decoded if kind.extension_name == JSON else _of_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _of_type(kind.value_type)
    if pa.types.is_struct(kind):
        return _of_fields(
            {kind.field(i).name: _of_type(kind.field(i).type) for i in range(len(kind))}
        )
    if pa.types.is_map(kind):
        inner = _of_type(kind.item_type)
        return _of_pairs(inner) if inner else None
    if isinstance(kind, LISTS):
        inner = _of_type(kind.value_type)
        return _of_values(inner) if inner else None
    return None


def _decoded(value: str | None) -> Any:
    return None if value is None else _decoder.decode(value)


def _of_values(inner: Decode) -> Decode:
    return lambda values: None if values is None else [inner(one) for one in values]


def _of_pairs(inner: Decode) -> Decode:
    return lambda pairs: None if pairs is None else [(key, inner(one)) for key, one in pairs]


def _of_fields(fields: dict[str, Decode | None]) -> Decode | None:
    """How an object is decoded some of whose fields hold JSON."""
    inside = {name: decode for name, decode in fields.items() if decode}
    if not inside:
        return None

    def decode_object(value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        changed = {name: decode(value[name]) for name, decode in inside.items()}
        return {**value, **changed}

    return decode_object
