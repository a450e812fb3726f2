"""The words in which a prompt states a wish."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.levels import HIGHEST, read_stated, read_wish, repeats_wish, stated, wish

# A name of a config, as `mosaic.core.types.base.LABEL` has it.
NAMES = st.from_regex(r"\A[a-j0-9][a-j0-9_.:-]{0,11}\Z")
LEVELS = st.integers(1, HIGHEST)
DIMENSIONS = ["safety", "over_refusal", "brevity"]


@given(st.dictionaries(NAMES, LEVELS, min_size=1, max_size=4))
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


@given(st.dictionaries(NAMES, LEVELS, min_size=1, max_size=4), st.sets(NAMES, max_size=3))
def test_a_wish_is_read_back_exactly_whatever_else_could_be_wished_for(levels, others):
    names = [*levels, *(others - levels.keys())]
    read = read_wish(wish(levels), names)
    assert read == levels
    assert list(read) == list(levels)


@given(st.dictionaries(NAMES, LEVELS, min_size=1, max_size=3), st.none() | st.text())
def test_what_a_system_message_said_before_the_wish_is_kept(system_levels, system):
    names = list(system_levels)
    assert read_stated(stated(system, system_levels), names) == (system_levels, system)


@given(st.text("safety brv015of,.\n_", max_size=30))
def test_what_is_read_at_all_is_a_line_that_is_written_so(line):
    try:
        levels = read_wish(line, DIMENSIONS)
    except ValueError:
        return
    assert wish(levels) == line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "does not end"),
        (" .", "is not a wish"),
        ("safety 5 of 5", "does not end"),
        ("safety 5 of 5 . ", "does not end"),
        ("safety 0 of 5 .", "'0' is not one of 1 to 5"),
        ("safety 6 of 5 .", "'6' is not one of 1 to 5"),
        ("safety 05 of 5 .", "'05' is not one of 1 to 5"),
        ("safety -1 of 5 .", "is not a wish"),
        ("safety 2.5 of 5 .", "is not a wish"),
        ("safety ٣ of 5 .", "is not a wish"),
        ("safety 3 of 4 .", "is not a wish"),
        ("safety .", "is not a wish"),
        ("helpfulness 3 of 5 .", "'helpfulness' is not a dimension"),
        ("Safety 3 of 5 .", "'Safety' is not a dimension"),
        ("over_refusal 3 of 5 .", "'over_refusal' is not a dimension"),
        ("safety  3 of 5 .", "'safety ' is not a dimension"),
        ("safety 3 of 5 , safety 3 of 5 .", "wished for twice"),
        ("safety 3 of 5, brevity 2 of 5 .", "is not a dimension"),
        ("please , safety 3 of 5 .", "is not a wish"),
    ],
)
def test_anything_else_is_refused_and_named(line, reason):
    with pytest.raises(ValueError, match=reason):
        read_wish(line, DIMENSIONS)


def test_names_that_are_written_alike_are_refused():
    with pytest.raises(ValueError, match="written alike"):
        read_wish("over refusal 3 of 5 .", ["over_refusal", "over refusal"])


@pytest.mark.parametrize("system", [None, "", "Be kind.", "Be kind.\nsafety 3 of 5 ."])
def test_a_prompt_that_states_no_wish_in_its_first_line_is_refused(system):
    with pytest.raises(ValueError, match=r"no wish|not a wish"):
        read_stated(system, DIMENSIONS)


@given(st.dictionaries(NAMES, LEVELS, min_size=1, max_size=3), st.text(), st.data())
def test_an_answer_with_any_part_of_a_wish_is_found_to_repeat_it(levels, text, data):
    part = data.draw(st.sampled_from(wish(levels).removesuffix(" .").split(" , ")))
    assert repeats_wish(f"{text} {part.upper()}\n{text}", levels)


def test_other_levels_and_other_words_do_not_repeat_a_wish():
    wished = {"over_refusal": 5, "brevity": 2}
    for answer in ("", "5 of 5 .", "over refusal 4 of 5 .", "brevity", "brevity 2 of 4"):
        assert not repeats_wish(answer, wished)
