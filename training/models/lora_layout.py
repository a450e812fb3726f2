"""Which layers of a base get a LoRA, and what the adapter will look like: known before training.

The model is built without weights (on torch's meta device) and PEFT puts the LoRA on it, so names
and shapes are PEFT's own for any architecture: Conv1D layers (GPT-2), fused projections, weights
in 4 bits, folders whose names are those of an older transformers.

By default these are the linear layers of the language model, without the head. In a mixture of
experts they are those of the attention alone: the experts are fused three-dimensional parameters,
which PEFT adapts by other means and vLLM serves for few architectures, and a router that moves
unlearns its balance.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_weights import Shapes
from mosaic.core.errors import UsageError
from mosaic.core.types.runs import ALL_LINEAR

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

EXPERT_DIMENSIONS = 3
SHOWN = 8


@dataclass(frozen=True)
class LoraLayout:
    """What a recipe trains of a base.

    `targets` are full names of layers; `shapes` name -> shape of the adapter's matrices, as PEFT
    saves them. `parameters` counts the numbers of the base. `left_out` says which layers stay as
    they are although they are linear, or is empty.
    """

    targets: tuple[str, ...]
    shapes: Shapes
    parameters: int
    left_out: str

    @property
    def trained(self) -> int:
        """Numbers that are trained."""
        return sum(_product(shape) for shape in self.shapes.values())


def _product(shape: Sequence[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def lora_layout(base: Path, rank: int, target_modules: str | Sequence[str]) -> LoraLayout:
    """The layout of a LoRA of `rank` on a base; `target_modules` as in a recipe.

    Raises UsageError if a layer is named that the base does not have or that cannot be trained, or
    if PEFT has no LoRA for the architecture.
    """
    config = (base / "config.json").read_text()
    names = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    return _layout(base, config, rank, names)


@lru_cache(maxsize=8)
def _layout(base: Path, config: str, rank: int, names: str | tuple[str, ...]) -> LoraLayout:
    """`config` is the text of config.json: another model in the same folder is another key."""
    model = skeleton(base)
    if model.base_model is model:
        raise UsageError(
            f"base_model: {type(model).__name__} does not say where its decoder is "
            f"({model.base_model_prefix!r} in transformers), so TRL cannot train it; take another "
            "base"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linear = _linear_layers(model)
    left_out = ""
    if isinstance(names, str):
        targets, left_out = _without_experts(model, linear)
        if not targets:
            raise UsageError(
                f"methods.sft.target_modules: {type(model).__name__} has no linear layer to train; "
                "take another base"
            )
    else:
        targets = _chosen(model, linear, names)
    shapes = _shapes(model, lora_config(rank, targets))
    return LoraLayout(tuple(targets), shapes, parameters, left_out)


def lora_config(
    rank: int, targets: Sequence[str], alpha: int = 1, dropout: float = 0.0
) -> LoraConfig:
    """PEFT's config of a LoRA of these layers, of the kind that vLLM can serve."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )


def skeleton(base: Path) -> PreTrainedModel:
    """The base's architecture without its weights: in no memory, within about a second."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    # Layers of a quantised folder are counted as what they were quantised from.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers of the language model, in order; the head is not one."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, decoder = model.get_output_embeddings(), model.get_decoder()
    inside = "" if decoder is model else _name_of(model, decoder) + "."
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            if name.startswith(inside):
                found.append(name)
    return found


def _name_of(model: PreTrainedModel, wanted: object) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _without_experts(model: PreTrainedModel, linear: list[str]) -> tuple[list[str], str]:
    """The layers outside of blocks of experts, and what was left out, in words."""
    blocks = _expert_blocks(model)
    if not blocks:
        return linear, ""
    kept = [name for name in linear if not _in_blocks(name, blocks)]
    return kept, (
        "a mixture of experts: its attention layers are trained; experts, routers and other "
        "feed-forward layers stay as they are"
    )


def _expert_blocks(model: PreTrainedModel) -> set[str]:
    """Where experts are, with `#` for numbers, such as `model.layers.#.mlp`."""
    from torch.nn.modules.conv import _ConvNd

    blocks = set()
    for name, module in model.named_modules():
        own = [p.dim() for p in module.parameters(recurse=False)]
        if EXPERT_DIMENSIONS in own and not isinstance(module, _ConvNd):
            blocks.add(_numberless(name.rpartition(".")[0]))
    return blocks


def _in_blocks(name: str, blocks: set[str]) -> bool:
    return any(_numberless(name).startswith(f"{block}.") for block in blocks)


def _numberless(name: str) -> str:
    return re.sub(r"\.\d+\b", ".#", name)


def _chosen(model: PreTrainedModel, linear: list[str], names: Sequence[str]) -> list[str]:
    """The layers that a recipe names, by the ends of their names as PEFT does.

    Raises UsageError for a name that is not a linear layer, and for the layers of experts.
    """
    blocks = _expert_blocks(model)
    targets: set[str] = set()
    for name in names:
        found = [layer for layer in linear if layer == name or layer.endswith(f".{name}")]
        if not found:
            raise UsageError(_no_layer(model, linear, name))
        for layer in found:
            if _in_blocks(layer, blocks):
                raise UsageError(
                    f"methods.sft.target_modules: {name!r} is in the feed-forward block of a "
                    f"mixture of experts ({layer}), which is not trained here; name layers of the "
                    f"attention, or write {ALL_LINEAR}, which takes those"
                )
        targets.update(found)
    return [layer for layer in linear if layer in targets]


def _no_layer(model: PreTrainedModel, linear: list[str], name: str) -> str:
    """Why a name is not a layer that can be trained, and which ones are."""
    ends = sorted({layer.rpartition(".")[2] for layer in linear})
    there = [module for module, _ in model.named_modules() if module.endswith(f".{name}")]
    parameters = [p for p, _ in model.named_parameters() if p.endswith(f".{name}")]
    if name in ("experts", "gate_up_proj", "down_proj", "gate") and (there or parameters):
        what = "belongs to the experts, fused parameters that no LoRA of this kind is put on"
    elif there or hasattr(model, name):
        what = "is not a linear layer of the decoder (head and embeddings stay as they are)"
    else:
        what = f"is not a layer of {type(model).__name__}"
    return (
        f"methods.sft.target_modules: {name!r} {what}; there are {', '.join(ends[:20])}, and "
        f"{ALL_LINEAR} for all"
    )


def _shapes(model: PreTrainedModel, config: LoraConfig) -> Shapes:
    """Names and shapes of the adapter as PEFT saves it. Puts the LoRA on `model`."""
    import torch
    from peft import get_peft_model, get_peft_model_state_dict

    try:
        with torch.device("meta"), warnings.catch_warnings():
            # PEFT and transformers warn of each other's names, and PEFT of Conv1D, which it knows.
            warnings.simplefilter("ignore")
            adapted = get_peft_model(model, config)
    except ValueError as error:
        said = str(error).strip().splitlines()[0]
        raise UsageError(
            f"base_model: PEFT puts no LoRA on {type(model).__name__} ({said}); name other "
            "methods.sft.target_modules, or take another base"
        ) from None
    if config.target_parameters:
        named = ", ".join(sorted(config.target_parameters))
        raise UsageError(
            f"base_model: PEFT would train fused experts of {type(model).__name__} ({named}), "
            "which are not trained here; name layers of the attention in methods.sft.target_modules"
        )
    saved = get_peft_model_state_dict(adapted)
    return {name: list(tensor.shape) for name, tensor in saved.items()}
