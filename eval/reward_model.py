"""The reward model: which level from 1 to 5 an answer has, under several objectives at once.

One encoder, the base's own transformer with a LoRA, reads a chat up to the end of its last answer.
A linear head per objective reads the hidden state of that answer's last token, h:

    p_i = softmax((W_i h + b_i) / T_i)          over the classes of head i

T_i is the head's temperature, fitted on answers that were held out. After MOSLIM (arXiv
2505.20336). Trained by `training.methods.reward_model`; in a folder of its own lie

    adapter_model.safetensors, adapter_config.json    the encoder's LoRA
    heads.safetensors                                 weight and bias of each head
    reward_model.json                                 the card: heads, classes, temperatures
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, ValidationError

from eval.calibration import Floats, log_softmax
from eval.model_loading import PLAIN, Loading, free_memory, load_base
from eval.rendering.probe import turn_shape
from eval.rendering.render import Chat, ChatError
from eval.rendering.tokenizer import load_tokenizer
from eval.rendering.turns import TurnEncoder
from mosaic.core.errors import UsageError
from mosaic.core.types.base import FrozenModel

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS, HEADS, CARD = "adapter_model.safetensors", "heads.safetensors", "reward_model.json"
BATCH = 64
Probabilities = dict[str, dict[int, float]]
"""objective -> level -> probability"""


class HeadCard(FrozenModel):
    """One head. `classes` are the levels that it tells apart, `answers` how many it learned from.

    `absent` are the levels of the scale that it does not know, since too few answers had them: it
    can neither give them nor be asked for them. The last figures are of `held_out` answers, at the
    temperature that was fitted on them; None without any.
    """

    objective: str
    classes: list[int] = Field(min_length=2)
    answers: dict[int, int]
    absent: list[int]
    temperature: float = Field(default=1.0, gt=0)
    held_out: int = 0
    balanced_accuracy: float | None = None
    calibration_error: float | None = None


class RewardModelCard(FrozenModel):
    """What a reward model is. `base` is the digest of the model that it was trained on.

    `left_out` are objectives without a head, `dropped` counts answers that nothing was learned
    from; both say why.
    """

    version: Literal[1] = 1
    base: str
    dtype: str
    max_length: int
    heads: list[HeadCard]
    left_out: dict[str, str] = {}
    dropped: dict[str, int] = {}

    def head(self, objective: str) -> HeadCard:
        """UsageError if the model has no head of this objective."""
        for head in self.heads:
            if head.objective == objective:
                return head
        there = ", ".join(head.objective for head in self.heads)
        why = self.left_out.get(objective, "no answer was judged under it")
        raise UsageError(
            f"the reward model has no head for {objective!r} ({why}); there are {there}"
        )


@dataclass(frozen=True)
class Reading:
    """What the model says of a chat's last answer; `reason` says why it could not be read."""

    probabilities: Probabilities
    reason: str = ""


class ChatReader:
    """Chats as token ids that end with the last answer's last token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._encoder = TurnEncoder(tokenizer, turn_shape(tokenizer))
        self._max_length = max_length

    def ids(self, chat: Chat) -> list[int]:
        """Raises ChatError for a chat that cannot be rendered, ends in no answer, or is too long."""
        if not chat or chat[-1]["role"] != "assistant":
            raise ChatError(0, "it does not end with an answer")
        (tokenised,) = self._encoder.encode([chat])
        ids = tokenised.ids[: tokenised.answers[-1].end]
        if len(ids) > self._max_length:
            raise ChatError(0, f"it has {len(ids)} tokens of at most {self._max_length}")
        return ids


def last_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The hidden state of each row's last token, as the language head would read it.

    `ids` and `mask` have shape (rows, tokens), padded on the right; the result (rows, width), in
    float32.
    """
    import torch

    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    states = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    rows = torch.arange(len(ids), device=ids.device)
    return states[rows, mask.sum(dim=1) - 1].float()


