"""`--slice-from FIELD`: a category that the data has of its own becomes bucket or slice."""

from __future__ import annotations

from collections.abc import Mapping

from eval.slices import SLICE_FROM, slice_name
from mosaic.core.types.evaluation import Prompt
from training.data.importers.fields import Unusable
from training.data.importers.where import MISSING, as_written, field_of


def category_of(row: Mapping[str, object], field: str) -> str:
    """The text of a row's field. Raises Unusable if it has none that a slice could be named by."""
    value = field_of(row, field)
    text = None if value is MISSING else as_written(value)
    if not text:
        raise Unusable(f"{field}: no text or number to take the slice from")
    try:
        slice_name(text)
    except ValueError as error:
        raise Unusable(f"{field}: {error}") from None
    return text


def slice_of(row: Mapping[str, object], field: str) -> str:
    """The name that a row's field gives. Raises Unusable if it gives none."""
    return slice_name(category_of(row, field))


def with_own_slice(prompt: Prompt, row: Mapping[str, object], field: str) -> Prompt:
    """A prompt whose slice is its row's category. Raises Unusable if it has none."""
    text = category_of(row, field)
    attributes = {**prompt.attributes, SLICE_FROM: field, field: text}
    return prompt.model_copy(update={"slice": slice_name(text), "attributes": attributes})
