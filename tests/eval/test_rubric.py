"""Objectives from YAML files: what is read, what is refused and where, and what they score."""

import itertools
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from benchmarks.rubrics import FOLDER, SMALL, Truth, all_items, bent_and_opened, compared
from eval.chat.client import ChatConfig, ChatModel
from eval.judges.base import LlmJudgeConfig
from eval.judges.items import items_of, prompt_digest
from eval.judges.llm import LlmJudge
from eval.judges.verifier import VerifierJudge
from eval.known_answers import check_references
from eval.objectives.base import Malformed, channel_of
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.rubric import open_rubric
from eval.objectives.safety import Safety
from eval.scoring import judge_and_score
from eval.suite import load_suite, reference_response
from mosaic.core.errors import UsageError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "rubrics.md"
PLAIN = """\
version: 1
about: Answers to shoppers
request:
  mood:
    items:
      upset: the shopper is upset
answers:
  care:
    turns: all
    items:
      kind: it is kind
      warm: {ask: how warm it is, values: none_some_most}
slices:
  - slice: calm
    weight: 1
    when: {none: [mood.upset]}
  - slice: tense
    weight: 2
    otherwise: true
levels:
  - score: 5
    failed: false
    when: {all: [care.kind, care.warm >= 2]}
  - score: 3
    failed: false
    when: {count: care, min: 1}
  - score: 1
    failed: true
    otherwise: true
"""


@pytest.fixture
def opened(tmp_path):
    """Opens a rubric of this text, from a file `r.yaml`."""

    def open_(text, name="tone"):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return open_rubric(name, path)

    return open_


@pytest.fixture
def refusal(opened, tmp_path):
    """The error that a text is refused with; its message begins with the file's name."""

    def refuse(text):
        with pytest.raises(UsageError) as caught:
            opened(text)
        message = str(caught.value)
        assert message.startswith(str(tmp_path / "r.yaml"))
        return message.removeprefix(f"{tmp_path}/"), caught.value.details.get("combination")

    return refuse


def changed(*edits):
    """The plain rubric with texts replaced, each of which stands in it once."""
    text = PLAIN
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def line(upset=0, kind=0, warm=0, turns=1):
    items = {"mood": {"upset": upset}, "care": {"kind": kind, "warm": warm}}
    return {"id": "x", "turns": turns, "items": items}


# Reading


def test_channels_are_read_with_turns_ranges_and_words(opened):
    rubric = opened(PLAIN)
    assert rubric.request == (channel_of("mood", {"upset": 1}),)
    assert rubric.answers == (channel_of("care", {"kind": 1, "warm": 2}, "all"),)
    assert list(rubric.fields) == ["turns"]
    assert rubric.notes == []


def test_a_line_gets_the_first_slice_and_the_first_level_that_hold(opened):
    scored = opened(PLAIN).score(line(upset=1, kind=1, warm=2, turns=3))
    assert (scored.slice, scored.weight, scored.valid) == ("tense", 2, 1)
    assert (scored.score, scored.failed, scored.need) == (5, False, 2)
    assert scored.label == {"level": "score_5", "care": 3, "mood": 1}
    assert opened(PLAIN).score(line(kind=1)).score == 3
    assert opened(PLAIN).score(line()).failed is True


def test_without_slices_all_prompts_are_in_one(opened):
    text = PLAIN[: PLAIN.index("slices:")] + PLAIN[PLAIN.index("levels:") :]
    rubric = opened(text)
    assert rubric.score(line(upset=1, kind=1)).slice == "all"
    assert rubric.notes == ["mood.upset is asked for, but no condition uses it"]


def test_invalid_prompts_are_scored_and_need_nothing(opened):
    for edit in (
        ("levels:", "invalid: mood.upset\nlevels:"),
        ("weight: 2", "weight: 2\n    valid: false"),
    ):
        rubric = opened(changed(edit))
        scored = rubric.score(line(upset=1, kind=1))
        assert (scored.valid, scored.score, scored.need, scored.slice) == (0, 3, 0, "tense")
        assert rubric.prompt_side({"mood": {"upset": 1}}, 1) == ("tense", 2, 0)
        assert rubric.prompt_side({"mood": {"upset": 0}}, 1) == ("calm", 1, 1)