def new_heads(model: PreTrainedModel, classes: Sequence[int]) -> nn.ModuleList:
    """A linear head for each number of classes, as wide as what the language head reads."""
    from torch import nn

    width = model.get_output_embeddings().weight.shape[1]
    return nn.ModuleList(nn.Linear(width, count) for count in classes)


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) of rows of token ids, padded on the right: shape (rows, longest row)."""
    import torch

    shape = (len(rows), max(len(row) for row in rows))
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


def head_logits(
    model: PreTrainedModel, heads: nn.ModuleList, rows: Sequence[Sequence[int]]
) -> list[Floats]:
    """What each head says of each row of token ids, at temperature 1: (rows, classes) per head."""
    import torch

    model.eval()
    found = [np.zeros((len(rows), head.out_features)) for head in heads]
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            ids, mask = padded([rows[row] for row in batch])
            states = last_states(model, ids.to(model.device), mask.to(model.device))
            for number, head in enumerate(heads):
                found[number][batch] = head(states).double().cpu().numpy()
    return found


def save_heads(heads: nn.ModuleList, names: Sequence[str], folder: Path) -> None:
    """Write the heads as safetensors: `NAME.weight` (classes, width) and `NAME.bias`."""
    from safetensors.torch import save_file

    tensors = {}
    for name, head in zip(names, heads, strict=True):
        tensors[f"{name}.weight"] = head.weight.detach().cpu().contiguous()
        tensors[f"{name}.bias"] = head.bias.detach().cpu().contiguous()
    save_file(tensors, folder / HEADS)


def load_heads(heads: nn.ModuleList, names: Sequence[str], folder: Path) -> None:
    """Read what `save_heads` wrote into heads of the same shapes."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / HEADS)
    with torch.no_grad():
        for name, head in zip(names, heads, strict=True):
            head.weight.copy_(tensors[f"{name}.weight"])
            head.bias.copy_(tensors[f"{name}.bias"])


def read_card(folder: Path) -> RewardModelCard:
    """The card of a reward model's folder. Raises UsageError if it cannot be read."""
    path = folder / CARD
    try:
        return RewardModelCard.model_validate(json.loads(path.read_text()))
    except (OSError, ValueError, ValidationError) as error:
        first = str(error).strip().splitlines()[0]
        raise UsageError(f"{path}: not the card of a reward model: {first}") from None


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model, loaded when it is first asked. `template` as for the base."""

    folder: Path
    base_model: Path
    template: Path | None = None
    loading: Loading = PLAIN

    @cached_property
    def card(self) -> RewardModelCard:
        return read_card(self.folder)

    @cached_property
    def _reader(self) -> ChatReader:
        return ChatReader(load_tokenizer(self.base_model, self.template), self.card.max_length)

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, nn.ModuleList]:
        import torch
        from peft import PeftModel

        if not (self.folder / WEIGHTS).is_file():  # PEFT would look for a pickle next
            raise UsageError(f"{self.folder}: {WEIGHTS} is missing; copy the reward model again")
        base = load_base(self.base_model, self.card.dtype, self.loading)
        heads = new_heads(base, [len(head.classes) for head in self.card.heads])
        load_heads(heads, [head.objective for head in self.card.heads], self.folder)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = PeftModel.from_pretrained(base, self.folder).to(device).eval()
        return model, heads.to(device).eval()

    def load(self) -> None:
        """Load the model now rather than with the first answer."""
        _ = self._loaded

    def close(self) -> None:
        """Give back the model's memory; the next answer loads it again."""
        if self.__dict__.pop("_loaded", None) is not None:
            free_memory()

    def read(self, chats: Sequence[Chat]) -> list[Reading]:
        """The probabilities of the levels of each chat's last answer, at the heads' temperatures.

        A chat that cannot be read has none, and a reason.
        """
        rows: list[list[int]] = []
        places: list[int] = []
        readings = [Reading({})] * len(chats)
        for place, chat in enumerate(chats):
            try:
                rows.append(self._reader.ids(chat))
                places.append(place)
            except ChatError as error:
                readings[place] = Reading({}, error.reason)
        if not rows:
            return readings
        logits = head_logits(*self._loaded, rows)
        scaled = []
        for head, values in zip(self.card.heads, logits, strict=True):
            scaled.append(np.exp(log_softmax(values / head.temperature)))
        for row, place in enumerate(places):
            probabilities: Probabilities = {}
            for head, values in zip(self.card.heads, scaled, strict=True):
                own = values[row].tolist()
                probabilities[head.objective] = dict(zip(head.classes, own, strict=True))
            readings[place] = Reading(probabilities)
        return readings
