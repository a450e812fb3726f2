"""Retention: held-out text must not become less likely than it is to the base."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.generators.base import TextLikelihood, TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.judges.verifier import VerifierJudge
from eval.objectives.config import RetentionConfig
from eval.objectives.retention import RetentionObjective, score_of
from eval.profile import build_profile
from eval.suite import load_suite
from mosaic.core.errors import UsageError
from mosaic.core.steps import Steps
from mosaic.core.store import Store
from mosaic.core.types.evaluation import Response
from mosaic.core.types.records import MeasureLikelihood
from tools.effects.evaluate import Evaluator, GeneratorIdentity, PlainJudge

TEXTS = ["the bridge is old and green .", "keep it in a dry cabinet .", "tell me a story ."]

losses = st.floats(0, 30, allow_nan=False)


def write(folder, *prompts):
    lines = []
    for number, fields in enumerate(prompts):
        whole = {"id": f"t{number}", "slice": "all", "weight": 1, **fields}
        lines.append(json.dumps(whole) + "\n")
    (folder / "selection.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture
def retention():
    return RetentionObjective("forget")


@pytest.fixture
def suite(tmp_path, retention):
    return load_suite(write(tmp_path, *({"turns": [t]} for t in TEXTS)), retention, "selection")


# The scale


@given(losses, losses, losses)
def test_the_score_falls_as_the_loss_rises(base, one, other):
    low, high = sorted((one, other))
    assert 1 <= score_of(high, base) <= score_of(low, base) <= 5


@given(losses, losses)
def test_the_score_is_5_up_to_the_loss_of_the_base_and_1_half_a_nat_above(base, loss):
    score = score_of(loss, base)
    if loss <= base:
        assert score == 5
    elif loss - base > 1e-9:  # less is lost in rounding
        assert score < 5
    assert score_of(base + 0.51, base) == 1


@pytest.mark.parametrize(
    ("own", "base", "score", "failed"),
    [
        (-2, -2.0, 5, False),
        (-2.25, -2.0, 3, False),
        (-2.375, -2.0, 2, True),
        (-1.0, -2.0, 5, False),
    ],
)
def test_a_line_is_scored(retention, own, base, score, failed):
    line = {"id": "t", "slice": "all", "log_likelihood": own, "base": base, "tokens": 7}
    scored = retention.score(line)
    assert (scored.score, scored.failed, scored.slice) == (score, failed, "all")
    assert scored.label == {"loss": -own, "base_loss": -base, "tokens": 7}


@pytest.mark.parametrize("field", ["log_likelihood", "base", "tokens", "slice"])
@pytest.mark.parametrize("value", [None, True, "x", 1.5, float("nan"), float("-inf"), -(10**400)])
def test_a_malformed_line_is_unscored_and_named(retention, field, value):
    line = {"id": "t", "slice": "all", "log_likelihood": -2.0, "base": -2.0, "tokens": 7}
    if field == "slice" and value == "x":
        value = ""
    scored = retention.score({**line, field: value})
    assert (scored.status, scored.score) == ("unscored", None)
    assert field in scored.reason


# Suites


def test_slices_come_from_an_attribute(tmp_path):
    objective = RetentionObjective("forget", RetentionConfig(slice_from="source"))
    fields = {"turns": TEXTS[:1], "attributes": {"source": "news"}, "slice": "news"}
    suite = load_suite(write(tmp_path, fields), objective, "selection")
    assert suite.prompts[0].slice == "news"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"turns": ["a b", "c d"]}, "one turn"),
        ({"turns": ["a b"], "system": "be kind"}, "without a system prompt"),
        ({"turns": [" "]}, "blank"),
        ({"turns": ["a b"], "slice": "other"}, "slice, weight, valid"),
    ],
)
def test_a_prompt_that_is_not_one_text_is_refused_with_its_line(
    tmp_path, retention, fields, reason
):
    with pytest.raises(UsageError, match=rf"selection\.jsonl:1: .*{reason}"):
        load_suite(write(tmp_path, fields), retention, "selection")


# Measuring


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A LoRA adapter of the tiny model that changes what is likely."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(0)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                weights.copy_(torch.randn(weights.shape, generator=generator))
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder


class Counting:
    """A generator that notes whose likelihoods it was asked for."""

    def __init__(self, inner):
        self.inner = inner
        self.asked = []

    def log_likelihood(self, texts, adapter):
        self.asked.append(adapter is not None)
        return self.inner.log_likelihood(texts, adapter)

    def release(self):
        pass


def evaluator(generator, suite, retention):
    return Evaluator(
        generator,
        PlainJudge(VerifierJudge()),
        {"forget": retention},
        {"forget": {"selection": suite}},
        GeneratorIdentity("tiny", {}),
    )


def test_base_and_adapter_are_measured_once_each_and_replayed(
    tiny_model, adapter, suite, retention, tmp_path, new_journal
):
    journal = new_journal(tmp_path / "run", cap=1)
    store = Store(journal.folder)
    digest = store.put_folder(adapter)
    plain = TransformersGenerator(tiny_model, TransformersGeneratorConfig())
    generator = Counting(plain)

    def evaluate(generator, digest):
        steps = Steps(journal, Store(journal.folder))
        return evaluator(generator, suite, retention).evaluate(steps, digest, ["selection"])

    base = evaluate(generator, None)
    assert [s.score for s in base.scored["forget"]["selection"]] == [5, 5, 5]
    assert generator.asked == [False]

    adapted = evaluate(generator, digest)
    assert generator.asked == [False, True]  # the base's likelihoods are read from the journal
    before = plain.log_likelihood(TEXTS, None)
    after = plain.log_likelihood(TEXTS, store.path(digest))
    wanted = [score_of(-a.mean, -b.mean) for a, b in zip(after, before, strict=True)]
    assert [s.score for s in adapted.scored["forget"]["selection"]] == wanted
    assert min(wanted) < 5
    files = adapted.files["forget"]["selection"]
    judgments = store.get_json(files.judgments)
    assert judgments[0]["items"] == {
        "slice": "all",
        "log_likelihood": after[0].mean,
        "base": before[0].mean,
        "tokens": after[0].tokens,
    }
    # Whoever shows answers finds responses, with nothing in them.
    responses = [Response.model_validate(r) for r in store.get_json(files.responses)]
    assert [(r.id, r.answers) for r in responses] == [("t0", []), ("t1", []), ("t2", [])]

    assert evaluate(None, digest) == adapted
    assert len(journal.steps(MeasureLikelihood)) == 2
    profile = build_profile(0, adapted.of_role("selection"), {"forget": retention}, None)
    assert [s.slice for s in profile.slices] == ["all"]


def test_a_likelihood_that_is_not_finite_leaves_its_text_unscored(
    suite, retention, tmp_path, new_journal
):
    class Broken:
        def log_likelihood(self, texts, adapter):
            return [TextLikelihood(float("nan"), 5), *[TextLikelihood(-2.0, 5)] * (len(texts) - 1)]

        def release(self):
            pass

    journal = new_journal(tmp_path / "run", cap=1)
    steps = Steps(journal, Store(journal.folder))
    scored = evaluator(Broken(), suite, retention).evaluate(steps, None, ["selection"])
    lost, kept, _ = scored.scored["forget"]["selection"]
    assert (lost.status, lost.slice, lost.score) == ("unscored", "all", None)
    assert "finite" in lost.reason
    assert kept.score == 5
