"""What `validate` says of the training to come: steps, tokens a step, memory; and what is unusual.

The memory is an estimate for one device, within about a third, and says what it is made of:

* The base's weights: 2 or 4 bytes a number; in 4 bits 0.52 bytes (NF4 and its scales), but for
  the embedding and the head, which stay in the recipe's format.
* The adapter: 16 bytes a number (weight, gradient and Adam's two moments in float32).
* Activations of the largest micro-batch: 17 numbers of the hidden size a layer and token (Korthikanti
  et al., arXiv 2205.05198, table 2, without the attention's scores), in the recipe's format. With
  gradient checkpointing one such number a layer, and one layer whole.
* Logits of that batch and their gradient, in float32.
* With `generator.kind: transformers` the base once more, in the generator's format: it stays loaded
  while a training runs. While an adapter answers, a merged copy takes the training's place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.model_folder import vocabulary_size
from eval.model_loading import quantised
from mosaic.app.bases import base_folder
from mosaic.app.config import RunConfig
from mosaic.app.shapes import Finding
from mosaic.app.smoke import first_training_set
from mosaic.app.wiring import Inputs
from mosaic.core.types.runs import LoraRecipe
from training.methods.batches import largest_batch, pack
from training.methods.hf import loading_of
from training.models.lora_layout import LoraLayout, lora_layout

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.52
ADAPTER_BYTES = 16
ACTIVATIONS = 17
LOGIT_BYTES = 8
GIB = 2**30
# Fewer optimiser steps in an epoch than this hardly follow a warm-up and a decay.
FEW_STEPS = 30
# The usual learning rates of LoRA, with which smaller models are not compared.
LOW_RATE, HIGH_RATE, COMPARED = 1e-5, 1e-3, 50_000_000
WARNING = "warning"


@dataclass(frozen=True)
class TrainingSize:
    """One epoch of a training set: rows, tokens and optimiser steps; positions of the largest batch."""

    rows: int
    tokens: int
    steps: int
    largest: int


def training_size(lengths: Sequence[int], recipe: LoraRecipe) -> TrainingSize:
    """The size of a training set with rows of these lengths, in tokens.

    >>> from mosaic.core.types.runs import SftRecipe
    >>> training_size([10] * 48, SftRecipe(batch_size=8))
    TrainingSize(rows=48, tokens=480, steps=6, largest=80)
    """
    if recipe.packing:
        units = len(pack(lengths, recipe.max_length))
        largest = sum(lengths[row] for row in largest_batch(lengths, recipe))
    else:
        units = len(lengths)
        batch = largest_batch(lengths, recipe)
        largest = len(batch) * max((lengths[row] for row in batch), default=0)
    batches = math.ceil(units / recipe.batch_size)
    steps = math.ceil(batches / recipe.gradient_accumulation)
    return TrainingSize(len(lengths), sum(lengths), steps, largest)


def training_findings(config: RunConfig, inputs: Inputs) -> list[Finding]:
    """Lines for `validate`; what is unusual is a line `warning` of its own."""
    recipe, base = config.recipe, base_folder(config.base_model)
    curated = first_training_set(config, inputs)
    lengths = curated.n_tokens.tolist()
    size = training_size(lengths, recipe)
    layout = lora_layout(base, recipe.lora_r, recipe.target_modules)
    return [
        _steps(size, recipe),
        _layers(layout),
        _memory_line(config, base, layout, size),
        *_warnings(size, recipe, layout),
    ]


def _steps(size: TrainingSize, recipe: LoraRecipe) -> Finding:
    each = size.tokens / max(1, size.steps)
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    result = (
        f"{size.rows:,} rows, {size.tokens:,} tokens: {size.steps:,} optimiser steps an epoch of "
        f"{each:,.0f} tokens, {epochs}"
    )
    return Finding(check="training steps", result=result)


def _layers(layout: LoraLayout) -> Finding:
    share = layout.trained / max(1, layout.parameters)
    left_out = f"; {layout.left_out}" if layout.left_out else ""
    result = (
        f"{layout.trained:,} numbers in {len(layout.targets)} layers, {share:.2%} of the base's "
        f"{layout.parameters:,}{left_out}"
    )
    return Finding(check="trained layers", result=result)


def _memory_line(config: RunConfig, base: Path, layout: LoraLayout, size: TrainingSize) -> Finding:
    parts = memory(config, base, layout, size)
    shown = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items())
    result = f"about {_gib(sum(parts.values()))} expected ({shown})"
    there = _device_memory()
    if there is not None:
        result += f"; the GPU has {_gib(there)}"
        if sum(parts.values()) > there:
            result += (
                ", which may not do: lower methods.sft.batch_size, set gradient_checkpointing, or "
                "load_in_4bit"
            )
    return Finding(check="memory", result=result)


def memory(
    config: RunConfig, base: Path, layout: LoraLayout, size: TrainingSize
) -> dict[str, float]:
    """Bytes that a training takes on its device, by part (see the module's text)."""
    recipe = config.recipe
    number = BYTES[recipe.dtype]
    model = text_config(base)
    hidden, layers = (
        _dimension(model, "hidden_size", "n_embd"),
        _dimension(model, "num_hidden_layers", "n_layer", "num_layers"),
    )
    vocabulary = vocabulary_size(model) or 0
    tied = bool(model.get("tie_word_embeddings", True))
    parts = {"weights": float(layout.parameters * number)}
    if quantised(base, loading_of(recipe)):
        kept = vocabulary * hidden * (1 if tied else 2)
        parts["weights"] = kept * number + (layout.parameters - kept) * NF4_BYTES
    parts["adapter"] = float(layout.trained * ADAPTER_BYTES)
    layer = ACTIVATIONS * hidden * size.largest * number
    if recipe.gradient_checkpointing:
        parts["activations"] = layer + layers * hidden * size.largest * number
    else:
        parts["activations"] = float(layers * layer)
    parts["logits"] = float(size.largest * vocabulary * LOGIT_BYTES)
    if config.generator.kind == "transformers":
        answering = layout.parameters * BYTES[config.generator.dtype]
        four = quantised(base, loading_of(recipe))
        parts["answering base"] = parts["weights"] if four else float(answering)
    return parts


def text_config(base: Path) -> dict[str, Any]:
    """config.json of a base, or the part of it that describes the language model."""
    config = json.loads((base / "config.json").read_text())
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _dimension(config: dict[str, Any], *names: str) -> int:
    """The first of these fields that a config has; 0 if it has none."""
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    return 0


def _device_memory() -> int | None:
    """Bytes of the GPU's memory, None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:.0f} MiB"


def _warnings(size: TrainingSize, recipe: LoraRecipe, layout: LoraLayout) -> list[Finding]:
    found = []
    if size.steps < FEW_STEPS:
        found.append(
            f"an epoch is {size.steps:,} optimiser steps, fewer than {FEW_STEPS}: lower "
            "methods.sft.batch_size or gradient_accumulation, or raise budget.tokens_per_round or "
            "methods.sft.epochs"
        )
    rate = recipe.learning_rate
    if layout.parameters > COMPARED and not LOW_RATE <= rate <= HIGH_RATE:
        found.append(
            f"methods.sft.learning_rate: {rate:g} is far from what is usual for LoRA, {LOW_RATE:g} "
            f"to {HIGH_RATE:g}; 2e-4 is what LoRA and QLoRA were published with (arXiv 2106.09685, "
            "2305.14314)"
        )
    return [Finding(check=WARNING, result=text) for text in found]
