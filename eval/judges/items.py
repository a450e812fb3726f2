"""What a model judge is asked: the items of an objective's side, as a typed schema of its reply."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from eval.objectives.base import Channel, Objective, Side
from mosaic.core.types.base import digest_of
from prompts.load import Prompt, load

# The end of a name that asks about the request instead of the answer.
REQUEST = "_request"

YesNo = Literal["yes", "no", "cannot_tell"]
Amount = Literal["none", "some", "most", "cannot_tell"]
UNCLEAR = "cannot_tell"
VALUES = {"no": 0, "yes": 1, "none": 0, "some": 1, "most": 2}


@dataclass(frozen=True)
class ItemSet:
    """The items that one question asks for, and the words that explain them."""

    objective: str
    side: Side
    channels: tuple[Channel, ...]
    words: Prompt

    @property
    def name(self) -> str:
        """The objective, with an ending if the question is about the request."""
        return self.objective + (REQUEST if self.side == "request" else "")


def items_of(objective: Objective, side: Side) -> ItemSet:
    """What a model is asked about one side of an objective's conversations."""
    channels = objective.answers if side == "answers" else objective.request
    return ItemSet(objective.name, side, channels, objective.words(side))


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@lru_cache
def reply_model(items: ItemSet) -> type[BaseModel]:
    """The typed L3 schema of a reply: first a reason, then each channel's items in order."""
    channels = {c.name: (_channel_model(items.name, c), ...) for c in items.channels}
    # Name -> (type, default). The names are known at run time only.
    fields: dict[str, Any] = {"reason": (str, ...), **channels}
    return create_model(items.name, __base__=_Reply, **fields)


def _channel_model(name: str, channel: Channel) -> type[BaseModel]:
    items = {i.name: (YesNo if i.most == 1 else Amount, ...) for i in channel.items}
    model = f"{name}_{channel.name}"
    return create_model(model, __base__=_Reply, **items)  # type: ignore[call-overload]


@lru_cache
def prompt_digest(items: ItemSet) -> str:
    """The digest of the words and of the schema that a verdict depends on."""
    words = [items.words.digest, load("judge_frame").digest, load("judge_repair").digest]
    # The key stays `words`: another one would change the digest, and all known verdicts with it.
    return digest_of({"words": words, "schema": reply_model(items).model_json_schema()})
