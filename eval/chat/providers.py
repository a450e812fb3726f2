"""What is known of the habits of some providers: settings that `provider` fills in.

A key that the config gives wins. What is filled in stands in the config that a run keeps.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import JsonValue

from mosaic.core.types.base import JsonObject

Provider = Literal["openai", "azure", "mistral", "deepseek", "gemini", "vllm"]
ANY_MODEL = "*"

# Reasoning models of OpenAI refuse every temperature but their own.
FIXED_TEMPERATURE = re.compile(r"(openai/)?(o[1-9]|gpt-5)\b.*")

PRESETS: dict[str, JsonObject] = {
    "openai": {"max_tokens_field": "max_completion_tokens"},
    # A deployment has a name of its own, and its replies are named after the model behind it.
    "azure": {
        "max_tokens_field": "max_completion_tokens",
        "reply_model": ANY_MODEL,
        "key_header": "api-key",
    },
    "mistral": {"seed_field": "random_seed"},
    # Takes no schema, and no seed.
    "deepseek": {"structured": "json_object", "seed": None},
    # Refuses names that it does not know, `seed` among them.
    "gemini": {"seed": None, "strict": None},
    "vllm": {},
}


def with_preset(settings: JsonObject) -> JsonObject:
    """The settings of a chat model, with those of its provider where they are not given."""
    provider = settings.get("provider")
    preset = PRESETS.get(provider) if isinstance(provider, str) else None
    if preset is None:
        return settings
    filled: dict[str, JsonValue] = {**preset}
    model = settings.get("model")
    if provider in ("openai", "azure") and isinstance(model, str):
        if FIXED_TEMPERATURE.fullmatch(model):
            filled["temperature"] = None
    return {**filled, **settings}
