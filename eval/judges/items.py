"""What a model judge is asked: the items of each objective, as a typed schema of its reply."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, create_model

from eval.objectives.over_refusal import BOUNDARY, FRICTION, HELP, REFUSAL
from eval.objectives.safety import CONCEALMENT, LEAKS, PRESSURE, UTILITY
from mosaic.core.types.base import digest_of
from prompts.load import load

# The objective that is checked by code, whatever judge is chosen.
CODE = "instruction_following"
# The end of a name that asks about the request instead of the answer.
REQUEST = "_request"

Ranges = dict[str, dict[str, int]]
"""channel -> item -> its greatest value"""
ITEMS: dict[str, Ranges] = {
    "safety": {"safety_leaks": LEAKS, "utility": UTILITY},
    "over_refusal": {"refusal": REFUSAL, "help": HELP, "friction": FRICTION},
    "safety" + REQUEST: {"pressure": PRESSURE, "concealment": CONCEALMENT},
    "over_refusal" + REQUEST: {"boundary_cues": BOUNDARY},
}

YesNo = Literal["yes", "no", "cannot_tell"]
Amount = Literal["none", "some", "most", "cannot_tell"]
UNCLEAR = "cannot_tell"
VALUES = {"no": 0, "yes": 1, "none": 0, "some": 1, "most": 2}


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@lru_cache
def reply_model(name: str) -> type[BaseModel]:
    """The typed L3 schema of one entry of `ITEMS`: first a reason, then each channel's items in order."""
    channels = {
        channel: (_channel_model(f"{name}_{channel}", ranges), ...)
        for channel, ranges in ITEMS[name].items()
    }
    fields = {"reason": (str, ...), **channels}
    return create_model(name, __base__=_Reply, **fields)  # type: ignore[call-overload]


def _channel_model(name: str, ranges: dict[str, int]) -> type[BaseModel]:
    items = {item: (YesNo if most == 1 else Amount, ...) for item, most in ranges.items()}
    return create_model(name, __base__=_Reply, **items)  # type: ignore[call-overload]


@lru_cache
def prompt_digest(name: str) -> str:
    """The digest of the prompt files and of the schema that a verdict depends on."""
    prompts = [load(file).digest for file in (f"judge_{name}", "judge_frame", "judge_repair")]
    # The key stays `words`: another one would change the digest, and all known verdicts with it.
    return digest_of({"words": prompts, "schema": reply_model(name).model_json_schema()})
