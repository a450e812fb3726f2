"""Contamination: what stands in the pool word for word is found, what only resembles it is not."""

import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from training.data.contamination import LENGTH, contamination, touched
from training.data.importers.job import ImportJob
from training.data.importers.rows import import_rows

LONG = " ".join(f"word{i}" for i in range(20))


def prompt(*turns, identifier="p"):
    return Prompt(id=identifier, turns=list(turns), slice="x", weight=1)


def shares(prompts, *rows):
    found = contamination(
        {"o": {"audit": prompts}}, [(f"r{i}", turns) for i, turns in enumerate(rows)]
    )
    return {h.prompt: (h.row, round(h.covered, 2)) for h in found[0].hits}


def test_a_prompt_inside_a_long_chat_is_found():
    chat = ["hello there", "before " + LONG.upper().replace(" ", ",  ") + " after", "bye"]
    assert shares([prompt(LONG)], ["other words"], chat) == {"p": ("r1", 1.0)}


def test_a_run_of_twelve_words_is_not_enough():
    words = LONG.split()
    assert shares([prompt(LONG)], [" ".join(words[: LENGTH - 1])]) == {}
    assert shares([prompt(LONG)], [" ".join(words[:LENGTH])]) == {"p": ("r0", 0.65)}


def test_a_run_does_not_reach_over_a_turn():
    words = LONG.split()
    assert shares([prompt(LONG)], [" ".join(words[:10]), " ".join(words[10:])]) == {}


def test_less_than_half_of_the_words_is_not_contamination():
    rest = " ".join(f"other{i}" for i in range(14))
    assert shares([prompt(LONG[: LONG.index("word13") - 1] + " " + rest)], [LONG]) == {}


def test_two_rows_with_a_half_each_do_not_add_up():
    a, b = " ".join(f"a{i}" for i in range(13)), " ".join(f"b{i}" for i in range(13))
    c = " ".join(f"c{i}" for i in range(13))
    assert shares([prompt(f"{a} {b} {c}")], [a], [b]) == {}
    assert shares([prompt(f"{a} {b} {c}")], [f"{a} {b}"]) == {"p": ("r0", 0.67)}


def test_a_short_prompt_counts_only_as_a_whole():
    assert shares([prompt("how do i bake ?")], ["How do I bake?"]) == {"p": ("r0", 1.0)}
    assert (
        shares(
            [prompt("how do i bake ?")], ["how do i bake ? please"], ["hello", "how do i bake"], []
        )
        == {}
    )
    assert shares([prompt("hello", "how ?")], ["hello", "how"]) == {"p": ("r0", 1.0)}
    assert shares([prompt("hello how ?")], ["hello", "how"], ["hello <x> how"]) == {}


TURNS = [
    " ".join(f"t{turn}w{i}" for i in range(size)) for turn, size in enumerate((18, 9, 7, 8, 7, 7))
]


def test_the_same_request_is_found_however_its_words_are_spread_over_turns():
    assert shares([prompt(*TURNS)], TURNS) == {"p": ("r0", 1.0)}
    assert touched([prompt(*TURNS)])([("same", TURNS), ("other", TURNS[1:2])]) == {"same"}


def test_equal_short_turns_count_as_covered():
    assert shares([prompt(*TURNS)], ["before", *TURNS, "after"]) == {"p": ("r0", 1.0)}
    assert shares([prompt(*TURNS)], TURNS[1:]) == {"p": ("r0", 0.68)}
    assert shares([prompt(*TURNS)], [*TURNS[:1], "other"]) == {}
    assert shares([prompt(*TURNS[1:])], ["hello", *TURNS[1:]]) == {"p": ("r0", 1.0)}


@pytest.mark.parametrize(
    "asked",
    [
        "请详细说明如何在家里烤出松软的面包，并列出需要的材料。",
        "おいしいパンを家で焼く方法をくわしく教えてください",
        "ช่วยอธิบายวิธีอบขนมปังที่บ้านอย่างละเอียด",
    ],
)
def test_a_prompt_written_without_spaces_is_found(asked):
    assert shares([prompt(asked)], ["x", asked]) == {"p": ("r0", 1.0)}
    assert shares([prompt(asked)], [asked + asked[0]]) == {"p": ("r0", 1.0)}
    assert shares([prompt(asked)], ["x", asked[:12]]) == {}


