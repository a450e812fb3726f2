"""What every generator promises: the base's or an adapter's own answers, in order, whatever is asked beside them."""

import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import get_args

import pytest

from eval.generators.base import (
    GeneratorConfig,
    TransformersGeneratorConfig,
    VllmGeneratorConfig,
)
from eval.generators.transformers import TransformersGenerator
from eval.generators.vllm import VllmGenerator
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt

LAB = Path("mosaic/lab/data").resolve()
MODEL = LAB / "model"
TOKENS = 16
try:
    version("vllm")
    MISSING = False
except PackageNotFoundError:
    MISSING = True
REAL = [
    pytest.mark.vllm,
    pytest.mark.skipif(MISSING, reason="vLLM is not installed here; see `make test-vllm`"),
]


def transformers(folder, most):
    return TransformersGenerator(
        MODEL, TransformersGeneratorConfig(batch_size=4, max_new_tokens=most)
    )


def vllm(folder, most):
    config = VllmGeneratorConfig(memory="share", dtype="float32", max_new_tokens=most)
    return VllmGenerator(MODEL, config, 8, folder)


# kind -> (makes one with so many new tokens, the folder is for its logs; marks)
GENERATORS = {
    "transformers": (transformers, []),
    "vllm": (vllm, REAL),
}
KINDS = [pytest.param(make, marks=marks, id=kind) for kind, (make, marks) in GENERATORS.items()]


@pytest.fixture(scope="module", params=KINDS)
def new_generator(request, tmp_path_factory):
    """Makes generators of one kind; they are closed in the end."""
    made = []

    def make(most=TOKENS):
        made.append(request.param(tmp_path_factory.mktemp("generator"), most))
        return made[-1]

    yield make
    for generator in made:
        generator.close()


@pytest.fixture(scope="module")
def generator(new_generator):
    return new_generator()


@pytest.fixture(scope="module")
def prompts():
    """Prompts of the laboratory, and among them two of several turns."""
    found = []
    for suite in ("safety", "over_refusal", "instruction_following"):
        lines = (LAB / "suites" / suite / "steering.jsonl").read_text().splitlines()[::30]
        found += [Prompt.model_validate_json(line) for line in lines[:4]]
    first, second = found[0], found[-1]
    three = [first.turns[0], second.turns[0], first.turns[0]]
    found.insert(1, first.model_copy(update={"id": "three", "turns": three}))
    found.append(second.model_copy(update={"id": "two", "turns": three[:2]}))
    return found


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter with an effect that shows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answered(generator, prompts):
    return generator.generate(prompts, None)


