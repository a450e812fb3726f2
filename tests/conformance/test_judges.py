"""What every judge promises: one judgment per prompt, in order, and no exception for a lost one."""

import pytest

from benchmarks.judge_server import MODEL, JudgeServer, by_rules
from eval.chat.client import ChatConfig, ChatModel
from eval.judges.base import LlmJudgeConfig
from eval.judges.llm import LlmJudge
from eval.judges.verifier import VerifierJudge
from eval.objectives.base import by_code
from eval.references import wrong
from mosaic.app.objectives import OBJECTIVES

CODED = [name for name, make in OBJECTIVES.items() if by_code(make())]
JUDGED = [name for name in OBJECTIVES if name not in CODED]
SPOILT = "spoilt"


def model_judge(server, **changes):
    chat = ChatConfig(base_url=server.url, model=MODEL)
    config = LlmJudgeConfig(chat=chat, revision="1", **changes)
    return LlmJudge(config, ChatModel(chat, sleep=lambda seconds: None))


@pytest.fixture(scope="module")
def decide(lab):
    """What a model says that judges by the rules of the laboratory's suites."""
    objectives, suites = lab
    return by_rules(objectives, (s for roles in suites.values() for s in roles.values()))


@pytest.fixture(params=["verifier", "llm"])
def new_judge(request, decide):
    """Makes judges of one kind that all judge by the rules of the laboratory's suites."""
    if request.param == "verifier":
        yield VerifierJudge
        return
    with JudgeServer(decide) as server:
        yield lambda: model_judge(server)


def conversations(references):
    return [r.prompt for r in references], [r.response for r in references]


def spoilt(reference):
    """The answers with a word that a fault of the server can be told by."""
    answers = [f"{answer} {SPOILT}" for answer in reference.response.answers]
    return reference.response.model_copy(update={"answers": answers})


def assert_lost(judgment, prompt, status="failed"):
    """A judgment that could not be made: data that says why."""
    assert (judgment.id, judgment.status, judgment.items) == (prompt.id, status, {})
    assert judgment.reason


# Every judge on every objective


@pytest.mark.parametrize("name", OBJECTIVES)
def test_there_is_one_judgment_per_prompt_in_their_order(new_judge, name, known):
    objective, judge = OBJECTIVES[name](), new_judge()
    prompts, responses = conversations(known[name])
    judgments = judge.judge(objective, prompts, responses)
    assert [j.id for j in judgments] == [p.id for p in prompts]
    assert {j.status for j in judgments} == {"ok"}
    by = objective.rules if by_code(objective) else judge.digest
    assert {j.judge for j in judgments} == {by}
    backwards = judge.judge(objective, prompts[::-1], responses[::-1])
    assert backwards == judgments[::-1]
    assert judge.judge(objective, [], []) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_known_answers_come_out_right(new_judge, name, known):
    assert wrong(new_judge(), OBJECTIVES[name](), known[name]) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_same_question_has_the_same_answer_whoever_asks_it_again(new_judge, name, known):
    objective = OBJECTIVES[name]()
    prompts, responses = conversations(known[name])
    first, second = new_judge(), new_judge()
    assert first.digest == second.digest
    once = first.judge(objective, prompts, responses)
    assert second.judge(objective, prompts, responses) == once
    # Alone, twice in one call, and under another id.
    prompt, response = prompts[0], responses[0]
    renamed = prompt.model_copy(update={"id": "x"}), response.model_copy(update={"id": "x"})
    again = first.judge(objective, [prompt, prompt, renamed[0]], [response, response, renamed[1]])
    assert again[:2] == [once[0]] * 2
    assert again[2] == once[0].model_copy(update={"id": "x"})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_answer_to_another_prompt_is_a_mistake_of_the_caller(new_judge, name, known):
    objective, judge = OBJECTIVES[name](), new_judge()
    (prompt, other), responses = conversations(known[name][1:3])
    assert prompt.id != other.id
    with pytest.raises(ValueError, match=f"response {other.id} does not answer prompt {prompt.id}"):
        judge.judge(objective, [prompt, other], responses[::-1])
    with pytest.raises(ValueError, match="zip"):
        judge.judge(objective, [prompt, other], responses[:1])


# Judgments that cannot be made


@pytest.mark.parametrize("name", CODED)
def test_what_code_cannot_check_is_a_lost_item_under_every_judge(new_judge, name, known):
    prompts, responses = conversations(known[name][:3])
    unknown = [{"id": "no_such:checker", "params": {}}]
    prompts[1] = prompts[1].model_copy(update={"constraints": unknown})
    first, lost, last = new_judge().judge(OBJECTIVES[name](), prompts, responses)
    assert (first.status, last.status) == ("ok", "ok")
    assert_lost(lost, prompts[1])
    assert "no_such:checker" in lost.reason


@pytest.mark.parametrize("name", JUDGED)
def test_a_prompt_without_rules_is_a_lost_item_for_the_verifier(name, known):
    objective = OBJECTIVES[name]()
    for channel in objective.answers:
        prompts, responses = conversations(known[name][:3])
        rules = {c: items for c, items in prompts[1].rules.items() if c != channel.name}
        prompts[1] = prompts[1].model_copy(update={"rules": rules})
        first, lost, last = VerifierJudge().judge(objective, prompts, responses)
        assert (first.status, last.status) == ("ok", "ok")
        assert_lost(lost, prompts[1])
        assert channel.name in lost.reason


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("garbage", "failed"),
        ("truncated", "failed"),
        ("invalid", "failed"),
        ("400", "failed"),
        ("500", "failed"),
        ("refused", "abstained"),
    ],
)
def test_a_reply_that_is_not_a_verdict_is_a_lost_item(name, fault, status, known, decide):
    def fault_of(call):
        messages = server.bodies[call - 1]["messages"]
        return fault if any(SPOILT in str(m["content"]) for m in messages) else None

    prompts, responses = conversations(known[name][:3])
    responses[1] = spoilt(known[name][1])
    with JudgeServer(decide, fault_of) as server:
        first, lost, last = model_judge(server).judge(OBJECTIVES[name](), prompts, responses)
    assert (first.status, last.status) == ("ok", "ok")
    assert_lost(lost, prompts[1], status)


