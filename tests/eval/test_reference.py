"""Known answers: what is read out of a text, and what it is compared with."""

import json
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from eval.judges.verifier import VerifierJudge
from eval.known_answers import check_references
from eval.objectives.base import Malformed, Unchecked
from eval.objectives.config import ReferenceConfig
from eval.objectives.json_schema import check_schema, fits, json_texts
from eval.objectives.patterns import check_pattern, matches
from eval.objectives.reading import (
    number_value,
    read_choice,
    read_number,
    read_parts,
)
from eval.objectives.reference import ReferenceObjective, score_of
from eval.suite import load_suite
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt, Response


def objective(match, **settings):
    return ReferenceObjective("known", ReferenceConfig(match=match, **settings))


def asked(answer=None, **fields):
    return Prompt(id="p", turns=["?"], slice="all", weight=1, answer=answer, **fields)


def answered(known, prompt, *answers):
    """The scored last answer to a prompt."""
    response = Response(
        id="p", answers=list(answers), finish_reasons=["stop"] * len(answers), n_tokens=1
    )
    return known.score({"id": "p", **known.check(prompt, response)})


def result(known, prompt, *answers):
    return answered(known, prompt, *answers).label["result"]


# Numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("We need 3 boxes of 4, which makes 12.", 12),
        ("$-5", -5),
        ("-$5.50", Fraction("-5.5")),
        ("−7.5 °C", Fraction("-7.5")),
        ("x = -5", -5),
        ("EUR 1,234,567.", 1234567),
        ("Rs.500", 500),
        ("$5$.", 5),
        ("**42**", 42),
        ("_42_", 42),
        ("...5", 5),
        (".5", Fraction(1, 2)),
        ("50 %", 50),
        ("42\\%", 42),
        ("1e-3", Fraction(1, 1000)),
        ("6.02 × 10^23 per mole", 602 * 10**21),
        ("6.02\\times10^{23}", 602 * 10**21),
        ("10km", 10),
        ("1{,}234", 1234),
        ("42\\,000", 42000),
        ("1\u202f234", 1234),
        ("3 * 4 = 12", 12),
        ("Answer: 7\nThat took 8 steps.", 7),
        ("**Final answer:** 7 apples, not 8", 8),
        ("Answer:\n\n12", 12),
        ("Answer: 3\nAnswer: 4", 4),
        ("\\boxed{9} of 10", 9),
        ("Answer: $\\boxed{9}$ of 10", 9),
        ("5\n-3", -3),
        ("- 5", 5),
        ("H2O and GPT-like v1.2 models: 7", 7),
    ],
)
def test_a_number_is_read(text, value):
    assert number_value(read_number(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "1/2",
        "3 / 4",
        "1 1/2",
        "\\frac{1}{2}",
        "\\boxed{\\frac{1}{2}}",
        "2\\pi",
        "\\sqrt{2}",
        "5-3",
        "5 - 3",
        "5 -3",
        "10:30",
        "2024-01-05",
        "2^10",
        "10⁵",
        "1,5",
        "1,00,000",
        "1.234,5",
        "1.2.3",
        "12 345",
        "0x1F",
        "1e1000",
        "9" * 401,
        "3 of them, or 1/2",
    ],
)
def test_what_is_not_one_plain_number_is_ambiguous(text):
    assert isinstance(read_number(text), list)


@pytest.mark.parametrize(
    "text", ["", "none", "x2", "H2O", "v1.2", "five", "½", "5\nAnswer: none", "\\boxed{}"]
)
def test_a_text_without_a_number_has_none(text):
    assert read_number(text) is None


