"""Bases in bitsandbytes' 4 bits: trained beside, answered from, merged; without it, what to install."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from eval.generators.base import TransformersGeneratorConfig
from eval.generators.transformers import TransformersGenerator
from eval.model_loading import Loading, load_base, quantised
from mosaic.core.errors import UsageError
from mosaic.core.types.evaluation import Prompt
from mosaic.core.types.runs import SftRecipe
from training import worker
from training.methods.sft import check_recipe
from training.models.adapter import check_adapter

FOUR = Loading(four_bit=True)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def wide_model(tiny_model, tmp_path):
    """A Llama whose layers are as wide as a block of 4-bit weights, 64 numbers."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.fixture
def without(monkeypatch):
    """A machine without bitsandbytes."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )


@pytest.fixture
def quantised_folder(tiny_model, tmp_path):
    """A folder that says its weights are in 4 bits."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    path = base / "config.json"
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    return base


def test_without_bitsandbytes_the_command_that_installs_it_is_named(without, tiny_model):
    with pytest.raises(UsageError, match=r"load_in_4bit: bitsandbytes is not installed.*\[quant\]"):
        check_recipe(tiny_model, SftRecipe(load_in_4bit=True))


def test_a_folder_in_4_bits_needs_it_too(without, quantised_folder):
    assert quantised(quantised_folder, Loading())
    with pytest.raises(UsageError, match=r"is in bitsandbytes' 4 bits.*pip install"):
        check_recipe(quantised_folder, SftRecipe())


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_trained_beside_4_bits_and_answers_from_them(order, wide_model, dtype):
    made = order(base=wide_model, load_in_4bit=True, learning_rate=1e-2, dtype=dtype)
    result = worker.train(made.job, made.place)
    check_adapter(Path(result.adapter), wide_model)
    settings = TransformersGeneratorConfig(max_new_tokens=6)
    generator = TransformersGenerator(wide_model, settings, loading=FOUR)
    prompts = [Prompt(id="a", turns=["how do i store the bread ?"], slice="s", weight=1)]
    (before,) = generator.generate(prompts, None)
    (after,) = generator.generate(prompts, Path(result.adapter))
    generator.close()
    assert before.answers != after.answers


@needs_bitsandbytes
def test_a_folder_that_was_saved_in_4_bits_is_trained_as_it_is(order, wide_model, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "four"
    load_base(wide_model, "float32", FOUR, device="cpu").save_pretrained(folder)
    AutoTokenizer.from_pretrained(wide_model).save_pretrained(folder)
    made = order(base=folder)
    result = worker.train(made.job, made.place)
    check_adapter(Path(result.adapter), folder)


@needs_bitsandbytes
def test_a_merge_of_4_bits_is_what_was_trained(order, wide_model, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from mosaic.app.config_file import load_config
    from mosaic.app.export_model import merge

    made = order(base=wide_model, load_in_4bit=True, learning_rate=1e-2)
    adapter = Path(worker.train(made.job, made.place).adapter)
    config = load_config("lab", [f"base_model={wide_model}", "methods.sft.load_in_4bit=true"])
    merge(adapter, config, made.job.inputs["base"], tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    # For evaluation alone bitsandbytes has a kernel on CPUs that rounds to bfloat16.
    parts = PeftModel.from_pretrained(
        load_base(wide_model, "float32", FOUR, device="cpu"), adapter
    ).train()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.allclose(whole(ids).logits, parts(input_ids=ids).logits, atol=1e-3)
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
