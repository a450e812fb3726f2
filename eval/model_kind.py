"""What kind of model a config.json describes, and whether it is one that writes text.

Heavy imports stand inside functions: only transformers knows which architectures it has.
"""

from __future__ import annotations

from typing import Any

ENCODERS = ("ForMaskedLM", "ForPreTraining")
CLASSIFIERS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "RewardModel",
)
# How configs call the number of experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SERVED = "give a decoder-only language model (such as a Llama, Qwen, Gemma or Mistral)"
PLAIN = (
    "take the model's original 16-bit weights; where memory is short, load those in 4 bits with "
    "methods.sft.load_in_4bit: true"
)


def kind_fault(config: dict[str, Any]) -> str | None:
    """Why a config's architecture cannot be trained to chat, in words about it; None if it can."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config.get("model_type")
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    if not isinstance(model_type, str):
        return "config.json names no model_type; give a Hugging Face model folder"
    if not _known_type(model_type):
        import transformers

        return (
            "its config.json does not describe a known model: transformers "
            f"{transformers.__version__} has no model_type {model_type!r}; update transformers, "
            "or take another base"
        )
    of_its_type = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name and name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return _wrong_class(name, model_type, of_its_type)
    what = _described(name, config)
    if what:
        return f"{name or model_type} is {what}; {SERVED}"
    if of_its_type is None:
        return f"{name or model_type} is not a model that writes text by itself; {SERVED}"
    return None


def _wrong_class(name: str, model_type: str, of_its_type: str | None) -> str | None:
    """Why a language model's class is not what its model_type would be loaded as."""
    if of_its_type is None or name == of_its_type:
        return None
    return (
        f"config.json names the architecture {name} with model_type {model_type!r}, which is "
        f"{of_its_type}; mend the one that is wrong"
    )


def _described(name: str, config: dict[str, Any]) -> str | None:
    """What an architecture that is not a causal language model is; None if its name does not say."""
    if config.get("is_encoder_decoder"):
        return "an encoder-decoder (sequence to sequence) model, which continues no chat"
    if name.endswith(ENCODERS):
        return "an encoder, which fills gaps and writes no text"
    if name.endswith(CLASSIFIERS):
        return "a classifier, with a head of labels in place of a language model's"
    if "vision_config" in config or "ImageTextToText" in name:
        return (
            "a vision-language model, whose text part transformers does not load by itself; a "
            "text-only release of it can be trained"
        )
    if "Image" in name or "image_size" in config:
        return "a vision model, which reads images and writes no text"
    if "CTC" in name or "Audio" in name or "Speech" in name:
        return "a speech model"
    if name.endswith("Model"):
        return (
            "a model without a language head (an embedding model, or one that was saved without "
            "it), whose head would start at random"
        )
    return None


def quantisation_fault(config: dict[str, Any]) -> str | None:
    """Why a quantised base cannot be trained, or None; bitsandbytes' 4 bits can."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        return "quantization_config in config.json is not an object; copy the model again"
    method = str(settings.get("quant_method", "")).lower()
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    if method == "bitsandbytes":
        if settings.get("load_in_4bit"):
            return None
        return f"its weights are in 8 bits (bitsandbytes), of which 4 are served; {PLAIN}"
    shown = settings.get("format") or settings.get("fmt")
    form = f", {shown}" if shown and method != "fp8" else ""
    return (
        f"its weights are quantised ({method or 'unknown method'}{form}), which is for inference: "
        f"no LoRA is trained on them here; {PLAIN}"
    )


def has_experts(config: dict[str, Any]) -> bool:
    """Whether a config describes a mixture of experts.

    >>> has_experts({"num_local_experts": 8}), has_experts({"text_config": {"num_experts": 1}})
    (True, False)
    """
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        counts = [part.get(name) for name in EXPERTS]
        if any(isinstance(count, int) and count > 1 for count in counts):
            return True
    return False


def four_bit(config: dict[str, Any]) -> bool:
    """Whether the weights of a folder are in bitsandbytes' 4 bits already."""
    settings = config.get("quantization_config")
    return isinstance(settings, dict) and bool(settings.get("load_in_4bit"))


def code_fault(name: str, content: dict[str, Any]) -> str | None:
    """The fault of a file that names remote code (`auto_map`); None where nothing needs that code.

    Published folders often still name the code of the time before transformers had their
    architecture (Phi-3). The code is never run: where transformers has a class of the same name,
    that one is taken.
    """
    import transformers

    known = "model_type" not in content or _known_type(content["model_type"])
    missing = [c for c in _named_classes(content["auto_map"]) if not hasattr(transformers, c)]
    if known and not missing:
        return None
    return (
        f"{name} asks for remote code (auto_map), which is never run; use a plain model, one that "
        "the installed transformers has itself"
    )


def _known_type(model_type: object) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _named_classes(auto_map: object) -> list[str]:
    """The classes of an `auto_map`: `modeling_phi3.Phi3ForCausalLM` names Phi3ForCausalLM."""
    if not isinstance(auto_map, dict):
        return [""]
    found = []
    for value in auto_map.values():
        for path in value if isinstance(value, list) else [value]:
            if path is not None:
                found.append(str(path).rpartition(".")[2])
    return found
