"""The words in which a prompt states a wish."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.levels import HIGHEST, wish

NAMES = st.text("abcdefghij_", min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.integers(1, HIGHEST), min_size=1, max_size=4))
def test_every_name_stands_with_its_level_in_the_order_given(levels):
    parts = wish(levels).removesuffix(" .").split(" , ")
    said = [f"{name.replace('_', ' ')} {level} of {HIGHEST}" for name, level in levels.items()]
    assert parts == said


@given(st.integers().filter(lambda level: not 1 <= level <= HIGHEST))
def test_a_level_off_the_scale_is_refused(level):
    with pytest.raises(ValueError, match="not one of 1 to 5"):
        wish({"brevity": level})


def test_no_wish_at_all_is_refused():
    with pytest.raises(ValueError, match="at least one name"):
        wish({})
