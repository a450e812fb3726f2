"""A reason that lies in the prompt is known before anything is asked; one that lies in an answer is not."""

from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Unchecked, count_labels, unscored
from eval.objectives.retention import RetentionObjective
from mosaic.core.types.evaluation import Prompt, Scored

PROMPT = Prompt(id="p", turns=["one ?", "two ?"], slice="all", weight=1)


class Own:
    """Somebody's objective by code: `why` says why an answer cannot be read, or None."""

    name, evidence, answers, request, fields, rules = "own", "answers", (), (), {}, "0" * 64

    def __init__(self, why, slice_="all"):
        self.why = why
        self.slice = slice_

    def check(self, prompt, response):
        assert len(response.answers) == len(prompt.turns)
        reason = self.why(response.answers[-1])
        if reason:
            raise Unchecked(reason)
        return {"words": 1}

    def score(self, line):
        if line.get("words") != 1:
            return unscored(line, "words is missing")
        return Scored(id=line["id"], status="ok", slice=self.slice, weight=1, score=5, failed=False)

    def breakdown(self, scored):
        return count_labels(scored, ())


def reason_of(objective, prompt=PROMPT):
    return VerifierJudge().unscorable(objective, prompt)


def test_a_prompt_that_no_answer_scores_has_a_reason():
    assert reason_of(Own(lambda answer: "the word list is missing")) == "the word list is missing"


def test_a_reason_that_depends_on_the_answer_is_the_answers():
    assert reason_of(Own(lambda answer: None)) is None
    assert reason_of(Own(lambda answer: f"{answer!r} is not a colour")) is None
    assert reason_of(Own(lambda answer: None if answer == "[]" else "not a list")) is None


def test_a_known_answer_shows_that_a_prompt_can_be_scored():
    picky = Own(lambda answer: None if answer == "blue" else "not a colour")
    assert reason_of(picky) == "not a colour"
    assert reason_of(picky, PROMPT.model_copy(update={"good": ["red", "blue"]})) is None


def test_rules_that_give_another_slice_than_the_suite_are_a_reason():
    assert "the suite says all" in reason_of(Own(lambda answer: None, slice_="other"))


def test_texts_that_are_only_read_need_no_answers():
    assert reason_of(RetentionObjective("forget")) is None