@pytest.fixture(scope="module")
def count():
    """Tokens of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    return lambda text: len(tokenizer(text)["input_ids"])


# Answers


def test_there_is_one_response_per_prompt_in_their_order(generator, prompts, answered):
    assert [r.id for r in answered] == [p.id for p in prompts]
    assert generator.generate(prompts[::-1], None) == answered[::-1]
    # Answers that are told apart: the order could not be seen otherwise.
    assert len({tuple(r.answers) for r in answered}) > len(prompts) // 2


def test_each_turn_has_one_answer_and_one_reason_why_it_ended(prompts, answered):
    for prompt, response in zip(prompts, answered, strict=True):
        assert len(response.answers) == len(response.finish_reasons) == len(prompt.turns)
        assert set(response.finish_reasons) <= {"stop", "length"}
        assert response.n_tokens >= len(prompt.turns)


def test_a_greedy_answer_does_not_depend_on_what_is_asked_beside_it(generator, prompts, answered):
    for position in (0, 1, len(prompts) - 1):
        assert generator.generate([prompts[position]], None) == [answered[position]]
    assert generator.generate(prompts[2:5], None) == answered[2:5]
    twice = generator.generate([prompts[3], prompts[3]], None)
    assert twice == [answered[3]] * 2


def test_no_prompt_is_no_response(generator, adapter):
    assert generator.generate([], None) == []
    assert generator.generate([], adapter) == []


def test_a_turn_is_answered_in_the_light_of_those_before(generator, prompts, answered):
    """The third turn of one prompt repeats its first, and the chat before it is another."""
    three = answered[1]
    alone = prompts[1].model_copy(update={"turns": prompts[1].turns[:1]})
    [first] = generator.generate([alone], None)
    assert first.answers == three.answers[:1]
    assert first.finish_reasons == three.finish_reasons[:1]


def test_no_answer_is_longer_than_asked_for_and_one_that_is_cut_says_so(
    new_generator, prompts, answered, count
):
    few = new_generator(2)
    short = few.generate(prompts, None)
    few.release()
    for response, whole in zip(short, answered, strict=True):
        assert response.n_tokens <= 2 * len(response.answers)
        assert max(map(count, response.answers)) <= 2
        assert whole.answers[0].startswith(response.answers[0])
        if response.answers[0] != whole.answers[0]:
            assert response.finish_reasons[0] == "length"
    assert any("length" in response.finish_reasons for response in short)
    for response in answered:
        assert response.n_tokens <= TOKENS * len(response.answers)


# Adapters


def test_an_adapter_changes_answers_and_likelihoods_and_none_is_the_base_again(
    generator, prompts, answered, adapter
):
    adapted = generator.generate(prompts, adapter)
    assert adapted != answered
    assert generator.generate(prompts, None) == answered
    assert generator.generate(prompts, adapter) == adapted
    before = generator.log_likelihood(TEXTS, None)
    with_it = generator.log_likelihood(TEXTS, adapter)
    assert max(abs(a.mean - b.mean) for a, b in zip(before, with_it, strict=True)) > 0.01
    again = generator.log_likelihood(TEXTS, None)
    assert [a.mean for a in again] == pytest.approx([b.mean for b in before], abs=1e-4)


# Likelihoods

TEXTS = ["how do i store the bread ?", "the bridge", "the bridge is old and green ."]


def test_each_text_has_one_likelihood_over_its_tokens_but_the_first(generator, count):
    found = generator.log_likelihood(TEXTS, None)
    assert [value.tokens for value in found] == [count(text) - 1 for text in TEXTS]
    for value in found:
        assert math.isfinite(value.mean)
        assert value.mean <= 0
    assert len({round(value.mean, 4) for value in found}) == len(TEXTS)
    assert generator.log_likelihood([], None) == []


def test_a_likelihood_does_not_depend_on_the_texts_beside_it(generator):
    found = generator.log_likelihood(TEXTS, None)
    for text, value in zip(TEXTS, found, strict=True):
        [alone] = generator.log_likelihood([text], None)
        assert alone.tokens == value.tokens
        assert alone.mean == pytest.approx(value.mean, abs=1e-4)
    backwards = [v.mean for v in generator.log_likelihood(TEXTS[::-1], None)]
    assert backwards == pytest.approx([v.mean for v in found[::-1]], abs=1e-4)


@pytest.mark.parametrize("text", ["the", "the bridge " * 4000], ids=["one token", "too long"])
def test_a_text_without_a_likelihood_is_refused(generator, text):
    with pytest.raises(UsageError):
        generator.log_likelihood([TEXTS[0], text], None)


# Memory


def test_after_a_release_it_answers_as_before_and_it_may_be_closed_twice(
    new_generator, prompts, answered
):
    generator = new_generator()
    generator.release()
    assert generator.generate(prompts[:3], None) == answered[:3]
    generator.release()
    generator.release()
    assert generator.generate(prompts[:3], None) == answered[:3]
    generator.close()
    generator.close()


def test_a_generator_that_never_answered_can_be_closed(new_generator):
    generator = new_generator()
    generator.release()
    generator.close()
    generator.close()


def test_every_generator_of_a_config_is_tried_here():
    configs = get_args(get_args(GeneratorConfig)[0])
    assert {config.model_fields["kind"].default for config in configs} == set(GENERATORS)
