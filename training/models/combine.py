"""Adapters added up: an adapter whose update is a weighted sum of the updates of others.

A LoRA of rank r adds (alpha / r) B A to a layer. Stacked matrices add exactly what the parts add:

    w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2]

so that k adapters of rank r become one of rank k r whose alpha is k alpha. PEFT calls this
combination `cat`. Its `linear` adds up A and B each on their own, which is another update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.core.errors import TrainingError
from training.models.adapter import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora_A.", ".lora_B."
# What must be the same in all adapters: everything but what says where its base lay.
FREE = ("base_model_name_or_path", "revision")


def combine_adapters(weights: Mapping[Path, float], out: Path) -> None:
    """Write the adapter folder `out`: the sum of the adapters' updates, each times its weight.

    The same adapters and weights give the same bytes. Raises TrainingError (`wrong_adapter`) if the
    adapters are not alike, or have other parts than the two matrices of a LoRA.
    """
    from safetensors.torch import load_file, save_file

    folders = list(weights)
    config = _shared_config(folders)
    parts = [load_file(folder / WEIGHTS) for folder in folders]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise TrainingError("adapters of other layers cannot be added up", "wrong_adapter")
    combined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        combined[name] = _stacked(name, tensors, list(weights.values()))
    config["r"] *= len(folders)
    config["lora_alpha"] *= len(folders)
    out.mkdir(parents=True)
    save_file(combined, out / WEIGHTS, metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _shared_config(folders: list[Path]) -> dict[str, int]:
    """The config that all adapters have. Raises TrainingError if they differ."""
    configs = [json.loads((folder / CONFIG).read_text()) for folder in folders]
    for config in configs[1:]:
        for name in config.keys() | configs[0].keys():
            if name not in FREE and config.get(name) != configs[0].get(name):
                raise TrainingError(
                    f"adapters of different recipes cannot be added up: {name} is "
                    f"{configs[0].get(name)!r} and {config.get(name)!r}",
                    "wrong_adapter",
                )
    first: dict[str, int] = configs[0]
    if first.get("use_rslora") or first.get("rank_pattern") or first.get("alpha_pattern"):
        raise TrainingError(
            "adapters whose ranks differ from layer to layer, or that scale by the root of their "
            "rank, cannot be added up",
            "wrong_adapter",
        )
    return first


def _stacked(name: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
    """The matrices of one layer side by side; those of the way up carry the weights."""
    import torch

    if tensors[0].dim() == 2 and DOWN in name:
        return torch.cat(tensors, dim=0).contiguous()
    if tensors[0].dim() == 2 and UP in name:
        weighted = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]
        return torch.cat(weighted, dim=1).contiguous()
    raise TrainingError(f"{name} is not a matrix of a LoRA and cannot be added up", "wrong_adapter")
