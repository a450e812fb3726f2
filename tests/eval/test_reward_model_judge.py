"""The reward model as a judge: levels with reasons, scores for steering, agreement with another judge."""

import json
import shutil
from pathlib import Path

import pytest

from eval.judges.reward_model import RewardModelJudge, chat_of
from eval.levels import agreement, drawn_sample, level_scores
from eval.objectives.over_refusal import OverRefusal
from eval.objectives.safety import Safety
from eval.reward_model import CARD, RewardModel
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Judgment, Prompt, Response, Scored
from mosaic.core.types.recipes import RewardModelRecipe
from mosaic.core.types.runs import BASE, JUDGED_ANSWERS, TrainJob, Workplace
from training.methods.reward_model import train
from training.models.adapter import model_digest

# The word that decides the level, last in the answer.
LEVELS = {"keep it dry .": 5, "the bridge is old .": 1}


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A reward model of safety, really trained on the tiny base."""
    folder = tmp_path_factory.mktemp("judge")
    lines = []
    for number in range(40):
        for answer, level in LEVELS.items():
            messages = [
                {"role": "user", "content": f"how do i store the bread {number} ?"},
                {"role": "assistant", "content": answer},
            ]
            line = {"id": f"{number} {level}", "messages": messages, "levels": {"safety": level}}
            lines.append(json.dumps(line) + "\n")
    (folder / "judged.jsonl").write_text("".join(lines))
    recipe = RewardModelRecipe(learning_rate=0.01, batch_size=16, lora_r=4, max_length=64, epochs=3)
    job = TrainJob(
        recipe=recipe, inputs={BASE: model_digest(tiny_model), JUDGED_ANSWERS: "0"}, seed=1
    )
    paths = {BASE: str(tiny_model), JUDGED_ANSWERS: str(folder / "judged.jsonl")}
    train(job, Workplace(paths=paths, out=str(folder / "model"), work=str(folder / "work")))
    return RewardModel(folder / "model", tiny_model)


def prompt(identifier, **known):
    given = {"turns": ["how do i store the river ?"], "slice": "complexity_2", "weight": 2}
    return Prompt(id=identifier, **{**given, **known})


def response(identifier, *answers):
    return Response(
        id=identifier, answers=list(answers), finish_reasons=["stop"] * len(answers), n_tokens=3
    )


def test_there_is_one_judgment_per_prompt_with_the_likeliest_level(model):
    judge = RewardModelJudge(model)
    prompts = [prompt("a"), prompt("b"), prompt("c", system="be brief .")]
    answers = ["keep it dry .", "the bridge is old .", "keep it dry ."]
    responses = [response(p.id, answer) for p, answer in zip(prompts, answers, strict=True)]
    judgments = judge.judge(Safety(), prompts, responses)
    assert [j.id for j in judgments] == ["a", "b", "c"]
    assert [j.items["level"] for j in judgments[:2]] == [5, 1]
    assert all(0.5 <= j.items["probability"] <= 1 for j in judgments)
    assert {j.judge for j in judgments} == {judge.digest}
    assert judge.judge(Safety(), prompts[::-1], responses[::-1])[::-1] == judgments
    assert judge.judge(Safety(), [], []) == []


def test_a_conversation_is_read_whole_in_its_order(model):
    two = prompt("two", system="be brief .", turns=["how do i ?", "and then ?"])
    given = response("two", "the bridge is old .", "keep it dry .")
    chat = chat_of(two, given)
    assert [(m["role"][0], m["content"]) for m in chat] == [
        ("s", "be brief ."),
        ("u", "how do i ?"),
        ("a", "the bridge is old ."),
        ("u", "and then ?"),
        ("a", "keep it dry ."),
    ]
    (judgment,) = RewardModelJudge(model).judge(Safety(), [two], [given])
    (reading,) = model.read([chat])
    level = judgment.items["level"]
    assert judgment.items["probability"] == reading.probabilities["safety"][level]
    with pytest.raises(ValueError, match="zip"):
        chat_of(two, response("two", "keep it dry ."))


def test_an_answer_that_cannot_be_read_is_a_lost_item_with_a_reason(model):
    prompts = [prompt("good"), prompt("long"), prompt("last")]
    answers = ["keep it dry .", "keep it dry . " * 40, "keep it dry ."]
    responses = [response(p.id, answer) for p, answer in zip(prompts, answers, strict=True)]
    good, lost, last = RewardModelJudge(model).judge(Safety(), prompts, responses)
    assert (good.status, lost.status, last.status) == ("ok", "failed", "ok")
    assert "tokens of at most 64" in lost.reason
    assert lost.items == {}


def test_an_answer_to_another_prompt_is_a_mistake_of_the_caller(model):
    with pytest.raises(ValueError, match="response b does not answer prompt a"):
        RewardModelJudge(model).judge(Safety(), [prompt("a")], [response("b", "one .")])
    with pytest.raises(ValueError, match="zip"):
        RewardModelJudge(model).judge(Safety(), [prompt("a")], [])


def test_an_objective_without_a_head_is_told_before_anything_is_judged(model):
    judge = RewardModelJudge(model)
    assert judge.unscorable(Safety(), prompt("a")) is None
    assert "no head for 'over_refusal'" in judge.unscorable(OverRefusal(), prompt("a"))
    with pytest.raises(UsageError, match="there are safety"):
        judge.judge(OverRefusal(), [prompt("a")], [response("a", "one .")])


def test_the_digest_is_that_of_what_decides_a_judgment(model, tiny_model, tmp_path):
    before = RewardModelJudge(model).digest
    copy = tmp_path / "copy"
    shutil.copytree(model.folder, copy)
    assert RewardModelJudge(RewardModel(copy, tiny_model)).digest == before
    for name in ("adapter_model.safetensors", "heads.safetensors", CARD):
        path = copy / name
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        assert RewardModelJudge(RewardModel(copy, tiny_model)).digest != before
        path.write_bytes(whole)


def test_levels_become_scores_with_the_labels_of_their_prompts():
    prompts = [prompt("a"), prompt("b", valid=0, weight=3), prompt("c")]
    judgments = [
        Judgment(id="a", status="ok", items={"level": 2, "probability": 0.7}, judge="x"),
        Judgment(id="b", status="ok", items={"level": 5, "probability": 0.9}, judge="x"),
        Judgment(id="c", status="failed", reason="too long", judge="x"),
    ]
    first, second, third = level_scores(prompts, judgments)
    assert (first.score, first.slice, first.weight, first.need) == (2, "complexity_2", 2, 8)
    assert first.failed
    assert (second.score, second.valid, second.need, second.failed) == (5, 0, 0, False)
    assert (third.status, third.score, third.reason) == ("unscored", None, "too long")
    assert third.slice == "complexity_2"


def scores(*values):
    found = []
    for number, value in enumerate(values):
        status = "unscored" if value is None else "ok"
        found.append(Scored(id=str(number), status=status, score=value))
    return found


def test_agreement_is_over_the_answers_that_both_scored():
    found = agreement("safety", scores(5, 4, 1, None, 2), scores(5, 5, 5, 3, None))
    assert (found.n, found.unread) == (3, 2)
    assert found.equal == pytest.approx(1 / 3)
    assert found.near == pytest.approx(2 / 3)
    assert found.difference == pytest.approx((0 - 1 - 4) / 3)
    none = agreement("safety", scores(None), scores(1))
    assert (none.n, none.equal, none.kappa) == (0, 0, None)


def test_a_model_that_always_says_the_commonest_level_does_not_agree_by_kappa():
    found = agreement("safety", scores(*[5] * 10), scores(*[5] * 8, 1, 2))
    assert found.equal == 0.8
    assert found.kappa == 0


def test_scores_of_different_answers_are_not_compared():
    with pytest.raises(ValueError, match="not of one answer"):
        agreement("safety", scores(5), [Scored(id="other", status="ok", score=5)])


def test_a_sample_is_seeded_keeps_the_order_and_is_at_most_all():
    prompts = [prompt(str(number)) for number in range(50)]
    sample = drawn_sample(prompts, 10, seed=4)
    assert len(sample) == 10
    assert sample == sorted(sample, key=lambda one: int(one.id))
    assert sample == drawn_sample(prompts, 10, seed=4)
    assert sample != drawn_sample(prompts, 10, seed=5)
    assert drawn_sample(prompts, 99, seed=4) == prompts


def test_a_model_is_read_from_its_folder_alone(model, tiny_model):
    other = RewardModelJudge(RewardModel(Path(str(model.folder)), tiny_model))
    asked = [prompt("a")], [response("a", "keep it dry .")]
    assert other.judge(Safety(), *asked) == RewardModelJudge(model).judge(Safety(), *asked)
