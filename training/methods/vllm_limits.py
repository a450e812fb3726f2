"""Can vLLM serve what a recipe trains?

Asked before training, so that no round is lost to an adapter that nobody can load. The limits are
those of vLLM 0.31 to 0.33, from its LoRA config and its PEFT helper.
"""

from __future__ import annotations

from mosaic.core.errors import UsageError
from mosaic.core.types.runs import LoraRecipe

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` accepts; an adapter may have any rank up to it."""


def check_servable(config: LoraRecipe, summed: int = 1) -> int:
    """The `--max-lora-rank` that a server needs for adapters of this recipe, or sums of `summed`.

    The trainer fixes everything else so that it fits: linear layers only, no bias, no DoRA, no
    extra modules, the default initialisation. `eval.generators.vllm.check_adapter_recipe` checks
    each adapter for that again. Raises UsageError if vLLM could not load the adapters.

    >>> from mosaic.core.types.runs import SftRecipe
    >>> check_servable(SftRecipe(lora_r=12)), check_servable(SftRecipe(lora_r=12), summed=3)
    (16, 64)
    """
    for rank in RANKS:
        if config.lora_r * summed <= rank:
            return rank
    times = f" times {summed} experts that are added up (fidelity)" if summed > 1 else ""
    raise UsageError(
        f"methods.sft.lora_r: {config.lora_r}{times} is more than vLLM serves; at most {RANKS[-1]}, "
        "or generator.kind: transformers"
    )
