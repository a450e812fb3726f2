"""Adapters as vLLM takes them: their identity, and what vLLM's LoRA can express."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from mosaic.core.errors import BoundaryError, UsageError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PLAIN_RECIPE: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "init_lora_weights": (True, False, "gaussian"),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}
"""The values of an adapter_config.json that vLLM's LoRA can express (vllm/lora/peft_helper.py)."""


def adapter_digest(adapter: Path) -> str:
    """SHA-256 over the adapter's two files. BoundaryError if one is missing."""
    total = hashlib.sha256()
    for name in ADAPTER_FILES:
        path = adapter / name
        if not path.is_file():
            raise BoundaryError(
                f"{adapter}: no {name}, so this is not an adapter that vLLM can load"
            )
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def check_adapter_recipe(adapter: Path, max_lora_rank: int) -> None:
    """UsageError if the adapter's config asks for what vLLM's LoRA does not have."""
    path = adapter / ADAPTER_FILES[0]
    config = json.loads(path.read_text())
    rank = config.get("r")
    if not isinstance(rank, int) or rank > max_lora_rank:
        raise UsageError(f"{path}: r is {rank!r}, the server takes at most {max_lora_rank}")
    for name, allowed in PLAIN_RECIPE.items():
        if name in config and config[name] not in allowed:
            raise UsageError(
                f"{path}: {name} is {config[name]!r}, which vLLM cannot serve; "
                f"allowed: {allowed[0]!r}; train without it, or use generator.kind: transformers"
            )


def copy_adapter(adapter: Path, copy: Path) -> None:
    """A complete copy of the adapter's files at `copy`, or none at all."""
    if copy.is_dir():
        return
    fresh = copy.with_name(f".{copy.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for file in ADAPTER_FILES:
        shutil.copyfile(adapter / file, fresh / file)
    fresh.rename(copy)