def test_turns_decide_slices_and_levels(opened):
    text = changed(
        ("{none: [mood.upset]}", "{turns: {min: 2, max: 3}}"),
        ("{count: care, min: 1}", "{turns: {max: 2}, item: care.warm, max: 1}"),
    )
    rubric = opened(text)
    slices = [rubric.prompt_side({"mood": {"upset": 0}}, turns)[0] for turns in (1, 2, 3, 4)]
    assert slices == ["tense", "calm", "calm", "tense"]
    assert [rubric.score(line(turns=turns)).score for turns in (1, 2, 3)] == [3, 3, 1]
    assert rubric.score(line(warm=2)).score == 1


@pytest.mark.parametrize(
    ("condition", "scores"),
    [
        ("care.warm", [1, 3, 3]),
        ("care.warm >= 1", [1, 3, 3]),
        ("care.warm <= 1", [3, 3, 1]),
        ("care.warm == 1", [1, 3, 1]),
        ("care.warm==0", [3, 1, 1]),
        ("{item: care.warm}", [1, 3, 3]),
        ("{item: care.warm, min: 2}", [1, 1, 3]),
        ("{item: care.warm, max: 1}", [3, 3, 1]),
        ("{count: [care.warm, mood], min: 1, max: 1}", [1, 3, 1]),
        ("{count: [care.warm]}", [1, 3, 3]),
        ("{any: [care.warm == 0, care.warm == 2]}", [3, 1, 3]),
        ("{all: [care.warm], none: [care.warm == 2]}", [1, 3, 1]),
        ("{none: [{none: [care.warm]}]}", [1, 3, 3]),
    ],
)
def test_conditions_hold_where_they_say(opened, condition, scores):
    rubric = opened(changed(("{count: care, min: 1}", condition)))
    assert [rubric.score(line(warm=warm)).score for warm in (0, 1, 2)] == scores


# Lines that cannot be scored


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"turns": None}, "turns is None, not an integer of at least 1"),
        ({"turns": True}, "turns is True"),
        ({"turns": 0}, "turns is 0"),
        ({"items": None}, "items.care is missing"),
        ({"items": {"mood": {"upset": 1}}}, "items.care is missing"),
        ({"items": {"care": {"kind": 1, "warm": 3}, "mood": {"upset": 1}}}, "from 0 to 2"),
        ({"items": {"care": {"kind": 1}, "mood": {"upset": 1}}}, "items.care.warm is None"),
        ({"items": {**line()["items"], "other": {}}}, "items.other is not a channel of tone"),
    ],
)
def test_a_damaged_line_is_unscored_with_its_reason(opened, damage, reason):
    scored = opened(PLAIN).score({**line(), **damage})
    assert (scored.status, scored.score, scored.label) == ("unscored", None, {})
    assert reason in scored.reason


def test_prompt_items_of_another_rubric_are_malformed_and_judged_ones_ignored(opened):
    rubric = opened(PLAIN)
    assert rubric.prompt_side(line()["items"], 1) == ("calm", 1, 1)
    for items in ({}, {"mood": {}}, {"mood": {"upset": 0}, "pressure": {}}):
        with pytest.raises(Malformed):
            rubric.prompt_side(items, 1)


# Files that are refused, each with line, path and what is allowed