@st.composite
def written_numbers(draw):
    """(a value, one of the ways to write it)"""
    whole = draw(st.integers(0, 10**12))
    decimals = draw(st.text("0123456789", max_size=6))
    negative = draw(st.booleans())
    exponent = draw(st.none() | st.integers(-20, 20))
    digits = f"{whole:,}" if draw(st.booleans()) else str(whole)
    if decimals:
        digits += f".{decimals}"
    value = Fraction(f"{whole}.{decimals or 0}") * (-1 if negative else 1)
    sign = draw(st.sampled_from(["-", "−"])) if negative else draw(st.sampled_from(["", "+"]))
    currency = draw(st.sampled_from(["", "$", "€", "\\$"]))
    text = sign + currency + digits
    if exponent is not None:
        value *= Fraction(10) ** exponent
        form = draw(st.sampled_from(["e{}", "E{}", " × 10^{}", "\\times 10^{{{}}}"]))
        text += form.format(exponent)
    return value, text


@given(
    number=written_numbers(),
    before=st.sampled_from(
        ["", "It is ", "The 3 of them have ", "= ", "(", "**", "1. First: ", "$"]
    ),
    after=st.sampled_from(
        ["", ".", ")", "**", " %", "%", " km", ", I think.", "!", "\n\nDone.", "$"]
    ),
)
@example((Fraction(0), "-0"), "", "")
def test_a_number_is_read_however_it_is_written(number, before, after):
    value, text = number
    assert number_value(read_number(before + text + after)) == value
    assert number_value(read_number(f"9 + 9\nAnswer: {text}\nThis took 7 steps.")) == value
    assert number_value(read_number(f"\\boxed{{{text}}} and 7")) == value


@given(st.text(st.sampled_from("0123456789.,-+−/^$ex×\\{}[]() \n_*ab"), max_size=40))
def test_reading_a_number_never_raises_and_never_invents_digits(text):
    read = read_number(text)
    if isinstance(read, str):
        number_value(read)
        assert [c for c in read if c.isdigit()]
        assert set(read) - set("-.,e") <= set(text)


