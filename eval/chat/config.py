"""The settings of a chat model behind an OpenAI-compatible server. No heavy imports."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mosaic.core.types.base import FrozenModel

# The name of an environment variable.
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class ChatConfig(FrozenModel):
    """A model behind an OpenAI-compatible chat completions endpoint.

    `api_key_env` names the environment variable that holds the key; a local server needs none.
    `timeout_seconds` is for one attempt. `max_tokens` is the cap of an answer. A truncated answer
    is asked for again with twice the cap, up to four times the configured one. `structured` says
    whether the server takes a JSON schema.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = Field(default="mosaic", min_length=1)
    api_key_env: str = Field(default="MOSAIC_API_KEY", pattern=VARIABLE)
    max_attempts: int = Field(default=8, ge=1, le=8)
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = 1
    max_tokens: int = Field(default=2048, ge=1)
    structured: Literal["json_schema", "none"] = "json_schema"

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return plain_url(url)


def plain_url(url: str) -> str:
    """The address of an endpoint, unchanged.

    Raises ValueError for an address that cannot be asked, or that could carry a key.
    """
    # What might be a key is refused before anything that quotes the address.
    if "@" in url or "?" in url or "#" in url:
        raise ValueError(
            "must carry no key or password; put the key in the variable that api_key_env names"
        )
    parts = urlsplit(url)
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    if not is_http or not url.isprintable() or " " in url:
        raise ValueError("must be an http or https address such as http://127.0.0.1:8000/v1")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError(
            "must have a port from 1 to 65535, as in http://127.0.0.1:8000/v1, or none"
        )
    return url
