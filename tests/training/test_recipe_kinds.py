"""Recipes as plain data, as a journal holds them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from mosaic.core.types.runs import Recipe


@pytest.mark.parametrize("kind", ["nonsense", None, ["sft"], {"sft": 1}])
def test_a_kind_that_is_none_is_told(kind):
    with pytest.raises(ValidationError, match="is not a recipe"):
        TypeAdapter(Recipe).validate_python({"kind": kind})