def test_hostile_lengths_are_read_quickly():
    for piece in ("1", "1,", "-", "a1", "1 ", "\\boxed{", "answer:", "answer: ", "**", "A ", "$-"):
        text = piece * (100_000 // len(piece))
        read_number(text)
        read_choice(text, {"A": "a1", "B": "b"})
        read_parts(text, 3)
        json_texts(text)
    json_texts("```a\n" * 20_000)


# Choices

OPTIONS = {"A": "Paris", "B": "Rome", "C": "Paris, Texas", "D": "12"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("**B**.", "B"),
        ("B) Rome", "B"),
        ("rome!", "B"),
        ("It is Paris, Texas.", "C"),
        ("A is wrong, so the answer is B", "B"),
        ("A dog lives in Rome", "B"),
        ("A is right", "A"),
        ("Not A. It is clearly B!", "B"),
        ("Answer: B\nA was close.", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("12", "D"),
        ("12.5", None),
        ("Plan B-2 is B's", None),
        ("neither", None),
        ("E", None),
        ("A or B", ["A", "B"]),
        ("A) Rome", ["A", "B"]),
        ("A) Paris\nB) Rome\nC) Paris, Texas", ["A", "B", "C"]),
        ("Answer: B, not A", ["A", "B"]),
    ],
)
def test_a_choice_is_read(text, read):
    assert read_choice(text, OPTIONS) == read


def test_choices_are_compared_with_a_letter_or_the_text_of_an_option():
    known = objective("choice")
    cities = {"options": ["Paris", "Rome"]}
    for answer in ("B", "b", "rome"):
        prompt = asked(answer, attributes=cities)
        assert known.labels(prompt) == ("all", 1, 1)
        assert result(known, prompt, "I am sure: Rome.") == "right"
        assert result(known, prompt, "I am sure: A.") == "wrong"
        assert result(known, prompt, "A or B") == "ambiguous"
        assert result(known, prompt, "No idea.") == "no_answer"
    assert result(known, asked("G"), "(G)") == "right"


# Parts


@pytest.mark.parametrize(
    ("text", "count", "parts"),
    [
        ("The roots are 3 and 5.", 2, ["The roots are 3", "5."]),
        ("Answer: 3; 5; 7", 2, None),
        ("Some words.\n1. x = 3\n\n2. x = 5\n", 2, ["x = 3", "x = 5"]),
        ("3, 1,000, and 5", 3, ["3", "1,000", "5"]),
        ("Answer: a, b", 3, ["a", "b"]),
        ("", 2, []),
    ],
)
def test_an_answer_is_read_in_parts(text, count, parts):
    assert read_parts(text, count) == parts


def test_parts_score_by_the_share_that_is_right():
    known = objective("number", parts=True)
    prompt = asked([3, "1,000", 5])
    right = answered(known, prompt, "Answer: 3, 1000 and 5.0")
    assert (right.score, right.label["result"], right.failed) == (5, ["right"] * 3, False)
    partly = answered(known, prompt, "Answer: 3, 1/2")
    assert partly.score == 2.33
    assert partly.label["result"] == ["right", "ambiguous", "no_answer"]
    assert partly.failed
    too_many = answered(known, prompt, "Answer: 3, 1000, 5, 6")
    assert too_many.label["result"] == ["ambiguous"] * 3
    assert known.breakdown([right, partly]) == {
        "result": {"ambiguous": 1, "no_answer": 1, "right": 4}
    }


@given(st.integers(1, 2000), st.data())
def test_only_all_parts_score_5_and_none_scores_1(parts, data):
    right = data.draw(st.integers(0, parts))
    score = score_of(right, parts)
    assert 1 <= score <= 5
    assert (score == 5) == (right == parts)
    if right:
        assert score >= score_of(right - 1, parts)


# Comparing


def test_numbers_are_equal_or_within_the_tolerance():
    prompt = asked(0.1)
    assert result(objective("number"), prompt, "0.10") == "right"
    assert result(objective("number"), prompt, "0.1000001") == "wrong"
    wide = objective("number", tolerance={"absolute": 0.01})
    assert result(wide, prompt, "0.11") == "right"
    assert result(wide, prompt, "0.111") == "wrong"
    share = objective("number", tolerance={"relative": 0.01})
    assert result(share, asked(-200), "-202") == "right"
    assert result(share, asked(-200), "-202.1") == "wrong"
    assert result(share, asked(-200), "200") == "wrong"


def test_exact_texts_by_case_and_blanks():
    assert result(objective("exact"), asked("Oak"), " Oak\n") == "right"
    assert result(objective("exact"), asked("Oak"), "oak") == "wrong"
    assert result(objective("exact", ignore_case=True), asked("STRASSE"), "straße") == "right"
    assert result(objective("exact", strip=False), asked("Oak"), "Oak ") == "wrong"
    assert result(objective("exact"), asked("Oak"), "  ") == "no_answer"
    assert result(objective("exact"), asked("Oak"), "first", "Oak") == "right"  # the last turn


def test_patterns_match_a_part_or_the_whole():
    prompt = asked(r"\d+ apples")
    assert result(objective("regex"), prompt, "I see 3 apples.") == "right"
    assert result(objective("regex", full_match=True), prompt, "I see 3 apples.") == "wrong"
    assert result(objective("regex", full_match=True), prompt, "3 apples") == "right"
    assert result(objective("regex", ignore_case=True), prompt, "3 APPLES") == "right"
    two = objective("regex", parts=True)
    assert answered(two, asked(["apple", "pear"]), "an apple").score == 3


def test_a_pattern_that_takes_for_ever_leaves_the_answer_unscored(monkeypatch):
    monkeypatch.setattr("eval.objectives.patterns.SECONDS", 0.1)
    prompt = asked("(a|aa)*[bc]")
    judgment = VerifierJudge().judge(
        objective("regex"),
        [prompt],
        [Response(id="p", answers=["a" * 40], finish_reasons=["stop"], n_tokens=1)],
    )[0]
    assert judgment.status == "failed"
    assert "takes more than 0.1 seconds" in judgment.reason


@pytest.mark.parametrize("pattern", ["(", "a{5,2}", "((a{999}){999}){999}", "a" * 3000, "[z-a]"])
def test_a_pattern_that_does_not_compile_is_refused(pattern):
    with pytest.raises(Malformed, match=r"regular expression|multiply"):
        check_pattern(pattern)


def test_a_very_long_answer_is_not_read():
    for match, known in (("number", 1), ("exact", "x"), ("regex", "x")):
        with pytest.raises(Unchecked, match="100,000 characters"):
            answered(objective(match), asked(known), "x" * 100_001)
    with pytest.raises(Unchecked):
        matches("x", "x" * 100_001, full=False, ignore_case=False)


# JSON

CITY = {
    "type": "object",
    "required": ["city"],
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('{"city": "Lyon"}', "right"),
        ('Here:\n```json\n{"city": "Lyon"}\n```\nEnjoy!', "right"),
        ('{"city": "lyon"}', "wrong"),
        ('{"city": "Lyon", "zip": 1}', "wrong"),
        ("[]", "wrong"),
        ('Here: {"city": "Lyon"}', "no_answer"),
        ('{"city": "Lyon", "city": "Rome"}', "no_answer"),
        ("```\n{'city': 1}\n```", "no_answer"),
        ("```\n1\n```\n```\n2\n```", "ambiguous"),
    ],
)
def test_json_is_read_strictly_and_validated(answer, wanted):
    known = objective("json_schema")
    prompt = asked(CITY)
    assert known.labels(prompt) == ("all", 1, 1)
    assert result(known, prompt, answer) == wanted


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("x", "an object"),
        ({"type": "strin"}, r"\$\.type"),
        ({"pattern": "("}, r"\$\.pattern"),
        ({"properties": {"a": {"pattern": "("}}}, r"\$\.properties\.a\.pattern"),
        ({"pattern": "((a{999}){999}){999}"}, "multiply"),
        ({"patternProperties": {"a": {}}}, "patternProperties"),
        ({"$ref": "https://example.org/schema"}, "leaves the schema"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "#"}, "without end"),
        ({"$id": "https://example.org/"}, r"\$id"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, reason):
    with pytest.raises(Malformed, match=reason):
        check_schema(schema)


