"""How long the conversations of a suite may get, and how long a model allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic.core.types.evaluation import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def model_length(base: Path) -> int | None:
    """How many tokens a model folder's config allows in one chat.

    None if it does not say, or stretches positions.
    """
    config = json.loads((base / "config.json").read_text())
    config = {**config, **(config.get("text_config") or {})}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    # These two name the length that is reached by stretching.
    plain = "factor" not in rope or rope.get("rope_type") in ("llama3", "longrope")
    return config.get("max_position_embeddings") if plain else None


def chat_lengths(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], answer: int
) -> list[int]:
    """Tokens of each whole conversation: its turns in the chat template, `answer` tokens per turn."""
    chats: list[list[dict[str, str]]] = []
    for prompt in prompts:
        chat = [{"role": "system", "content": prompt.system}] if prompt.system else []
        for text in prompt.turns:
            chat += [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
        chats.append(chat[:-1])
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [len(ids) + answer * len(p.turns) for ids, p in zip(rows, prompts, strict=True)]