@pytest.mark.parametrize("name", JUDGED)
def test_what_a_model_cannot_tell_is_a_lost_item_and_named(name, known, decide):
    objective = OBJECTIVES[name]()
    channel = objective.answers[-1]
    item = channel.items[-1].name

    def unsure(asked, turns):
        verdict = decide(asked, turns)
        if SPOILT in turns[-1][1]:
            verdict[channel.name][item] = "cannot_tell"
        return verdict

    prompts, responses = conversations(known[name][:2])
    responses[1] = spoilt(known[name][1])
    with JudgeServer(unsure) as server:
        first, lost = model_judge(server).judge(objective, prompts, responses)
    assert first.status == "ok"
    assert_lost(lost, prompts[1], "abstained")
    assert f"{channel.name}.{item}" in lost.reason


# Judges beside each other


@pytest.mark.parametrize("name", JUDGED)
def test_a_model_that_obeys_the_rules_finds_what_the_verifier_finds(name, known, decide):
    objective = OBJECTIVES[name]()
    prompts, responses = conversations(known[name])
    with JudgeServer(decide) as server:
        judged = model_judge(server).judge(objective, prompts, responses)
        assert server.calls == len(prompts)
    verified = VerifierJudge().judge(objective, prompts, responses)
    assert [j.items for j in judged] == [v.items for v in verified]


@pytest.mark.parametrize("name", CODED)
def test_no_model_is_asked_about_what_code_checks(name, known):
    def never(asked, turns):
        raise AssertionError(f"a model was asked about {asked}")

    prompts, responses = conversations(known[name])
    with JudgeServer(never) as server:
        judged = model_judge(server).judge(OBJECTIVES[name](), prompts, responses)
        assert server.calls == 0
    assert judged == VerifierJudge().judge(OBJECTIVES[name](), prompts, responses)


# What could never be judged


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prompts_that_can_be_scored_are_told_without_asking_a_model(name, known):
    def never(asked, turns):
        raise AssertionError(f"a model was asked about {asked}")

    with JudgeServer(never) as server:
        for judge in (VerifierJudge(), model_judge(server)):
            for reference in known[name]:
                assert judge.unscorable(OBJECTIVES[name](), reference.prompt) is None
        assert server.calls == 0


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize(
    ("constraints", "reason"),
    [
        ([], "no constraint to verify"),
        ([{"id": "no_such:checker", "params": {}}], "no_such:checker"),
        ([{"id": "keywords:existence", "params": {}}], "parameter 'keywords' is missing"),
        ([{"id": "keywords:existence", "params": {"keywords": ["$5"]}}], "does not read '$5'"),
    ],
)
def test_what_code_could_never_check_is_known_to_every_judge(
    new_judge, name, constraints, reason, known
):
    prompt = known[name][0].prompt.model_copy(update={"constraints": constraints})
    assert reason in new_judge().unscorable(OBJECTIVES[name](), prompt)


@pytest.mark.parametrize("name", JUDGED)
def test_the_verifier_knows_which_rules_are_missing(name, known):
    objective, prompt = OBJECTIVES[name](), known[name][0].prompt
    for channel in objective.answers:
        others = {c: items for c, items in prompt.rules.items() if c != channel.name}
        item = channel.items[-1].name
        fewer = {i: rule for i, rule in prompt.rules[channel.name].items() if i != item}
        more = {**prompt.rules[channel.name], "no_such_item": {"any": ["x"]}}
        for rules, named in (
            (others, channel.name),
            (others | {channel.name: fewer}, item),
            (others | {channel.name: more}, "no_such_item"),
        ):
            bent = prompt.model_copy(update={"rules": rules})
            assert named in VerifierJudge().unscorable(objective, bent)


@pytest.mark.parametrize("name", JUDGED)
def test_a_model_needs_no_rules_but_what_the_suite_says_of_the_request(name, known):
    objective, prompt = OBJECTIVES[name](), known[name][0].prompt
    with JudgeServer(lambda asked, turns: {}) as server:
        judge = model_judge(server)
        assert judge.unscorable(objective, prompt.model_copy(update={"rules": {}})) is None
        bent = prompt.model_copy(update={"prompt_items": {}})
        assert objective.request[0].name in judge.unscorable(objective, bent)
        assert server.calls == 0


@pytest.mark.parametrize("name", JUDGED)
def test_rules_that_do_not_name_the_items_of_a_channel_are_named(name, known):
    objective = OBJECTIVES[name]()
    for channel in objective.answers:
        prompt = known[name][0].prompt
        whole = prompt.rules[channel.name]
        first, *others = whole
        for said, items in {
            f"no rule for {channel.name}.{first}": {item: whole[item] for item in others},
            f"{channel.name}.invented, which it does not have": {**whole, "invented": whole[first]},
        }.items():
            rules = {**prompt.rules, channel.name: items}
            bent = prompt.model_copy(update={"rules": rules})
            assert said in VerifierJudge().unscorable(objective, bent)
