"""Can vLLM serve what this recipe trains? Asked before training, so that no round is lost to an adapter nobody can load.

The limits are vLLM's (0.31 to 0.33, its LoRA config and PEFT helper).
"""

from __future__ import annotations

from mosaic.core.errors import UsageError
from mosaic.core.types.runs import Recipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` accepts; an adapter may have any rank up to it."""


def check_servable(config: Recipe) -> int:
    """The `--max-lora-rank` a server needs for adapters of this recipe. UsageError where vLLM could not load them.

    Everything else of the recipe is fixed by the trainer and fits: linear layers only, no bias, no DoRA, no extra
    modules, the default initialisation. `eval.generators.vllm.check_adapter_recipe` holds each adapter to that again.
    """
    for rank in RANKS:
        if config.lora_r <= rank:
            return rank
    raise UsageError(
        f"methods.sft.lora_r: {config.lora_r} is more than vLLM serves; at most {RANKS[-1]}, "
        "or generator.kind: transformers"
    )
