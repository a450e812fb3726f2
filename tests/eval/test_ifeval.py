import os
import re
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eval import ifeval


def constraint(identifier, **params):
    return {"id": identifier, "params": params}


def test_importing_prints_nothing_and_downloads_nothing():
    code = "from eval import ifeval; ifeval.checker_ids()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH="."),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_strict_and_loose():
    title = constraint("detectable_format:title")
    assert ifeval.check([title], "<<a title>>\ntext") == ([True], [True])
    quoted = constraint("startend:quotation")
    assert ifeval.check([quoted], 'Sure!\n"all of it"') == ([False], [True])
    assert ifeval.check([title, quoted], "") == ([False, False], [False, False])


@pytest.mark.parametrize(
    "bad",
    [
        constraint("keywords:existence"),
        constraint("keywords:existence", keywords=None),
        constraint("startend:quotation", what=1),
        constraint("no:such"),
        {"params": {}},
    ],
)
def test_what_would_be_drawn_at_random_is_refused(bad):
    assert ifeval.verifiable(bad)
    with pytest.raises(ValueError, match=r"."):
        ifeval.check([bad], "text")


LETTER = {"letter": "a", "let_frequency": 2, "let_relation": "at least"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (constraint("keywords:letter_frequency", **LETTER | {"letter": "#"}), "at random"),
        (constraint("keywords:letter_frequency", **LETTER | {"letter": "ab"}), "at random"),
        (constraint("keywords:letter_frequency", **LETTER | {"let_frequency": -3}), "at random"),
        (
            constraint("length_constraints:number_words", num_words=-5, relation="at least"),
            "at random",
        ),
        (constraint("detectable_format:number_bullet_lists", num_bullets=-1), "at random"),
        (constraint("keywords:existence", keywords=[]), "a list of texts"),
        (constraint("keywords:existence", keywords=[1, 2]), "a list of texts"),
        (constraint("keywords:existence", keywords="bread"), "a list of texts"),
        (constraint("keywords:existence", keywords=["("]), "regular expressions"),
        (constraint("keywords:existence", keywords=["absent", "zz("]), "regular expressions"),
        (
            constraint("keywords:forbidden_words", forbidden_words=["one", "(?"]),
            "regular expressions",
        ),
        (constraint("keywords:existence", keywords=["a{99999999999}"]), "regular expressions"),
        (constraint("keywords:existence", keywords=["(?a)(?u)x"]), "regular expressions"),
        (
            constraint("keywords:existence", keywords=["(" * 3000 + ")" * 3000]),
            "regular expressions",
        ),
        (
            constraint("length_constraints:number_words", num_words="many", relation="at least"),
            "a whole number",
        ),
        (
            constraint("length_constraints:number_words", num_words=3, relation="around"),
            "cannot use",
        ),
        (constraint("language:response_language", language="xx"), "cannot use"),
        ({"id": "keywords:existence", "params": ["bread"]}, "not an object"),
    ],
)
def test_parameters_that_a_checker_cannot_use_are_a_reason(bad, reason):
    assert reason in ifeval.verifiable(bad)
    assert ifeval.unusable(bad) == ifeval.verifiable(bad)
    with pytest.raises(ValueError, match=reason):
        ifeval.check([bad], "the bread")


def test_whole_numbers_written_as_floats_count_paragraphs():
    params = {"num_paragraphs": 6, "nth_paragraph": 5.0, "first_word": "five"}
    fifth = constraint("length_constraints:nth_paragraph_first_word", **params)
    assert ifeval.check([fifth], "\n\n".join(["one", "two", "three", "four", "five", "six"])) == (
        [True],
        [True],
    )
    assert "5.0" not in ifeval.describe(fifth)


def test_what_is_missing_is_not_unusable():
    assert ifeval.unusable(constraint("keywords:existence")) is None
    assert ifeval.unusable(constraint("keywords:existence", keywords=None)) is None
    assert ifeval.unusable(constraint("no:such")) is None
    assert ifeval.verifiable(constraint("keywords:existence", keywords=["(?i)bread"])) is None
    assert (
        ifeval.verifiable(
            constraint("length_constraints:number_words", num_words=9.0, relation="at least")
        )
        is None
    )
    assert ifeval.verifiable(constraint("keywords:letter_frequency", **LETTER)) is None


def test_every_checker_is_deterministic():
    import random

    params = {
        "keywords:existence": {"keywords": ["bread"]},
        "keywords:frequency": {"keyword": "bread", "frequency": 2, "relation": "at least"},
        "length_constraints:number_words": {"num_words": 3, "relation": "at least"},
        "language:response_language": {"language": "en"},
    }
    text = "the bread is old , and the bread is good ."
    seen = set()
    for seed in range(3):
        random.seed(seed)
        seen.add(
            tuple(
                tuple(r)
                for i, p in params.items()
                for r in ifeval.check([constraint(i, **p)], text)
            )
        )
    assert len(seen) == 1


def frequency(word, relation="at least"):
    return constraint("keywords:frequency", keyword=word, frequency=2, relation=relation)


