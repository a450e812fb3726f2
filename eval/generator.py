"""The seam of generation: prompts in, the model's own answers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field

from mosaic.types import Noun, Prompt, Response


class Generator(Protocol):
    """Answers with one base model, with or without an adapter."""

    def generate(self, prompts: Sequence[Prompt], adapter: Path | None) -> list[Response]:
        """One response per prompt, in order; multi-turn prompts are replayed with the model's own answers as context."""
        ...

    def log_likelihood(self, texts: Sequence[str], adapter: Path | None) -> list[float]:
        """Mean natural log-likelihood per token of each text."""
        ...


class TransformersGeneratorConfig(Noun):
    """Greedy decoding in process. `max_new_tokens` counts per answer."""

    kind: Literal["transformers"] = "transformers"
    batch_size: int = Field(default=64, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
