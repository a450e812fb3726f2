import os
import subprocess
import sys

import pytest

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
