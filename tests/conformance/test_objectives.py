"""What every objective promises: its items, what they score to, and what its rules depend on."""

import copy
import hashlib
import itertools
import string
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.judges.items import items_of, prompt_digest, reply_model
from eval.judges.verifier import VerifierJudge
from eval.objectives import rubrics
from eval.objectives.base import Unchecked, by_code, labels_of, need, unscored
from eval.objectives.config import PythonConfig, ReferenceConfig
from eval.objectives.custom import open_python
from eval.objectives.reference import ReferenceObjective
from eval.objectives.retention import RetentionObjective
from eval.objectives.rubric import open_rubric
from eval.references import Reference
from eval.suite import reference_response
from mosaic.app.objectives import OBJECTIVES
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Prompt

HERE = Path(__file__).parent
FOLDER = Path(rubrics.__file__).parent
RUBRIC = "_rubric"
RUBRICS = {
    f"safety{RUBRIC}": lambda: open_rubric("safety_rubric", FOLDER / "safety.yaml"),
    f"over_refusal{RUBRIC}": lambda: open_rubric(
        "over_refusal_rubric", FOLDER / "over_refusal.yaml"
    ),
}
BRIEF = PythonConfig.model_validate({"class": "brief_answers:BriefAnswers"})


def reference(name, **settings):
    return partial(ReferenceObjective, name, ReferenceConfig(**settings))


def with_answer(answer, good, bad, **fields):
    """The good and the bad reference of one prompt with a known answer."""
    labels = {"slice": "all", "weight": 1, **fields}
    prompt = Prompt(id="p", turns=["?"], answer=answer, good=[good], bad=[bad], **labels)
    return [Reference(prompt, "good"), Reference(prompt, "bad")]


# name -> (how one is made, prompts with known answers)
OTHERS = {
    "exact": (reference("exact", match="exact"), with_answer("oak", " oak ", "elm")),
    "numbers": (
        reference("numbers", match="number", tolerance={"absolute": 0.5}, parts=True),
        with_answer([1, 2.5], "Answer: 1.5 and 2", "Answer: 1, 9"),
    ),
    "choice": (
        reference("choice", match="choice", slice_from="level"),
        with_answer("B", "(B)", "A or B", slice="3", attributes={"level": 3}),
    ),
    "regex": (reference("regex", match="regex"), with_answer(r"\d", "It is 3.", "It is three.")),
    "schema": (
        reference("schema", match="json_schema"),
        with_answer({"type": "array"}, "```json\n[1]\n```", "{}"),
    ),
    "forget": (partial(RetentionObjective, "forget"), []),
    "brief": (
        partial(open_python, "brief", BRIEF, HERE),
        with_answer(None, "so it is", "so it is then ,  I think"),
    ),
}
TESTED = {**OBJECTIVES, **RUBRICS, **{name: make for name, (make, _) in OTHERS.items()}}
MEASURED = [name for name, make in TESTED.items() if make().evidence == "likelihood"]
UNJUDGED = [name for name, make in TESTED.items() if by_code(make())]
CODED = [name for name in UNJUDGED if name not in MEASURED]
JUDGED = [name for name in TESTED if name not in UNJUDGED]
SIDES = ("answers", "request")

# Judgments and kept verdicts are found again by these digests. A new one means that everything is
# judged again: raise the objective's VERSION if its scores changed, then write the new digest here.
RULES = {
    "safety": "cdeba17ebdc4131887a3bdb8ec10b6c8468fbd97207ab7800dd101a20f9215b3",
    "over_refusal": "93268c12057299078b448c8132e486464869df10e14b2e1bed084881fb177f15",
    "instruction_following": "5d750cfca5720c8b14068c27592213b5286019f2fd2bf28e089d1c565a962867",
    "safety_rubric": "c285ba874724b45e7ec041ab754fe9b8dee2588f343e881caaf18cc6370e35e4",
    "over_refusal_rubric": "24dae81c3070325a2afae239f85f9b9c7f15ae5193ec58f93aa6d18cdbcf70a8",
    "exact": "0bb3fc77aacec0ed12282ffe5c591638ebbba150c57ca907e7357177351a689a",
    "numbers": "c0b8e88604ef84c318332f4957c9b5bd9917e2d8cf6cacba32ec41d74f4ba4bb",
    "choice": "aa12d6d22e46cd8c9b6059d7881da921873301eef677a1db73f7545dee6e9052",
    "regex": "7d1c513056a9393fc92ddd6eed6b7876b0f04ee348023ddc8c854e8c8a643868",
    "schema": "c977c4bcb9a73731bb5756f93c38eb73a1abefbc423009ed9cc184b6363e47d7",
    "forget": "0214050e13b4ff912bcd3afece7229d0abbfec5a4e31a1573ff4fe1ab545b0fc",
}
# The rules of a person's own objective are its code.
RULES["brief"] = digest_of(
    ["python", hashlib.sha256((HERE / "brief_answers.py").read_bytes()).hexdigest(), None]
)
QUESTIONS = {
    "safety": "8fad765a18cea9bfcbc6ff204cf86d7c73c5be0b570cde864a314ce87efa3223",
    "safety_request": "5ad1e90e1d4b526bfee7f14482c1d5ef8b82f55a10d5bd49a10413c54c0eaf5b",
    "over_refusal": "77e9a629fdeb36c00247f986ede85ddd8460c4b9840c96166d65ded395218642",
    "over_refusal_request": "91d23d8cb7ce11d8fb24745dd03b65ccbdc1baa5d4148c89461c332fa2aaceeb",
    "safety_rubric": "09a58e8eb1777aad7e8abec5bf81e3f7c93841b0c63954f98c066e45cb3ff7fa",
    "safety_rubric_request": "5694b4dd3866f2b4e035239e8c9bac46414340b9ee9069b0d2ed8bc9ed28af44",
    "over_refusal_rubric": "5a975c15c03971113f1e2fe547792792165ce0b5392c206b62280e1e0bc703d0",
    "over_refusal_rubric_request": "eb05df8a55c7ea95aab5d755de9369b504bb3f5a705c4c6f5138a9f72733c4d8",
}


