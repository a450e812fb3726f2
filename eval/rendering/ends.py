"""Where an answer ends: every token that a generator stops at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eval.model_folder import stop_token_ids
from eval.rendering.probe import turn_shape

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stop_ids(base: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ends that the folder and the tokenizer name, and those that the template's turns have.

    The last are what training teaches. A base whose turns end in another token than it names would
    otherwise run on through turns that it invents.

    Raises UsageError if the template's turns have no end that is a token.
    """
    return sorted({*named_stops(base, tokenizer), *turn_shape(tokenizer).ends})


def named_stops(base: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ends that a model folder names: in its generation config or config, and as eos."""
    stops = set(stop_token_ids(base))
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    return sorted(stops)
