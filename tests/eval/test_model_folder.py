"""A base's faults, as far as its files tell: all at once, in words, and none against a sound one."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.model_folder import check_base_model, check_model_folder, model_faults, without_rows
from mosaic.core.errors import UsageError


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model, to be changed."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    return base


def change(folder, name="config.json", **fields):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def only_fault(folder):
    (fault,) = model_faults(folder)
    with pytest.raises(UsageError):
        check_base_model(folder)
    return fault


def test_nothing_is_known_against_a_sound_base(tiny_model):
    assert model_faults(tiny_model) == []


# Architectures


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is an encoder"),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "is a classifier",
        ),
        (
            {
                "model_type": "t5",
                "architectures": ["T5ForConditionalGeneration"],
                "is_encoder_decoder": True,
            },
            "is an encoder-decoder",
        ),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "a vision model"),
        (
            {
                "model_type": "llava",
                "architectures": ["LlavaForConditionalGeneration"],
                "vision_config": {},
            },
            "a vision-language model",
        ),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "without a language head"),
        ({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}, "a speech model"),
        ({"model_type": "clip", "architectures": None}, "not a model that writes text"),
        ({"model_type": "nosuch"}, "no model_type 'nosuch'; update transformers"),
        ({"model_type": 3}, "names no model_type"),
        (
            {"model_type": "qwen2", "architectures": ["LlamaForCausalLM"]},
            "which is Qwen2ForCausalLM",
        ),
    ],
)
def test_a_model_that_writes_no_chats_is_refused_in_words(folder, fields, words):
    change(folder, **fields)
    assert words in only_fault(folder)


# Quantised weights


@pytest.mark.parametrize(
    "settings_",
    [
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "mxfp4"},
        {"quant_method": "hqq"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "one-of-next-year"},
        {},
        "fp8",
    ],
)
def test_weights_quantised_for_inference_are_refused_with_what_to_take(folder, settings_):
    change(folder, quantization_config=settings_)
    fault = only_fault(folder)
    assert "original 16-bit weights" in fault or "copy the model again" in fault
    if isinstance(settings_, dict) and settings_:
        assert settings_["quant_method"] in fault


def test_weights_in_the_4_bits_of_bitsandbytes_are_taken(folder):
    change(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert model_faults(folder) == []


# Files


def test_pickled_weights_are_refused_with_how_to_convert_them(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    fault = only_fault(folder)
    assert "pytorch_model.bin, which is a pickle" in fault
    assert "save_pretrained" in fault


@pytest.mark.parametrize("inside", [True, False])
def test_gguf_is_refused_as_a_file_and_in_a_folder(folder, inside):
    gguf = folder / "model-Q4_K_M.gguf"
    (folder / "model.safetensors").rename(gguf)
    fault = only_fault(folder if inside else gguf)
    assert "GGUF" in fault


def test_shards_that_the_index_lists_and_the_folder_lacks_are_named(folder):
    names = [f"model-0000{i}-of-00007.safetensors" for i in range(1, 8)]
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fault = only_fault(folder)
    assert "6 of 7 weight files" in fault
    assert names[1] in fault
    assert "and 1 more" in fault


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_a_fault(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    assert "index.json is damaged" in only_fault(folder)


def test_a_pointer_of_git_lfs_is_called_by_its_name(folder):
    (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert "git lfs pull" in only_fault(folder)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_weight_file_that_is_cut_anywhere_is_found(tiny_model, tmp_path_factory, share):
    base = tmp_path_factory.mktemp("cut")
    shutil.copytree(tiny_model, base, dirs_exist_ok=True)
    path = base / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cut short or damaged" in only_fault(base)


def test_an_adapter_in_place_of_a_base_is_called_one(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "is an adapter, not a model" in only_fault(folder)


def test_a_path_to_nothing_is_refused(tmp_path):
    assert "no such folder" in model_faults(tmp_path / "nosuch")[0]


# Remote code


def test_code_of_its_own_is_refused_and_a_native_class_of_the_same_name_is_taken(folder):
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    assert "remote code (auto_map), which is never run" in only_fault(folder)
    native = {
        "AutoConfig": "configuration_llama.LlamaConfig",
        "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
    }
    change(folder, auto_map=native)
    assert model_faults(folder) == []
    check_model_folder(folder)


@pytest.mark.parametrize("auto_map", [None, "x", [], {"AutoTokenizer": [None, "own.OwnTokenizer"]}])
def test_any_other_auto_map_is_refused(folder, auto_map):
    change(folder, "tokenizer_config.json", auto_map=auto_map)
    assert "tokenizer_config.json asks for remote code" in only_fault(folder)


# Tokens


@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_tokens_without_a_row_in_the_embedding_are_named_with_what_to_do(folder, where):
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    if where == "added_tokens.json":
        (folder / where).write_text(json.dumps({"<|im_end|>": rows}))
    elif where == "tokenizer_config.json":
        change(folder, where, added_tokens_decoder={str(rows): {"content": "<|im_end|>"}})
    else:
        entry = {"id": rows, "content": "<|im_end|>", "special": True}
        before = json.loads((folder / where).read_text())["added_tokens"]
        change(folder, where, added_tokens=[*before, entry])
    fault = only_fault(folder)
    assert f"'<|im_end|>' is {rows}" in fault
    assert "resize_token_embeddings" in fault


def test_an_embedding_of_another_model_is_found(folder):
    change(folder, vocab_size=5)
    assert "they are of different models" in only_fault(folder)


@given(ids=st.lists(st.integers(0, 40), unique=True), rows=st.integers(1, 40))
def test_tokens_have_rows_exactly_if_all_ids_are_below_their_number(ids, rows):
    fault = without_rows({f"t{at}": at for at in ids}, rows)
    assert (fault is None) == all(at < rows for at in ids)


# All at once


def test_all_faults_are_told_at_once(folder):
    change(
        folder,
        architectures=["LlamaForSequenceClassification"],
        quantization_config={"quant_method": "gptq"},
    )
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    faults = model_faults(folder)
    assert len(faults) == 4
    with pytest.raises(UsageError) as caught:
        check_base_model(folder)
    assert all(fault in str(caught.value) for fault in faults)
    assert str(caught.value).count("\n") == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a readable JSON object"),
        ("[]", "not a readable JSON object"),
        ('{"eos_token_id": "2"}', "eos_token_id: '2' is neither"),
        ('{"eos_token_id": [2, null]}', "is neither a token's number nor a list"),
        ('{"eos_token_id": ""}', "is neither a token's number nor a list"),
    ],
)
def test_a_generation_config_that_names_no_tokens_is_a_fault(folder, content, words):
    (folder / "generation_config.json").write_text(content)
    (fault,) = model_faults(folder)
    assert words in fault