@pytest.fixture(scope="session")
def known(known):
    """Those of the laboratory; a rubric has those of the objective that it writes as data."""
    by_rubrics = {name: known[name.removesuffix(RUBRIC)] for name in RUBRICS}
    return known | by_rubrics | {name: references for name, (_, references) in OTHERS.items()}


def channels(objective, side):
    return objective.answers if side == "answers" else objective.request


def every_side(objective):
    """The item sets that a model is asked about; none if code checks the answers."""
    return [items_of(objective, side) for side in SIDES if channels(objective, side)]


def asked(objective, turns, request):
    """A prompt with these prompt-side items, labelled as the objective's own rules say."""
    slice_, weight, valid = objective.prompt_side(request, turns, [])
    return Prompt(
        id="p",
        turns=["hello ?"] * turns,
        slice=slice_,
        weight=weight,
        valid=valid,
        prompt_items=request,
    )


def zeros(some):
    return {channel.name: dict.fromkeys(channel.ranges, 0) for channel in some}


def quiet_line(objective):
    """A stored line of a judged objective with no item that holds."""
    prompt = asked(objective, 1, zeros(objective.request))
    return {"id": "p", **objective.stored(prompt, zeros(objective.answers))}


# Stored lines


def values_of(some):
    """Every item of some channels, each in its range."""
    fields = {}
    for channel in some:
        values = {item: st.integers(0, most) for item, most in channel.ranges.items()}
        fields[channel.name] = st.fixed_dictionaries(values)
    return st.fixed_dictionaries(fields)


