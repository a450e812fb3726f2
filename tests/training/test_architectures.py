"""Bases of many architectures, tiny and random: trained by the product's own path, or refused before.

A sound adapter is never condemned: what was trained is saved, found sound, loaded and merged.
"""

import json
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from eval.generators.adapter_probe import PROMPTS, AdapterProbe, Continuation
from eval.model_loading import Loading
from eval.model_weights import model_shapes
from mosaic.core.errors import BoundaryError, UsageError
from mosaic.core.types.runs import SftRecipe
from tests.training.influence.conftest import SHARES, sampled_rows, steering_contrasts
from tools.effects.influence import trainable
from training import worker
from training.influence.estimate import estimate
from training.influence.gradients import trained_layers
from training.influence.settings import InfluenceConfig
from training.methods.sft import check_recipe
from training.models.adapter import adapter_bytes, check_adapter, model_digest
from training.models.lora_layout import lora_layout
from training.models.tokenizer import load_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}
FEW = {"num_experts_per_tok": 2}
# model_type -> settings of a tiny one
DENSE = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "mistral": {},
    "phi3": {},
    "phi": {},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
    "cohere": {},
    "stablelm": {},
    "starcoder2": {},
    "glm4": {"head_dim": 16},
    "gpt_neox": {},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gptj": {**GPT2, "rotary_dim": 8},
    "falcon": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 64},
    "bloom": {},
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4, **FEW},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        **FEW,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16, **FEW},
    "olmoe": {"num_experts": 4, **FEW},
    "granitemoe": {"num_local_experts": 4, **FEW},
    "phimoe": {"num_local_experts": 4, **FEW},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 16, **FEW},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        **FEW,
    },
}
REFUSED = {
    "mamba": ({"state_size": 4}, "PEFT puts no LoRA on MambaForCausalLM"),
    "llama4_text": (
        {"num_local_experts": 4, "interleave_moe_layer_step": 1, "head_dim": 16},
        "TRL cannot train it",
    ),
}


@pytest.fixture
def base_of(tiny_model, tmp_path):
    """A function that makes a tiny base of a model_type, with the tiny model's tokenizer."""

    def make(model_type, **settings):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        torch.manual_seed(3)
        config = AutoConfig.for_model(
            model_type,
            **{**SIZES, **settings},
            # Padded, as published models are: some tokenizers add tokens of their own when loaded.
            vocab_size=len(tokenizer) + 8,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.2,
        )
        folder = tmp_path / model_type
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def trained(order, base, **recipe):
    made = order("adapter", base=base, learning_rate=1e-2, max_steps=2, **recipe)
    return Path(worker.train(made.job, made.place).adapter)


def continuations(model, probe):
    """What a right server would say to the probe's prompts."""
    import torch

    served = []
    for _, prompt in probe.prompts:
        ids, tokens, values = list(prompt), [], []
        for _ in range(4):
            with torch.inference_mode():
                last = model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].float()
            row = torch.log_softmax(last, -1)
            tokens.append(int(row.argmax()))
            values.append(float(row.max()))
        served.append(Continuation(ids, tokens, values))
    return served