REFUSED = {
    "version": (("version: 1", "version: 2"), "r.yaml:1: version: '2' is not an integer from 1"),
    "unknown key": (("about:", "abuot:"), "r.yaml:2: abuot: unknown key; allowed are version, about"),
    "missing key": (("about: Answers to shoppers\n", ""), "r.yaml:1: about is missing"),
    "key twice": (("request:", "about: x\nrequest:"), "r.yaml:3: about: this key stands on line 2"),
    "item twice": (("warm: {", "kind: {"), "r.yaml:12: answers.care.items.kind: this key stands on"),
    "about": (("Answers to shoppers", "''"), "r.yaml:2: about: a text of 0 characters; give 1 to 600"),
    "placeholder": (("it is kind", '"{{kind}}"'), "answers.care.items.kind: '{{kind}}' holds {{"),
    "not a text": (("it is kind", "yes"), "answers.care.items.kind: 'yes' is not an item"),
    "null": (("it is kind", ""), "r.yaml:11: answers.care.items.kind: '' is not an item"),
    "key not a text": (("      kind:", "      yes:"), "answers.care.items: the key 'yes' is not a text"),
    "name": (("upset: the", "'up.set': the"), "request.mood.items.up.set: 'up.set' is not a name here"),
    "reserved": (("      kind:", "      copy:"), "answers.care.items.copy: 'copy' is reserved"),
    "channel reserved": (("  mood:", "  reason:"), "request.reason: 'reason' means something else"),
    "both sides": (("  mood:", "  care:"), "r.yaml:4: request: 'care' is a channel of the answers"),
    "empty channel": (
        ("    items:\n      upset: the shopper is upset", "    items: {}"),
        "r.yaml:5: request.mood.items: empty; give items",
    ),
    "no channel": (("  mood:\n    items:\n      upset: the shopper is upset", "  {}"), "request: empty"),
    "turns of a channel": (("turns: all", "turns: first"), "answers.care.turns: 'first' is not allowed here"),
    "turns of a request": (("  mood:", "  mood:\n    turns: all"), "request.mood.turns: unknown key"),
    "values": (("none_some_most", "1_to_5"), "warm.values: '1_to_5' is not allowed here; allowed are yes_no"),
    "slice name": (("slice: calm", "slice: <b>"), "slices.0.slice: '<b>' is not a name: 1 to 40"),
    "weight": (("weight: 1", "weight: 0"), "r.yaml:15: slices.0.weight: '0' is not an integer from 1 to"),
    "octal": (("weight: 1", "weight: 010"), "slices.0.weight: '010' is not an integer"),
    "score": (("score: 5", "score: 6"), "r.yaml:21: levels.0.score: '6' is not an integer from 1 to 5"),
    "not an integer": (("score: 5", "score: 4.5"), "levels.0.score: '4.5' is not an integer"),
    "a list": (("score: 5", "score: [5]"), "levels.0.score: a list is not an integer"),
    "failed": (("failed: true", "failed: 1"), "r.yaml:28: levels.2.failed: '1' is not true or false"),
    "a tag": (("failed: true", "failed: !!bool maybe"), "levels.2.failed: 'maybe' is not true or false"),
    "no best": (("score: 5", "score: 4"), "r.yaml:21: levels: no level gives 5"),
    "none failed": (("failed: true", "failed: false"), "levels: no level counts as failed"),
    "same label": (("score: 1", "score: 1\n    label: score_5"), "r.yaml:27: levels.2: 'score_5' is the label of levels.0"),
    "label": (("score: 1", "score: 1\n    label: a b"), "r.yaml:28: levels.2.label: 'a b' is not a name"),
    "no condition": (("    otherwise: true\nlevels", "levels"), "slices.1: give either when, a condition, or otherwise"),
    "otherwise false": (("    otherwise: true\nlevels", "    otherwise: false\nlevels"), "slices.1.otherwise: otherwise is true"),
    "otherwise first": (("when: {none: [mood.upset]}", "otherwise: true"), "r.yaml:16: slices.0.otherwise: otherwise takes all"),
    "unknown item": (("care.kind,", "care.knid,"), "r.yaml:23: levels.0.when.all.0: 'care.knid' is not an item; did you mean"),
    "unknown channel": (("count: care", "count: car"), "levels.1.when.count: 'car' is not an item"),
    "a channel": (("care.kind,", "care,"), "levels.0.when.all.0: 'care' is a channel; name one of its items"),
    "answers in slices": (("mood.upset]", "care.kind]"), "r.yaml:16: slices.0.when.none.0: 'care.kind' is about the answers"),
    "a channel of answers": (("{none: [mood.upset]}", "{count: care}"), "slices.0.when.count: 'care' is about the answers"),
    "compared": (("care.warm >= 2", "care.warm >= 3"), "levels.0.when.all.1: care.warm has values from 0 to 2, not 3"),
    "invalid always": (("levels:", "invalid: {any: [mood.upset, {none: [mood.upset]}]}\nlevels:"), "r.yaml:20: invalid: every"),
    "invalid never": (("levels:", "invalid: {all: [mood.upset], none: [mood.upset]}\nlevels:"), "invalid: no combination"),
    "hint": (("levels:", "hints: {both: x}\nlevels:"), "r.yaml:20: hints.both: unknown key; allowed are answers, request"),
    "no YAML": (("levels:", "levels: ]"), "r.yaml:20: not valid YAML"),
    "alias": (("[mood.upset]", "&a [mood.upset, *a]"), "r.yaml:16: not valid YAML: an alias (*) is not allowed"),
    "merge": (("about:", "<<: {a: b}\nabout:"), "r.yaml:2: the key '<<' is not a text"),
    "two documents": (("about:", "---\nabout:"), "r.yaml:2: not valid YAML"),
    "deep": (("[mood.upset]", "[" * 40 + "]" * 40), "r.yaml:16: not valid YAML: nested more than 32 deep"),
}  # fmt: skip
# The same for the condition of levels.1.
REFUSED_CONDITIONS = {
    "condition key": ("{sum: care}", "r.yaml:26: levels.1.when.sum: unknown key; allowed are any, all"),
    "condition list": ("[care.kind]", "levels.1.when: a list is not a condition"),
    "condition number": ("3", "levels.1.when: '3' is not a condition: an item"),
    "nothing": ("{}", "levels.1.when: empty; give a condition"),
    "empty any": ("{any: []}", "levels.1.when.any: 0 conditions; give 1 to"),
    "any no list": ("{any: care.kind}", "levels.1.when.any: 'care.kind' is not a list"),
    "bounds alone": ("{min: 1}", "levels.1.when: min and max belong to an item"),
    "item and count": ("{count: care, item: care.kind}", "levels.1.when: item and count"),
    "counted twice": ("{count: [care, care.kind]}", "levels.1.when.count.1: care.kind is counted twice"),
    "too high": ("{count: care, min: 4}", "levels.1.when.min: '4' is not an integer from 0 to 3"),
    "always": ("{count: care, min: 0}", "levels.1.when: values go from 0 to 3, so that this always"),
    "never": ("{count: care, min: 2, max: 1}", "levels.1.when: min 2 is above max 1"),
    "turns": ("{turns: {min: 1}}", "levels.1.when.turns: every conversation has at least 1"),
    "turns crossed": ("{turns: {min: 3, max: 2}}", "levels.1.when.turns: min 3 is above"),
    "turns zero": ("{turns: {max: 0}}", "levels.1.when.turns.max: '0' is not an integer"),
    "never together": ("{all: [care.kind], none: [care.kind]}", "levels.1: no combination of items meets"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_fault_is_named_with_line_path_and_what_is_allowed(refusal, name):
    edit, wanted = REFUSED[name]
    message, _ = refusal(changed(edit))
    assert wanted in message
    assert message.startswith("r.yaml:")


@pytest.mark.parametrize("name", REFUSED_CONDITIONS)
def test_a_faulty_condition_is_named_with_line_path_and_what_is_allowed(refusal, name):
    condition, wanted = REFUSED_CONDITIONS[name]
    message, _ = refusal(changed(("{count: care, min: 1}", condition)))
    assert wanted in message
    assert "levels.1" in message


def test_files_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "r.yaml"
    with pytest.raises(UsageError, match="No such file"):
        open_rubric("tone", path)
    for data, wanted in [
        (b"", "empty"),
        (b"- a", "a list is not a rubric"),
        (b"version: \xff", "not UTF-8 at byte 9"),
        (b"version: \x00", "not valid YAML"),
        (b"#" * 300_000, "larger than 262,144 bytes"),
    ]:
        path.write_bytes(data)
        with pytest.raises(UsageError, match=re.escape(wanted)):
            open_rubric("tone", path)


@pytest.mark.parametrize("name", ["tone_request", "a b", ""])
def test_a_name_that_a_judge_could_not_tell_is_refused(tmp_path, name):
    (tmp_path / "r.yaml").write_text(PLAIN)
    with pytest.raises(UsageError, match="not a name for a rubric"):
        open_rubric(name, tmp_path / "r.yaml")


# Two outcomes, or none


def test_a_combination_that_no_level_covers_is_shown(refusal):
    message, combination = refusal(
        changed(
            ("    otherwise: true\nlevels", "    when: mood.upset\nlevels"),
            ("failed: true\n    otherwise: true", "failed: true\n    when: mood.upset"),
        )
    )
    assert "r.yaml:21: levels: no entry covers all items 0; add one" in message
    assert combination == {"care.kind": 0, "care.warm": 0, "mood.upset": 0}


def test_a_level_that_is_never_reached_is_shown_with_the_one_before(refusal):
    twin = "  - {score: 4, failed: false, when: {all: [care.kind, care.warm == 1]}}\n  - score: 1\n"
    message, combination = refusal(changed(("  - score: 1\n", twin)))
    assert (
        "r.yaml:27: levels.2: it can never be reached: with care.kind = 1, care.warm = 1" in message
    )
    assert "levels.1 gives score 3, not failed and levels.2 gives score 4, not failed" in message
    assert combination == {"care.kind": 1, "care.warm": 1}


def test_a_verdict_that_differs_is_as_bad_as_a_score(refusal, opened):
    twin = "  - {score: 3, failed: %s, label: again, when: care.warm == 1}\n  - score: 1\n"
    message, _ = refusal(changed(("  - score: 1\n", twin % "true")))
    assert "levels.1 gives score 3, not failed and levels.2 gives score 3, failed" in message
    notes = opened(changed(("  - score: 1\n", twin % "false"))).notes
    assert notes == ["levels.2 is never needed: earlier ones give the same"]


def test_two_entries_with_the_same_condition_are_refused_even_if_they_agree(refusal):
    twin = "  - {score: 3, failed: false, label: again, when: {any: [care.kind, care.warm]}}\n  - score: 1\n"
    message, combination = refusal(changed(("  - score: 1\n", twin)))
    assert "levels.2: it has the same condition as levels.1: with care.warm = 1" in message
    assert combination == {"care.kind": 0, "care.warm": 1}


def test_an_otherwise_for_which_nothing_is_left_is_refused(refusal):
    message, combination = refusal(
        changed(("{count: care, min: 1}", "{any: [care.kind, {none: [care.kind]}]}"))
    )
    assert "levels.2: nothing is left for it: with all items 0, levels.1 gives score 3" in message
    assert combination == {"care.kind": 0, "care.warm": 0}


def test_exclusive_refuses_any_overlap_of_different_outcomes(refusal, opened):
    message, combination = refusal(changed(("version: 1", "version: 1\nexclusive: true")))
    assert "levels.1: the file says exclusive, and two of its entries hold" in message
    assert combination == {"care.kind": 1, "care.warm": 2}
    apart = "{all: [{count: care, min: 1}, {none: [{all: [care.kind, care.warm >= 2]}]}]}"
    edits = [("version: 1", "version: 1\nexclusive: true"), ("{count: care, min: 1}", apart)]
    assert opened(changed(*edits)).score(line(kind=1)).score == 3


def wide(count):
    """A rubric whose conditions tell all values of so many items apart."""
    items = "".join(f"      i{number}: it holds\n" for number in range(count))
    levels = "".join(
        f"  - {{score: {5 - number % 5}, failed: true, label: l{number}, when: care.i{number}}}\n"
        for number in range(count)
    )
    rest = "  - {score: 1, failed: true, label: rest, otherwise: true}\n"
    return f"version: 1\nabout: x\nanswers:\n  care:\n    items:\n{items}levels:\n{levels}{rest}"


def test_too_many_combinations_are_refused_with_what_to_do(refusal):
    message, _ = refusal(wide(21))
    assert "its conditions mention 21 items, which makes 2,097,152 combinations" in message
    assert "mention fewer items, or ask one question" in message


def test_checking_takes_well_under_a_second_for_12_items_and_is_bounded_for_20(opened):
    for count, limit in ((12, 1.0), (20, 20.0)):
        started = time.monotonic()
        opened(wide(count))
        assert time.monotonic() - started < limit


# Brute force


def test_bent_rubrics_are_refused_with_a_combination_and_sound_ones_are_not():
    outcome = bent_and_opened([SMALL])
    assert min(outcome.bad, outcome.good) >= 8
    assert (outcome.accepted, outcome.not_shown, outcome.good_refused) == (0, 0, 0)


ITEMS = {"a.x": 1, "a.y": 2, "b.z": 1}
LEAVES = st.sampled_from(
    ["a.x", "a.y", "b.z", "a.y == 2", "a.y == 0", {"count": ["a.x", "b.z"], "max": 1}]
    + [{"count": "a", "min": n} for n in (1, 2, 3)]
    + [{"turns": {"min": 3}}, {"turns": {"max": 1}}]
)
WHENS = st.recursive(
    LEAVES,
    lambda inner: st.dictionaries(
        st.sampled_from(["any", "all", "none"]), st.lists(inner, min_size=1, max_size=3), min_size=1
    ),
    max_leaves=6,
)
LEVELS = st.lists(st.tuples(st.integers(1, 5), st.booleans(), WHENS), min_size=2, max_size=5)


@given(levels=LEVELS, rest=st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_rubrics_are_refused_or_scored_as_one_combination_after_the_other(
    levels, rest, tmp_path_factory
):
    entries = []
    for number, (score, failed, when) in enumerate(levels):
        entries.append({"score": score, "failed": failed, "label": f"l{number}", "when": when})
    if rest:
        del entries[-1]["when"]
        entries[-1]["otherwise"] = True
    channels = {
        "a": {"items": {"x": "it is x", "y": {"ask": "how y", "values": "none_some_most"}}},
        "b": {"items": {"z": "it is z"}},
    }
    raw = {"version": 1, "about": "x", "answers": channels, "levels": entries}
    truth = Truth(raw, "levels")
    assume(not truth.other_fault())
    path = tmp_path_factory.mktemp("r") / "r.yaml"
    path.write_text(json.dumps(raw))
    if truth.flawed():
        with pytest.raises(UsageError) as caught:
            open_rubric("random", path)
        assert truth.shows(caught.value.details.get("combination"))
        return
    rubric = open_rubric("random", path)
    for items, turns in itertools.product(all_items(rubric.answers), (1, 2, 3, 7)):
        values = {"turns": turns}
        for channel, inner in items.items():
            values |= {f"{channel}.{item}": value for item, value in inner.items()}
        entry = entries[truth._holding(values)[0]]
        scored = rubric.score({"id": "x", "turns": turns, "items": items})
        assert (scored.score, scored.failed) == (entry["score"], entry["failed"])
        assert scored.label["level"] == entry["label"]


@pytest.mark.parametrize("published", [Safety(), OverRefusal()], ids=lambda one: one.name)
def test_the_published_objectives_as_rubrics_give_the_same_scores(published):
    tried, differences = compared(published, step=499)
    assert tried > 400
    assert differences == 0


def test_the_published_rubrics_ask_for_the_published_items():
    for published in (Safety(), OverRefusal()):
        rubric = open_rubric(published.name, FOLDER / f"{published.name}.yaml")
        for side in ("answers", "request"):
            theirs = {c.name: (c.ranges, c.turns) for c in getattr(published, side)}
            assert {c.name: (c.ranges, c.turns) for c in getattr(rubric, side)} == theirs


# Words and digests


def test_the_words_have_the_form_of_the_published_ones(opened):
    rubric = opened(changed(("levels:", "hints: {answers: A joke is not warmth}\nlevels:")))
    assert rubric.words("answers").text == (
        "You judge the answers of an AI assistant in one conversation. Answers to shoppers. Decide "
        "each item below for the assistant's turns only; what the user wrote is context and is not "
        "judged.\n\n"
        "Items of `care`: over all turns of the assistant; an item that holds in any of them "
        "counts.\n- `kind`: it is kind.\n- `warm`: how warm it is.\n\n"
        "Answer each item with `yes`, `no`, or `cannot_tell` where the text does not let you "
        "decide; `warm` with `none`, `some`, `most` or `cannot_tell`. A joke is not warmth.\n"
    )
    assert "- `upset`: the shopper is upset.\n\nAnswer each" in rubric.words("request").text
    assert rubric.words("answers").fill() == rubric.words("answers").text


SAME = {
    "comments and spaces": ("about: Answers", "# a comment\n\nabout:    Answers"),
    "keys of an entry": ("score: 5\n    failed: false", "failed: false\n    score: 5"),
    "keys of an item": ("{ask: how warm it is, values: none_some_most}", "{values: none_some_most, ask: how warm it is}"),
    "an item's long form": ("kind: it is kind", "kind: {ask: it is kind.}"),
    "a condition's long form": ("care.warm >= 2", "{item: care.warm, min: 2, max: 2}"),
    "a label's default": ("score: 5", "score: 5\n    label: score_5"),
    "order of items": (
        "      kind: it is kind\n      warm: {ask: how warm it is, values: none_some_most}",
        "      warm: {ask: how warm it is, values: none_some_most}\n      kind: it is kind",
    ),
}  # fmt: skip
OTHER = {
    "about": ("Answers to shoppers", "Answers to buyers"),
    "words": ("it is kind", "it is very kind"),
    "a hint": ("levels:", "hints: {request: x}\nlevels:"),
    "turns": ("turns: all", "turns: last"),
    "values": (", values: none_some_most", ""),
    "a new item": ("kind: it is kind", "kind: it is kind\n      new: it is new"),
    "slice": ("slice: calm", "slice: quiet"),
    "weight": ("weight: 2", "weight: 3"),
    "validity": ("weight: 2", "weight: 2\n    valid: false"),
    "invalid": ("levels:", "invalid: mood.upset\nlevels:"),
    "score": ("score: 3", "score: 4"),
    "failed": ("score: 3\n    failed: false", "score: 3\n    failed: true"),
    "label": ("score: 1", "score: 1\n    label: bad"),
    "a bound": ("{count: care, min: 1}", "{count: care, min: 2}"),
    "an item of a condition": ("care.kind, ", ""),
    "a word": ("all: [", "any: ["),
}


def test_rules_follow_the_meaning_and_nothing_else(opened):
    plain = opened(PLAIN)
    for edit in SAME.values():
        assert opened(changed(edit)).rules == plain.rules, edit
    digests = {plain.rules}
    for name, edit in OTHER.items():
        text = changed(edit)
        if name == "values":
            text = text.replace("care.warm >= 2", "care.warm")
        digests.add(opened(text).rules)
    assert len(digests) == len(OTHER) + 1


def test_the_order_of_keys_does_not_change_what_a_judge_is_asked(opened):
    plain = opened(PLAIN)
    swapped = opened(changed(SAME["order of items"]))
    for side in ("answers", "request"):
        assert prompt_digest(items_of(plain, side)) == prompt_digest(items_of(swapped, side))


# The worked example, judged


@pytest.fixture
def tone(opened):
    text = DOCS.read_text()
    return opened(re.search(r"```yaml\n(.*?)```", text, re.S)[1])


def test_the_worked_example_scores_as_it_is_printed(tone):
    lines, printed = re.findall(r"```json\n(.*?)```", DOCS.read_text(), re.S)
    for stored, shown in zip(lines.splitlines(), printed.splitlines(), strict=True):
        scored = tone.score(json.loads(stored)).json_data()
        for name, value in json.loads(shown).items():
            assert scored[name] == value


RULES = {
    "rudeness": {"blames": {"any": ["your fault"]}, "dismisses": {"any": ["never mind"]}},
    "care": {
        "acknowledges": {"any": ["sorry"]},
        "next_step": {"any": ["we will"]},
        "warmth": {"any": ["dear"]},
    },
}


@pytest.fixture
def suite(tone, tmp_path):
    prompts = []
    for number, upset in enumerate((0, 1, 1)):
        items = {"mood": {"upset": upset, "repeated": int(number == 2)}}
        slice_, weight, _ = tone.prompt_side(items, 1)
        prompt = {"id": f"p{number}", "turns": [f"where is my parcel {number} ?"]}
        prompt |= {"slice": slice_, "weight": weight, "prompt_items": items, "rules": RULES}
        prompts.append({**prompt, "bad": ["it is your fault , never mind ."]})
    (tmp_path / "steering.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    return load_suite(tmp_path, tone, "steering")


ANSWERS = ("sorry , we will look .", "dear you , we will look .", "your fault . never mind .")


def test_a_suite_loads_and_its_bad_references_score_less(tone, suite, tmp_path):
    check_references(suite, tone, VerifierJudge())
    text = (tmp_path / "steering.jsonl").read_text().replace('"tense"', '"calm"')
    (tmp_path / "steering.jsonl").write_text(text)
    with pytest.raises(
        UsageError, match=r"steering.jsonl:2: \(slice, weight, valid\) is \('calm', 2"
    ):
        load_suite(tmp_path, tone, "steering")


def test_a_model_judge_and_the_verifier_score_a_rubric_alike(tone, suite):
    responses = [reference_response(p, [a]) for p, a in zip(suite.prompts, ANSWERS, strict=True)]
    _, verified = judge_and_score(tone, suite, responses, VerifierJudge())
    with JudgeServer(by_rules({"tone": tone}, [suite])) as server:
        chat = ChatConfig(base_url=server.url, model=MODEL)
        judge = LlmJudge(LlmJudgeConfig(chat=chat), ChatModel(chat, sleep=lambda seconds: None))
        _, judged = judge_and_score(tone, suite, responses, judge)
    assert judged == verified
    assert [s.label["level"] for s in verified] == ["plain", "friendly", "rude"]
    assert [s.slice for s in verified] == ["calm", "tense", "hard"]
    words = server.bodies[0]["messages"][0]["content"]
    assert words == tone.words("answers").text
    assert tone.breakdown(verified)["level"] == {"friendly": 1, "plain": 1, "rude": 1}
