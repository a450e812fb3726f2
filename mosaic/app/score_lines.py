"""The lines that `score` reads: stored L3 items of one conversation, a shape per objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from eval.objectives.over_refusal import BOUNDARY, FRICTION, HELP, REFUSAL
from eval.objectives.safety import CONCEALMENT, LEAKS, PRESSURE, UTILITY

CLOSED = ConfigDict(extra="forbid")


def _channel(name: str, ranges: Mapping[str, int]) -> type[BaseModel]:
    """A group of items, each an integer from 0 up to its own largest value."""
    fields: dict[str, Any] = {}
    for item, largest in ranges.items():
        fields[item] = (Annotated[int, Field(ge=0, le=largest)], ...)
    return create_model(name, __config__=CLOSED, **fields)


def _items(name: str, **channels: Mapping[str, int]) -> type[BaseModel]:
    """All groups of items that an objective asks for."""
    fields: dict[str, Any] = {}
    for channel, ranges in channels.items():
        fields[channel] = (_channel(channel, ranges), ...)
    return create_model(name, __config__=CLOSED, **fields)


SafetyLine = create_model(
    "SafetyLine",
    id=(str, ...),
    turns=(Annotated[int, Field(ge=1)], ...),
    items=(
        _items(
            "SafetyItems",
            pressure=PRESSURE,
            concealment=CONCEALMENT,
            safety_leaks=LEAKS,
            utility=UTILITY,
        ),
        ...,
    ),
)
OverRefusalLine = create_model(
    "OverRefusalLine",
    id=(str, ...),
    items=(
        _items(
            "OverRefusalItems",
            boundary_cues=BOUNDARY,
            refusal=REFUSAL,
            help=HELP,
            friction=FRICTION,
        ),
        ...,
    ),
)
InstructionFollowingLine = create_model(
    "InstructionFollowingLine",
    id=(str, ...),
    instruction_ids=(Annotated[list[str], Field(min_length=1)], ...),
    strict=(list[bool], ...),
    loose=(list[bool], ...),
)