@st.composite
def stored_lines(draw, objective, known):
    """(a prompt, the stored line of an answer to it): drawn items, or what code found."""
    if objective.evidence == "likelihood":
        prompt = asked(objective, 1, {})
        value = st.floats(-20, 0)
        line = {"slice": prompt.slice, "tokens": draw(st.integers(1, 99))}
        return prompt, {"id": "p", "log_likelihood": draw(value), "base": draw(value), **line}
    if by_code(objective):
        reference = draw(st.sampled_from(known))
        prompt = reference.prompt
        return prompt, {"id": prompt.id, **objective.check(prompt, reference.response)}
    prompt = asked(objective, draw(st.integers(1, 9)), draw(values_of(objective.request)))
    return prompt, {"id": "p", **objective.stored(prompt, draw(values_of(objective.answers)))}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def places(value, container=None, key=None):
    """(container, key) of everything inside a stored line, except its id."""
    if container is not None:
        yield container, key
    if isinstance(value, dict):
        for name, inner in value.items():
            if name != "id":
                yield from places(inner, value, name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from places(inner, value, number)


@st.composite
def damaged(draw, line):
    """The line with one thing in it missing, replaced, or added."""
    line = copy.deepcopy(line)
    container, key = draw(st.sampled_from(list(places(line))))
    damage = draw(st.sampled_from(["missing", "replaced", "added"]))
    if damage == "missing":
        del container[key]
    elif damage == "replaced" or isinstance(container, list):
        container[key] = draw(JUNK)
    else:
        name = draw(st.text(string.ascii_letters, min_size=1, max_size=4))
        container["x" if name == "id" else name] = draw(JUNK)
    return line


def assert_unscored(scored, *named):
    assert (scored.status, scored.score, scored.need, scored.failed) == ("unscored",) + (None,) * 3
    assert scored.label == {}
    for text in named:
        assert text in scored.reason


# Items


@pytest.mark.parametrize("name", TESTED)
def test_an_objective_is_wired_under_its_own_name(name):
    objective = TESTED[name]()
    assert objective.name == name
    assert objective.evidence in ("answers", "likelihood")


@pytest.mark.parametrize("name", TESTED)
def test_no_two_channels_share_a_name_and_no_two_items_of_one(name):
    objective = TESTED[name]()
    some = [*objective.answers, *objective.request]
    assert len({channel.name for channel in some}) == len(some)
    for channel in some:
        assert len(channel.ranges) == len(channel.items) > 0


@pytest.mark.parametrize("name", TESTED)
def test_a_judge_is_asked_for_exactly_the_items_of_each_side(name):
    for items in every_side(TESTED[name]()):
        schema = reply_model(items).model_json_schema()
        assert schema["title"] == items.name
        assert list(schema["properties"]) == ["reason", *(c.name for c in items.channels)]
        for channel in items.channels:
            reference = schema["properties"][channel.name]["$ref"]
            part = schema["$defs"][reference.rsplit("/", 1)[1]]
            assert part["required"] == list(channel.ranges)
            for item, most in channel.ranges.items():
                said = ["no", "yes"] if most == 1 else ["most", "none", "some"]
                assert sorted(part["properties"][item]["enum"]) == sorted([*said, "cannot_tell"])


@pytest.mark.parametrize("name", TESTED)
def test_the_words_for_a_judge_explain_every_item(name):
    for items in every_side(TESTED[name]()):
        for channel in items.channels:
            for word in (channel.name, *channel.ranges):
                assert word in items.words.text


# Scores


@pytest.mark.parametrize("name", TESTED)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_items_in_their_ranges_score_from_1_to_5_in_the_slice_of_the_prompt(name, known, data):
    objective = TESTED[name]()
    prompt, line = data.draw(stored_lines(objective, known[name]))
    scored = objective.score(line)
    assert (scored.id, scored.status, scored.reason) == (line["id"], "ok", None)
    assert 1 <= scored.score <= 5
    assert isinstance(scored.failed, bool)
    assert (scored.slice, scored.weight, scored.valid) == (
        prompt.slice,
        prompt.weight,
        prompt.valid,
    )
    assert scored.need == need(scored.score, scored.weight, scored.valid)


@pytest.mark.parametrize("name", TESTED)
@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_a_damaged_line_is_scored_or_unscored_and_never_raises(name, known, data):
    objective = TESTED[name]()
    _, line = data.draw(stored_lines(objective, known[name]))
    scored = objective.score(data.draw(damaged(line)))
    assert scored.id == line["id"]
    if scored.status == "ok":
        assert 1 <= scored.score <= 5
    else:
        assert_unscored(scored)
        assert scored.reason


@pytest.mark.parametrize("name", TESTED)
def test_a_prompt_is_labelled_as_its_stored_line_is(name, known):
    objective = TESTED[name]()
    for reference in known[name]:
        prompt = reference.prompt
        assert labels_of(objective, prompt) == (prompt.slice, prompt.weight, prompt.valid)


@pytest.mark.parametrize("name", JUDGED)
def test_the_items_of_answers_span_the_scale(name):
    objective = TESTED[name]()
    line = quiet_line(objective)
    ranges = []
    for channel in objective.answers:
        for item, most in channel.ranges.items():
            ranges.append([(channel.name, item, value) for value in range(most + 1)])
    scores = set()
    for values in itertools.product(*ranges):
        for channel, item, value in values:
            line["items"][channel][item] = value
        scores.add(objective.score(line).score)
    assert min(scores) == 1
    assert max(scores) == 5


@pytest.mark.parametrize("name", CODED)
def test_code_gives_good_answers_5_and_bad_ones_less(name, known):
    objective = TESTED[name]()
    for reference in known[name]:
        line = objective.check(reference.prompt, reference.response)
        score = objective.score({"id": reference.prompt.id, **line}).score
        assert score == 5 if reference.kind == "good" else score < 5


@pytest.mark.parametrize("name", JUDGED)
def test_a_missing_an_extra_and_an_item_out_of_range_are_unscored_and_named(name):
    objective = TESTED[name]()
    good = quiet_line(objective)
    assert objective.score(good).status == "ok"
    for channel in (*objective.answers, *objective.request):
        line = copy.deepcopy(good)
        del line["items"][channel.name]
        assert_unscored(objective.score(line), f"items.{channel.name} is missing")
        line = copy.deepcopy(good)
        line["items"][channel.name]["no_such_item"] = 0
        assert_unscored(objective.score(line), f"items.{channel.name}.no_such_item")
        for item, most in channel.ranges.items():
            line = copy.deepcopy(good)
            del line["items"][channel.name][item]
            assert_unscored(objective.score(line), f"items.{channel.name}.{item}")
            for wrong in (-1, most + 1, True, 0.0, "0", None, [0]):
                line["items"][channel.name][item] = wrong
                assert_unscored(objective.score(line), f"items.{channel.name}.{item}", repr(wrong))


@pytest.mark.parametrize("name", CODED)
def test_what_code_found_is_unscored_if_a_part_is_missing(name, known):
    objective = TESTED[name]()
    reference = known[name][0]
    good = {"id": "p", **objective.check(reference.prompt, reference.response)}
    assert objective.score(good).status == "ok"
    for part in set(good) - {"id"}:
        line = {key: value for key, value in good.items() if key != part}
        assert_unscored(objective.score(line), part)


@pytest.mark.parametrize("name", TESTED)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_breakdown_counts_the_labels_of_scored_items_and_nothing_else(name, known, data):
    objective = TESTED[name]()
    lines = data.draw(st.lists(stored_lines(objective, known[name]), max_size=5))
    scored = [objective.score(line) for _, line in lines]
    breakdown = objective.breakdown(scored)
    assert objective.breakdown([*scored, unscored({"id": "x"}, "lost")]) == breakdown
    for dimension, counts in breakdown.items():
        wanted = Counter()
        for item in scored:
            value = item.label[dimension]
            wanted.update(map(str, value if isinstance(value, list) else [value]))
        assert counts == wanted


# Rules


@pytest.mark.parametrize("name", TESTED)
def test_the_rules_are_the_same_in_every_instance_and_never_change_silently(name):
    first, second = TESTED[name](), TESTED[name]()
    assert first.rules == second.rules == RULES[name]
    for items in every_side(first):
        assert prompt_digest(items) == QUESTIONS[items.name]


def changed(objective, **attributes):
    """An instance of the same objective with some attributes replaced."""
    instance = object.__new__(type("Changed", (type(objective),), attributes))
    instance.__dict__.update(objective.__dict__)
    return instance


def variants(channel):
    """The channel without each of its items in turn, and read from other turns."""
    for number in range(len(channel.items)):
        yield replace(channel, items=channel.items[:number] + channel.items[number + 1 :])
    yield replace(channel, turns="all" if channel.turns == "last" else "last")


@pytest.mark.parametrize("name", JUDGED)
def test_the_rules_depend_on_every_item_and_on_the_words_for_a_judge(name):
    objective = TESTED[name]()
    digests = [objective.rules]
    for side in SIDES:
        some = channels(objective, side)
        for number, channel in enumerate(some):
            for variant in variants(channel):
                mended = (*some[:number], variant, *some[number + 1 :])
                digests.append(changed(objective, **{side: mended}).rules)

        def words(self, wanted, other=side):
            known = objective.words(wanted)
            return replace(known, digest="other words") if wanted == other else known

        digests.append(changed(objective, words=words).rules)
    assert len(set(digests)) == len(digests)


# Who judges


@pytest.mark.parametrize("name", UNJUDGED)
def test_what_code_checks_has_no_words_for_a_model(name):
    objective = TESTED[name]()
    assert objective.request == ()
    for side in SIDES:
        with pytest.raises(ValueError, match="code"):
            items_of(objective, side)


@pytest.mark.parametrize("name", JUDGED)
def test_what_is_judged_is_not_checked_by_code(name, known):
    reference = known[name][0]
    with pytest.raises(Unchecked, match="judged"):
        TESTED[name]().check(reference.prompt, reference.response)


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_measured_has_no_answers_to_check(name):
    prompt = asked(TESTED[name](), 1, {})
    with pytest.raises(Unchecked, match="likelihood"):
        TESTED[name]().check(prompt, reference_response(prompt, ["so it is"]))


# Prompts that no answer could score


@pytest.mark.parametrize("name", TESTED)
def test_prompts_with_known_answers_can_be_scored(name, known):
    objective = TESTED[name]()
    for reference in known[name]:
        assert VerifierJudge().unscorable(objective, reference.prompt) is None


@pytest.mark.parametrize("name", [name for name in CODED if name in OTHERS and name != "brief"])
def test_a_prompt_without_its_known_answer_cannot_be_scored(name, known):
    prompt = known[name][0].prompt.model_copy(update={"answer": None})
    assert "answer is missing" in VerifierJudge().unscorable(TESTED[name](), prompt)


@pytest.mark.parametrize("name", JUDGED)
def test_a_judged_prompt_needs_rules_of_every_channel_under_the_verifier(name, known):
    objective = TESTED[name]()
    prompt = known[name][0].prompt.model_copy(update={"rules": {}})
    assert objective.answers[0].name in VerifierJudge().unscorable(objective, prompt)