def test_a_property_may_have_the_name_of_a_keyword():
    schema = {
        "properties": {"patternProperties": {"type": "integer"}, "pattern": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"const": {"$ref": "nowhere"}}},
    }
    check_schema(schema)
    assert fits({"patternProperties": 1, "pattern": {"$ref": "nowhere"}}, schema)
    assert not fits({"patternProperties": "1"}, schema)


# Suites


def write(folder, *prompts):
    lines = []
    for number, fields in enumerate(prompts):
        whole = {"id": f"p{number}", "turns": ["?"], "slice": "all", "weight": 1, **fields}
        lines.append(json.dumps(whole) + "\n")
    (folder / "steering.jsonl").write_text("".join(lines))
    return folder


def test_a_suite_takes_its_slices_from_an_attribute_and_checks_references(tmp_path):
    known = objective("number", slice_from="level")
    hard = {"attributes": {"level": 3}, "slice": "3", "answer": 12, "good": ["12"], "bad": ["13"]}
    suite = load_suite(write(tmp_path, hard), known, "steering")
    check_references(suite, known, VerifierJudge())
    assert answered(known, suite.prompts[0], "12").slice == "3"
    with pytest.raises(Malformed, match="level"):
        known.prompt_side({}, 1, [])
    bent = {**hard, "bad": ["It is 12"]}
    with pytest.raises(UsageError, match="bad reference answer gives score 5"):
        check_references(
            load_suite(write(tmp_path, bent), known, "steering"), known, VerifierJudge()
        )