def test_hangul_has_spaces():
    words = [f"빵{i}굽는" for i in range(LENGTH)]
    assert shares([prompt(" ".join(words))], [" ".join(words[:-1]), "x"]) == {}
    assert shares([prompt(" ".join(words))], [" ".join(words), "x"]) == {"p": ("r0", 1.0)}


def test_words_of_no_suite_do_not_join_others():
    assert shares([prompt(LONG)], [LONG.replace("word10 ", "word10 strange ")]) == {}


def test_the_share_is_of_the_suites_own_prompts():
    suites = {
        "a": {"audit": [prompt(LONG), prompt("clean")]},
        "b": {"audit": [prompt("also clean")]},
    }
    one, two = contamination(suites, [("r", [LONG])])
    assert (one.share, two.share) == (0.5, 0.0)
    assert one.data()["worst"] == [{"prompt": "p", "row": "r", "covered": 1.0}]


def test_import_leaves_out_rows_that_stand_in_a_suite(tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    for number, role in enumerate(("steering", "selection", "audit")):
        one = prompt(
            "the river\u2028" + LONG if role == "audit" else f"clean {role}", identifier=str(number)
        )
        (suite / f"{role}.jsonl").write_text("\n" + one.model_dump_json() + "\n")
    talks = [LONG, "tell me of the river"]
    rows = [
        {"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": "yes"}]}
        for t in talks
    ]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    job = ImportJob(sources=[str(source)], shape="xguard", dataset="d", without=[suite])
    tally = import_rows(job, tmp_path / "rows.jsonl")
    assert (tally.rows, tally.left_out["stands in a suite (--without)"]) == (1, 1)
    (suite / "audit.jsonl").unlink()
    with pytest.raises(UsageError, match="give a suite's folder"):
        import_rows(job, tmp_path / "again.jsonl")


LEAK = (
    "Können Sie mir bitte erklären, wie man ein großes Lagerfeuer am Ufer des Sees entfacht "
    "und es später sicher wieder löscht"
)
INVISIBLE = "\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0f\u202a\u202c\u2066\u2069\u061c\u180e\u034f"


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


BENDS = st.sampled_from(
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: unicodedata.normalize("NFKD", text),
        full_width,
        str.upper,
        str.casefold,
        lambda text: "\u202e" + text + "\u202c",
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace("fi", "\ufb01"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    bends=st.lists(BENDS, max_size=3),
    hidden=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(INVISIBLE)), max_size=30),
)
def test_a_leaked_prompt_is_found_however_its_characters_are_written(bends, hidden):
    text = LEAK
    for bend in bends:
        text = bend(text)
    for place, character in hidden:
        text = text[:place] + character + text[place:]
    row = ("row", [f"Guten Tag ! {text} . Danke"])
    (found,) = contamination({"safety": {"audit": [prompt(LEAK)]}}, [row])
    assert [hit.row for hit in found.hits] == ["row"]


@pytest.mark.parametrize("other", ["größer als der See", "ein ganz anderes Wort"])
def test_what_differs_to_the_eye_still_differs(other):
    (found,) = contamination({"safety": {"audit": [prompt(LEAK)]}}, [("row", [other])])
    assert found.hits == []


@pytest.mark.parametrize(
    "bent",
    [
        LONG.replace(" ", "_"),
        LONG.replace("word", "__wo\x00rd").replace(" ", "__ "),
        LONG.replace("o", "o\x08"),
        LONG.replace("r", "r\x7f\x90"),
    ],
)
def test_underscores_and_control_characters_hide_nothing(bent):
    assert shares([prompt(LONG)], [bent]) == {"p": ("r0", 1.0)}
    assert shares([prompt(bent)], [LONG]) == {"p": ("r0", 1.0)}
