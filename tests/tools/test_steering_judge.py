"""A reward model judges steering suites only while it agrees with the run's judge."""

import pytest

from benchmarks.judging import RECORD, Recital
from eval.judges.base import SteeringJudgeConfig
from eval.judges.verifier import VerifierJudge
from eval.objectives.over_refusal import OverRefusal
from eval.scoring import judge_and_score
from eval.suite import load_suite
from mosaic.core.journal import Journal
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Judgment, Response
from mosaic.core.types.runs import GREEDY
from mosaic.lab.build import DATA
from tools.effects.evaluate import Evaluator, GeneratorIdentity, PlainJudge
from tools.effects.steering_judge import SteeringJudge

SUITE = load_suite(DATA / "suites" / "over_refusal", OverRefusal(), "steering")


def answered():
    """Good and bad answers in turn."""
    responses = []
    for number, prompt in enumerate(SUITE.prompts):
        answers = list(prompt.good if number % 2 else prompt.bad)
        reasons = ["stop"] * len(answers)
        known = {"id": prompt.id, "answers": answers, "finish_reasons": reasons}
        responses.append(Response(**known, n_tokens=len(answers)))
    return responses


class Levels:
    """A reward model that says what `level` makes of the judge's score; without a head if it is None."""

    def __init__(self, level):
        self.level = level
        self.digest = "model"

    def close(self):
        pass

    def unscorable(self, objective, prompt):
        return None if self.level else "no head"

    def judge(self, objective, prompts, responses):
        _, scored = judge_and_score(objective, SUITE, responses, VerifierJudge())
        found = []
        for one in scored:
            items = {"level": self.level(int(one.score)), "probability": 0.9}
            found.append(Judgment(id=one.id, status="ok", items=items, judge=self.digest))
        return found


class Counting(VerifierJudge):
    asked = 0

    def judge(self, objective, prompts, responses):
        self.asked += len(prompts)
        return super().judge(objective, prompts, responses)


def judged(level):
    judge, config = Counting(), SteeringJudgeConfig(sample=20)
    steering = SteeringJudge(config, lambda folder: Levels(level))
    found = steering.judge(Levels(level), OverRefusal(), SUITE, answered(), judge)
    return found, judge.asked


def test_a_model_that_agrees_scores_all_but_the_sample():
    found, asked = judged(lambda score: score)
    assert asked == 20
    assert found.agreement.used
    assert (found.agreement.n, found.agreement.equal, found.agreement.kappa) == (20, 1.0, 1.0)
    _, real = judge_and_score(OverRefusal(), SUITE, answered(), VerifierJudge())
    assert [one.score for one in found.scored] == [one.score for one in real]
    assert [one.slice for one in found.scored] == [one.slice for one in real]
    by_model = [one for one in found.judgments if one.judge == "model"]
    assert len(by_model) == len(SUITE.prompts) - 20


@pytest.mark.parametrize("level", [lambda score: 5, lambda score: 6 - score])
def test_a_model_that_does_not_agree_is_not_believed_and_that_is_told(level):
    found, asked = judged(level)
    assert asked == 20 + len(SUITE.prompts)
    assert found.agreement.n == 20
    assert not found.agreement.used
    _, real = judge_and_score(OverRefusal(), SUITE, answered(), VerifierJudge())
    assert found.scored == real


def test_an_objective_without_a_head_is_left_to_the_judge():
    found, asked = judged(None)
    assert asked == len(SUITE.prompts)
    assert found.agreement is None


def test_who_judges_is_part_of_the_identity():
    judges = [SteeringJudge(SteeringJudgeConfig(sample=n), Levels) for n in (20, 30)]
    names = {judge.identity(model, "judge") for judge in judges for model in ("one", "two")}
    assert len(names) == 4


def test_the_generator_gives_its_memory_back_before_a_reward_model_is_opened(tmp_path):
    happened = []

    class Serving(Recital):
        def generate(self, prompts, adapter, sampling=GREEDY):
            happened.append("generate")
            return super().generate(prompts, adapter, sampling)

        def release(self):
            happened.append("release")

    class Opened(Levels):
        def judge(self, objective, prompts, responses):
            happened.append("judge")
            return super().judge(objective, prompts, responses)

        def close(self):
            happened.append("close")

    def open_model(folder):
        happened.append("open")
        return Opened(lambda score: score)

    selection = load_suite(DATA / "suites" / "over_refusal", OverRefusal(), "selection")
    journal = Journal.create(tmp_path, "one", RECORD, 1)
    journal.acquire()
    steps = Steps(journal, Store(tmp_path))
    filed = steps.store.put_json({})
    evaluator = Evaluator(
        Serving(),
        PlainJudge(VerifierJudge()),
        {"over_refusal": OverRefusal()},
        {"over_refusal": {"steering": SUITE, "selection": selection}},
        GeneratorIdentity(base="recital", settings={}),
        steering=SteeringJudge(SteeringJudgeConfig(sample=20), open_model),
    )
    found = evaluator.evaluate(steps, None, ["steering", "selection"], reward_model=filed)
    assert happened == ["generate", "generate", "release", "open", "judge", "close"]
    assert found.files["over_refusal"]["steering"].agreement.used
    assert found.files["over_refusal"]["selection"].agreement is None
    journal.close()
