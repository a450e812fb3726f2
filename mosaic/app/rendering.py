"""Base model and chat template as one thing: what identifies it, and how it renders and stops."""

from __future__ import annotations

from pathlib import Path

from eval.rendering.ends import stop_ids
from eval.rendering.pins import pinned_day, pinned_reasoning
from eval.rendering.tokenizer import load_tokenizer, read_template
from mosaic.core.store import file_digest
from mosaic.core.types.base import JsonObject, digest_of
from training.models.adapter import model_digest


def base_identity(base: Path, template: Path | None) -> str:
    """The digest of a base model; of base and chat template if the config brings one."""
    digest = model_digest(base)
    if template is None:
        return digest
    read_template(template)
    return digest_of({"base": digest, "chat_template": file_digest(template)})


def rendering_identity(base: Path, template: Path | None) -> JsonObject:
    """How chats are rendered and where answers end: a part of a generator's identity."""
    tokenizer = load_tokenizer(base, template)
    text = tokenizer.chat_template
    return {
        "stop_token_ids": [*stop_ids(base, tokenizer)],
        "template_day": pinned_day(text),
        "template_reasoning": pinned_reasoning(text),
    }
