"""What `validate` says of a training: steps, layers, memory, and the warnings."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic.app.config_file import load_config
from mosaic.app.training_plan import TrainingSize, _warnings, memory, training_size
from mosaic.app.validation import validate
from mosaic.core.errors import UsageError
from mosaic.core.types.runs import SftRecipe
from training.models.lora_layout import LoraLayout

EIGHT_BILLION = 8_030_000_000


@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    accumulate=st.integers(1, 4),
    packing=st.booleans(),
)
def test_steps_and_tokens_are_those_of_the_set(lengths, batch, accumulate, packing):
    recipe = SftRecipe(
        batch_size=batch, gradient_accumulation=accumulate, packing=packing, max_length=64
    )
    size = training_size(lengths, recipe)
    assert (size.rows, size.tokens) == (len(lengths), sum(lengths))
    assert 1 <= size.steps <= len(lengths)
    assert size.largest >= max(lengths)


def test_the_steps_are_those_that_the_trainer_takes(monkeypatch):
    # 48 rows at batch 8 are 6 steps; two micro-batches a step make 3.
    assert training_size([10] * 48, SftRecipe(batch_size=8)).steps == 6
    assert training_size([10] * 48, SftRecipe(batch_size=8, gradient_accumulation=2)).steps == 3


@pytest.fixture
def llama(tmp_path):
    """The config of a Llama of 8 B parameters, and its layout with rank 16."""
    shape = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    shapes = {"a": [41_943_040]}
    return tmp_path, LoraLayout(("x",), shapes, EIGHT_BILLION, "")


def parts(llama, *overrides):
    base, layout = llama
    config = load_config("lab", ["methods.sft.dtype=bfloat16", "generator.kind=vllm", *overrides])
    return memory(config, base, layout, TrainingSize(1000, 500_000, 125, 4096))


def test_an_8b_model_in_16_bits_takes_its_weights_and_a_little(llama):
    found = parts(llama, "methods.sft.gradient_checkpointing=true")
    assert found["weights"] / 2**30 == pytest.approx(15, abs=0.1)
    assert found["adapter"] == 41_943_040 * 16
    assert 20 < sum(found.values()) / 2**30 < 26


def test_4_bits_take_a_third_of_it_and_fit_a_small_gpu(llama):
    found = parts(llama, "methods.sft.gradient_checkpointing=true", "methods.sft.load_in_4bit=true")
    assert 5 < found["weights"] / 2**30 < 6
    assert sum(found.values()) / 2**30 < 16


def test_checkpointing_saves_most_of_the_activations(llama):
    with_, without = parts(llama, "methods.sft.gradient_checkpointing=true"), parts(llama)
    assert with_["activations"] < without["activations"] / 8


def test_a_base_that_answers_in_this_process_is_counted(llama):
    found = parts(llama, "generator.kind=transformers", "generator.dtype=bfloat16")
    assert found["answering base"] == 2 * EIGHT_BILLION


def warned(steps=100, parameters=EIGHT_BILLION, **recipe):
    layout = SimpleNamespace(parameters=parameters)
    size = TrainingSize(100, 1000, steps, 10)
    return [finding.result for finding in _warnings(size, SftRecipe(**recipe), layout)]


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (29, 1), (30, 0)])
def test_an_epoch_of_few_steps_is_warned_of(steps, count):
    found = warned(steps=steps)
    assert len(found) == count
    assert all(f"an epoch is {steps} optimiser steps" in text for text in found)


@pytest.mark.parametrize("rate", [9e-6, 1.1e-3, 0.1])
def test_a_learning_rate_far_from_the_usual_is_warned_of_with_the_source(rate):
    (text,) = warned(learning_rate=rate)
    assert "methods.sft.learning_rate" in text
    assert "arXiv 2106.09685" in text
    assert warned(learning_rate=rate, parameters=2_000_000) == []


@pytest.mark.parametrize("rate", [1e-5, 2e-4, 1e-3])
def test_a_usual_learning_rate_is_not(rate):
    assert warned(learning_rate=rate) == []


def test_flash_attention_is_refused_beside_a_generator_of_32_bits():
    flash = ["methods.sft.attn_implementation=flash_attention_2", "methods.sft.dtype=bfloat16"]
    with pytest.raises(UsageError, match=r"generator\.dtype"):
        load_config("lab", flash)
    load_config("lab", [*flash, "generator.dtype=bfloat16"])


def test_validate_says_steps_layers_and_memory():
    found = validate(load_config("lab"), False, lambda text: None)
    lines = {finding.check: finding.result for finding in found}
    assert "optimiser steps an epoch" in lines["training steps"]
    assert "28 layers" in lines["trained layers"]
    assert "expected (weights" in lines["memory"]


def test_validate_warns_of_a_round_of_few_steps():
    config = load_config("lab", ["methods.sft.batch_size=64"])
    found = validate(config, False, lambda text: None)
    (warning,) = [finding.result for finding in found if finding.check == "warning"]
    assert "fewer than 30" in warning
