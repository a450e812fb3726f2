"""An objective is one file: a fourth one, retention, measured by the likelihood of held-out text."""

import json

import pytest

from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.judges.verifier import VerifierJudge
from eval.objectives.base import Malformed, Unchecked, count_labels, unscored
from eval.profile import build_profile
from eval.suite import load_suite
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.base import digest_of
from mosaic.core.types.evaluation import Scored
from tools.effects.evaluate import Evaluator, GeneratorIdentity, PlainJudge

WORST, BEST = -8.0, 0.0


class Retention:
    """Mean log-likelihood per token of held-out text, from -8 (1) to 0 (5)."""

    name = "retention"
    evidence = "likelihood"
    rules = digest_of(["retention", 1])
    answers = ()
    request = ()

    def words(self, side):
        raise ValueError("retention is measured: no model is asked")

    def stored(self, prompt, items):
        return {"items": dict(items)}

    def check(self, prompt, response):
        raise Unchecked("retention reads likelihoods, not answers")

    def prompt_side(self, prompt_items, turns, constraints):
        return "text", 1, 1

    def score(self, line):
        try:
            value = line.get("log_likelihood")
            if isinstance(value, bool) or not isinstance(value, float) or value > 0:
                raise Malformed(f"log_likelihood is {value!r}, not a number of at most 0")
        except Malformed as error:
            return unscored(line, str(error))
        score = 1 + 4 * (max(WORST, value) - WORST) / (BEST - WORST)
        return Scored(
            id=line["id"],
            status="ok",
            slice="text",
            weight=1,
            score=score,
            need=0,
            failed=score < 3,
        )

    def breakdown(self, scored):
        return count_labels(scored, ())


@pytest.fixture
def suites(tmp_path):
    texts = ["the bridge is old and green .", "keep it in a dry cabinet .", "zq xv kj wq"]
    for role in ("steering", "selection", "audit"):
        lines = [
            json.dumps({"id": f"{role}{i}", "turns": [t], "slice": "text", "weight": 1})
            for i, t in enumerate(texts)
        ]
        (tmp_path / f"{role}.jsonl").write_text("\n".join(lines) + "\n")
    return {"retention": {"selection": load_suite(tmp_path, Retention(), "selection")}}


def test_a_fourth_objective_is_evaluated_profiled_and_replayed(
    tiny_model, suites, tmp_path, new_journal
):
    journal = new_journal(tmp_path / "run", cap=1)
    generator = TransformersGenerator(tiny_model, TransformersGeneratorConfig())

    def evaluate(generator):
        steps = Steps(journal, Store(journal.folder))
        evaluator = Evaluator(
            generator,
            PlainJudge(VerifierJudge()),
            {"retention": Retention()},
            suites,
            GeneratorIdentity("tiny", {}),
        )
        return evaluator.evaluate(steps, None, ["selection"])

    first = evaluate(generator)
    score = first.scores()["retention"]["selection"]
    assert score.n_scored == 3
    assert 1 < score.mean < 5
    values = generator.log_likelihood(
        [p.turns[0] for p in suites["retention"]["selection"].prompts], None
    )
    wanted = [1 + 4 * (max(WORST, v.mean) - WORST) / (BEST - WORST) for v in values]
    assert [s.score for s in first.scored["retention"]["selection"]] == pytest.approx(wanted)
    # Read from the journal: no generator is asked again.
    again = evaluate(None)
    assert (again.files, again.scored) == (first.files, first.scored)
    profile = build_profile(0, first.of_role("selection"), {"retention": Retention()}, None)
    assert [s.slice for s in profile.slices] == ["text"]


def test_a_likelihood_that_is_none_is_unscored():
    assert Retention().score({"id": "x", "log_likelihood": None}).status == "unscored"