@pytest.mark.parametrize(
    ("settings", "fields", "reason"),
    [
        ({"match": "number"}, {}, "answer is missing"),
        ({"match": "number"}, {"answer": "1/2"}, "'1/2' is not a number"),
        ({"match": "number"}, {"answer": True}, "True is not a number"),
        ({"match": "number"}, {"answer": [1]}, "is not a number"),
        ({"match": "exact"}, {"answer": 3}, "3 is not a text"),
        ({"match": "exact"}, {"answer": " "}, "is not a text"),
        ({"match": "regex"}, {"answer": "("}, "not a regular expression"),
        ({"match": "json_schema"}, {"answer": {"type": 3}}, "not a JSON schema"),
        ({"match": "choice"}, {"answer": "Z"}, "not one of the options"),
        ({"match": "choice"}, {"answer": "A", "attributes": {"options": "AB"}}, "options"),
        ({"match": "choice"}, {"answer": "A", "attributes": {"options": ["x", "X"]}}, "twice"),
        ({"match": "choice"}, {"answer": "A", "attributes": {"options": ["b", "c"]}}, "letter"),
        ({"match": "number", "parts": True}, {"answer": 3}, "list of parts"),
        ({"match": "number", "parts": True}, {"answer": []}, "list of parts"),
        ({"match": "number", "parts": True}, {"answer": [1, "x"]}, r"answer\.1"),
        ({"match": "number", "slice_from": "level"}, {"answer": 1}, "attributes.level is missing"),
        (
            {"match": "number", "slice_from": "level"},
            {"answer": 1, "attributes": {"level": ["a"]}},
            "does not name a slice",
        ),
        ({"match": "number"}, {"answer": 1, "slice": "other"}, "slice, weight, valid"),
    ],
)
def test_a_prompt_that_cannot_be_compared_with_is_refused_with_its_line(
    tmp_path, settings, fields, reason
):
    known = ReferenceObjective("known", ReferenceConfig(**settings))
    folder = write(tmp_path, fields)
    with pytest.raises(UsageError, match=rf"steering\.jsonl:1: .*{reason}"):
        load_suite(folder, known, "steering")


def test_a_prompt_without_an_answer_is_written_as_before():
    assert "answer" not in asked().json_data()
    assert asked({"type": "null"}).json_data()["answer"] == {"type": "null"}


# Configs


@pytest.mark.parametrize(
    "settings",
    [
        {"match": "exact", "tolerance": {"absolute": 1}},
        {"match": "number", "tolerance": {"absolute": -1}},
        {"match": "exact", "full_match": True},
        {"match": "number", "ignore_case": True},
        {"match": "approximately"},
    ],
)
def test_a_config_with_an_option_that_has_no_meaning_is_refused(settings):
    with pytest.raises(ValidationError):
        ReferenceConfig(**settings)


def test_the_rules_depend_on_every_setting():
    variants = [
        {"match": "exact"},
        {"match": "regex"},
        {"match": "regex", "full_match": True},
        {"match": "exact", "ignore_case": True},
        {"match": "exact", "strip": False},
        {"match": "exact", "parts": True},
        {"match": "exact", "slice_from": "level"},
        {"match": "number"},
        {"match": "number", "tolerance": {"relative": 0.5}},
    ]
    rules = {ReferenceObjective("known", ReferenceConfig(**v)).rules for v in variants}
    assert len(rules) == len(variants)
    config = ReferenceConfig(match="number", tolerance={"relative": 0.5})
    assert ReferenceConfig.model_validate(config.json_data()) == config


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"slice": "all", "right": [], "read": []},
        {"slice": "all", "right": [1], "read": ["x"]},
        {"slice": "all", "right": [True], "read": [None]},
        {"slice": "all", "right": [True], "read": [["x", "y"]]},
        {"slice": "all", "right": [True], "read": []},
        {"slice": "all", "right": [True, True], "read": ["x", "y"]},
        {"slice": "", "right": [True], "read": ["x"]},
    ],
)
def test_a_malformed_line_is_unscored(line):
    scored = objective("exact").score({"id": "p", **line})
    assert (scored.status, scored.score) == ("unscored", None)