def logits(model):
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("model_type", [*DENSE, *EXPERTS])
def test_an_architecture_is_trained_checked_loaded_and_merged(order, base_of, model_type):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = base_of(model_type, **{**DENSE, **EXPERTS}[model_type])
    adapter = trained(order, base)
    check_adapter(adapter, base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = logits(model)
    adapted = PeftModel.from_pretrained(model, adapter).eval()
    after = logits(adapted)
    assert float((before - after).abs().max()) > 1e-3
    probe = AdapterProbe(base, "float32")
    served = continuations(adapted, probe)
    with adapted.disable_adapter():
        base_served = continuations(adapted, probe)
    assert probe.check_adapter(adapter, "a", served, base_served).error < 1e-3
    assert torch.allclose(logits(adapted.merge_and_unload()), after, atol=1e-4)
    weights = adapter / "adapter_model.safetensors"
    size = adapter_bytes(base, SftRecipe(lora_r=4))
    assert size < weights.stat().st_size < size + 20_000


@pytest.mark.parametrize("model_type", [*DENSE, *EXPERTS])
def test_influence_is_estimated_around_the_adapter_of_an_architecture(order, base_of, model_type):
    base = base_of(model_type, **{**DENSE, **EXPERTS}[model_type])
    adapter = trained(order, base)
    tokenizer = load_tokenizer(base)
    rows, suites = sampled_rows(tokenizer), steering_contrasts(tokenizer)
    with trainable(base, adapter, SftRecipe()) as model:
        layers = trained_layers(model)
        found = estimate(model, rows, SHARES, suites, list(suites), InfluenceConfig())
    assert sum(layer.weight.numel() for layer in layers.values()) * 4 == adapter_bytes(
        base, SftRecipe(lora_r=4)
    )
    for bucket in found.buckets:
        assert bucket.mean.value != 0


@pytest.mark.parametrize("model_type", REFUSED)
def test_an_architecture_that_cannot_be_trained_is_refused_in_words(base_of, model_type):
    settings, message = REFUSED[model_type]
    with pytest.raises(UsageError, match=message):
        check_recipe(base_of(model_type, **settings), SftRecipe())


@pytest.mark.parametrize("model_type", EXPERTS)
def test_of_a_mixture_of_experts_the_attention_is_trained(base_of, model_type):
    layout = lora_layout(base_of(model_type, **EXPERTS[model_type]), 4, "all-linear")
    assert layout.targets
    assert all("self_attn" in target for target in layout.targets)
    assert "experts" in layout.left_out


def test_of_a_model_that_also_sees_the_language_model_is_trained(order, tiny_model, tmp_path):
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    size = len(tokenizer)
    sight = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**SIZES, "head_dim": 16, "vocab_size": size + 8},
        vision_config={**sight, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=size + 1,
        boi_token_index=size + 2,
        eoi_token_index=size + 3,
    )
    base = tmp_path / "gemma3"
    Gemma3ForConditionalGeneration(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapter = trained(order, base)
    check_adapter(adapter, base)
    layout = lora_layout(base, 4, "all-linear")
    assert all(".language_model." in target for target in layout.targets)


# The adapter probe


def test_rounding_has_more_room_in_a_mixture_of_experts(base_of, tiny_model):
    mixture = base_of("mixtral", **EXPERTS["mixtral"])
    wide = AdapterProbe(mixture, "bfloat16").tolerance
    assert wide > AdapterProbe(tiny_model, "bfloat16").tolerance


def test_chats_that_the_template_refuses_are_not_asked_of_a_server(changed_template):
    refusal = (
        "{%- if messages[0].role == 'system' -%}{{ raise_exception('no system') }}{%- endif -%}"
    )
    probe = AdapterProbe(changed_template(lambda text: refusal + text), "float32")
    assert [chat for chat, _ in probe.prompts] == [
        chat for chat in PROMPTS if chat[0]["role"] != "system"
    ]


def test_a_template_that_renders_nothing_is_said(changed_template):
    probe = AdapterProbe(changed_template(lambda text: "{{ raise_exception('no') }}"), "float32")
    with pytest.raises(BoundaryError, match="renders none of the adapter probe's chats"):
        _ = probe.prompts


# Layers by name


def test_named_layers_alone_are_trained(order, tiny_model):
    adapter = trained(order, tiny_model, target_modules=["v_proj", "q_proj"])
    named = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    assert {name.rpartition(".")[2] for name in named} == {"q_proj", "v_proj"}
    check_adapter(adapter, tiny_model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("query", "'query' is not a layer of LlamaForCausalLM; there are down_proj"),
        ("lm_head", "'lm_head' is not a linear layer of the decoder"),
        ("embed_tokens", "'embed_tokens' is not a linear layer"),
        ("proj", "'proj' is not a layer"),
    ],
)
def test_a_layer_that_is_not_there_is_named_beside_those_that_are(tiny_model, name, message):
    with pytest.raises(UsageError, match=message):
        check_recipe(tiny_model, SftRecipe(target_modules=["q_proj", name]))


@pytest.mark.parametrize("name", ["experts", "gate_up_proj", "down_proj", "gate"])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_experts_by_name_are_refused_in_words(base_of, model_type, name):
    base = base_of(model_type, **EXPERTS[model_type])
    with pytest.raises(UsageError, match="experts"):
        check_recipe(base, SftRecipe(target_modules=["q_proj", name]))


def test_an_attention_that_is_not_to_be_had_is_refused(order, base_of):
    base = base_of("gemma2", head_dim=16)
    with pytest.raises(UsageError, match=r"methods\.sft\.attn_implementation: sdpa"):
        check_recipe(base, SftRecipe(attn_implementation="sdpa"))
    check_recipe(base, SftRecipe(attn_implementation="eager"))


def test_flash_attention_needs_16_bits():
    with pytest.raises(ValidationError, match="set dtype: bfloat16"):
        SftRecipe(attn_implementation="flash_attention_2")


def test_the_probe_reads_with_the_models_own_attention(tiny_model):
    probe = AdapterProbe(tiny_model, "float32", Loading("flash_attention_2"))
    assert probe.loading.attention is None


def test_tokens_beyond_the_embedding_are_found_in_the_loaded_tokenizer(tiny_model):
    from training.methods.hf import check_tokens

    tokenizer = load_tokenizer(tiny_model)
    check_tokens(tiny_model, tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(UsageError, match="1 token without a row"):
        check_tokens(tiny_model, tokenizer)


# Identity


def test_a_recipe_of_an_earlier_release_keeps_its_digest():
    plain = SftRecipe().json_data()
    assert not {"target_modules", "attn_implementation", "load_in_4bit"} & plain.keys()
    digests = {SftRecipe().content_digest}
    changes = (
        {"target_modules": ["q_proj"]},
        {"attn_implementation": "eager"},
        {"load_in_4bit": True},
    )
    for change in changes:
        recipe = SftRecipe(**change)
        assert SftRecipe.model_validate(recipe.json_data()) == recipe
        digests.add(recipe.content_digest)
    assert len(digests) == 4


def test_the_order_of_named_layers_is_no_other_recipe():
    first, second = SftRecipe(target_modules=["a", "b"]), SftRecipe(target_modules=["b", "a"])
    assert first.content_digest == second.content_digest


# Weights that are not all there


def test_a_model_without_its_head_is_refused_where_it_would_start_at_random(base_of, order):
    from safetensors.torch import load_file, save_file

    base = base_of("llama", tie_word_embeddings=False)
    path = base / "model.safetensors"
    weights = load_file(path)
    del weights["lm_head.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"1 weights are missing.*lm_head\.weight"):
        trained(order, base)


def test_the_same_weights_twice_in_a_folder_are_read_once(tiny_model, tmp_path):
    base = tmp_path / "twice"
    shutil.copytree(tiny_model, base)
    shutil.copyfile(base / "model.safetensors", base / "consolidated.safetensors")
    assert model_shapes(base) == model_shapes(tiny_model)
    assert model_digest(base) != model_digest(tiny_model)