@pytest.mark.parametrize(
    "misread",
    [
        constraint("keywords:existence", keywords=["bread", "$5"]),
        constraint("keywords:existence", keywords=["U.S."]),
        constraint("keywords:existence", keywords=["C++"]),
        constraint("keywords:existence", keywords=["(a)", "bread"]),
        constraint("keywords:existence", keywords=["[x]"]),
        constraint("keywords:existence", keywords=["what?"]),
        constraint("keywords:forbidden_words", forbidden_words=["bread", "#sale"]),
        constraint("keywords:forbidden_words", forbidden_words=["U.S."]),
        constraint("keywords:forbidden_words", forbidden_words=[".NET"]),
        constraint("keywords:forbidden_words", forbidden_words=["C#"]),
        constraint("keywords:forbidden_words", forbidden_words=["50%"]),
        frequency("$5"),
        frequency("3.5", "less than"),
        constraint("detectable_content:postscript", postscript_marker="Note (1)"),
        constraint("detectable_format:multiple_sections", section_spliter="Q.", num_sections=3),
        constraint("startend:end_checker", end_phrase='"the end"'),
        constraint(
            "length_constraints:nth_paragraph_first_word",
            num_paragraphs=3,
            nth_paragraph=2,
            first_word="don't",
        ),
    ],
)
def test_words_that_their_checker_does_not_read_as_they_stand_are_unverifiable(misread):
    reason = ifeval.verifiable(misread)
    assert "does not read" in reason
    assert "an answer such as" in reason
    assert ifeval.unusable(misread) is None
    with pytest.raises(ValueError, match="does not read"):
        ifeval.check([misread], "the bread")


@pytest.mark.parametrize(
    "plain",
    [
        constraint("keywords:existence", keywords=["bread", "#sale", "AT&T", "don't", "New York"]),
        constraint("keywords:forbidden_words", forbidden_words=["it", "so", "some", "e-mail"]),
        constraint("keywords:forbidden_words", forbidden_words=["naïve", "Straße", "日本"]),
        frequency("it"),
        frequency("I", "less than"),
        constraint("detectable_content:postscript", postscript_marker="P.S."),
        constraint("detectable_content:postscript", postscript_marker="P.P.S"),
        constraint("detectable_format:multiple_sections", section_spliter="Day", num_sections=1),
        constraint("startend:end_checker", end_phrase="Is that all (for $5)?"),
        constraint("combination:repeat_prompt", prompt_to_repeat="What is 2 + 2?\nIn the U.S."),
        constraint(
            "length_constraints:nth_paragraph_first_word",
            num_paragraphs=1,
            nth_paragraph=1,
            first_word="Hello",
        ),
    ],
)
def test_words_that_are_read_as_they_stand_are_verifiable(plain):
    assert ifeval.verifiable(plain) is None


WORDS = st.text("abC.$+*?()[]|^#-' 5\\", min_size=1, max_size=6)
TEXTS = st.text("abC.$+*?()[]|^#-' 5\\d\n", max_size=30)


@settings(max_examples=300, deadline=None)
@given(word=WORDS, before=TEXTS, after=TEXTS)
def test_what_is_verifiable_is_judged_as_plain_reading_judges_it(word, before, after):
    assume(word.strip())
    exists = constraint("keywords:existence", keywords=[word])
    forbidden = constraint("keywords:forbidden_words", forbidden_words=[word])
    for text in (before + word + after, before + after, f"a {word} b"):
        assume(text.strip())
        found = word.lower() in text.lower()
        if ifeval.verifiable(exists) is None:
            assert ifeval.check([exists], text)[0] == [found]
        if ifeval.verifiable(forbidden) is None:
            alone = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
            assert ifeval.check([forbidden], text)[0] == [alone is None]


@given(word=st.from_regex(r"[a-zäßé]{1,12}", fullmatch=True))
@settings(max_examples=50, deadline=None)
def test_words_of_letters_are_always_verifiable(word):
    assert ifeval.verifiable(constraint("keywords:existence", keywords=[word])) is None
    assert ifeval.verifiable(constraint("keywords:forbidden_words", forbidden_words=[word])) is None
    assert ifeval.verifiable(frequency(word)) is None


def test_missing_data_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(ifeval, "_has_punkt", lambda: False)
    sentences = constraint(
        "length_constraints:number_sentences", num_sentences=3, relation="at least"
    )
    assert "python -m nltk.downloader punkt_tab" in ifeval.verifiable(sentences)


def test_what_a_model_wrote_does_not_reach_the_terminal():
    code = """
from eval import ifeval
answer = chr(27) + "[2;3 12345"
for i, p in [("language:response_language", {"language": "en"}), ("change_case:english_capital", {}),
             ("change_case:english_lowercase", {}), ("keywords:existence", {"keywords": ["[[x"]})]:
    constraint = {"id": i, "params": p}
    if ifeval.verifiable(constraint) is None:
        ifeval.check([constraint], answer)
"""
    env = dict(os.environ, PYTHONPATH=".", PYTHONWARNINGS="always")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "")
    assert chr(27) not in done.stderr
    assert "12345" not in done.stderr


@pytest.mark.parametrize("words", [["cat", "$5"], ["$5", "cat"], ["dog", "cat", "$5"]])
def test_of_several_words_the_one_that_is_misread_is_named(words):
    reason = ifeval.verifiable({"id": "keywords:existence", "params": {"keywords": words}})
    assert "does not read '$5' as it stands" in reason
