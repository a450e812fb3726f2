"""The lines that `score` reads: stored L3 items of one conversation, a shape per objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from eval.objectives.base import Channel, Objective

CLOSED = ConfigDict(extra="forbid")


def line_model(objective: Objective) -> type[BaseModel]:
    """The shape of an objective's lines: `id`, its own fields, and the items of both sides."""
    name = objective.name.title().replace("_", "")
    fields: dict[str, Any] = {"id": (str, ...)}
    for field, annotation in objective.fields.items():
        fields[field] = (annotation, ...)
    channels = (*objective.request, *objective.answers)
    if channels:
        fields["items"] = (_items(f"{name}Items", channels), ...)
    return create_model(f"{name}Line", **fields)


def _items(name: str, channels: Sequence[Channel]) -> type[BaseModel]:
    """All groups of items that an objective asks for."""
    fields: dict[str, Any] = {}
    for channel in channels:
        fields[channel.name] = (_channel(channel), ...)
    return create_model(name, __config__=CLOSED, **fields)


def _channel(channel: Channel) -> type[BaseModel]:
    """A group of items, each an integer from 0 up to its own largest value."""
    fields: dict[str, Any] = {}
    for item in channel.items:
        fields[item.name] = (Annotated[int, Field(ge=0, le=item.most)], ...)
    return create_model(channel.name, __config__=CLOSED, **fields)
