"""The settings of a chat model behind an OpenAI-compatible server. No heavy imports."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from eval.chat.providers import ANY_MODEL as ANY_MODEL
from eval.chat.providers import Provider, with_preset
from mosaic.core.types.base import FrozenModel, JsonObject

# The name of an environment variable.
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


# A field of a request.
FIELD = r"^[A-Za-z_][A-Za-z0-9_]*$"
# What MOSAIC says itself in each request.
OWN_FIELDS = ("model", "messages", "tools", "tool_choice", "response_format", "stream", "n")
# Fields that keys of their own say, which limits, verdicts and retries rest on.
KEYS = {
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "temperature": "temperature",
    "seed": "seed",
    "random_seed": "seed",
}
KEYLIKE = re.compile(r"(?i).*(api_?key|secret|password|authorization|bearer|access_?token).*")
LATER_FIELDS = (
    "provider",
    "max_tokens_field",
    "seed_field",
    "strict",
    "tool_choice",
    "extra_body",
    "reply_model",
    "return_fields",
    "key_header",
)


class ChatConfig(FrozenModel):
    """A model behind an OpenAI-compatible chat completions endpoint.

    `api_key_env` names the environment variable that holds the key; a local server needs none.
    `timeout_seconds` is for one attempt. `max_tokens` is the cap of an answer. A truncated answer
    is asked for again with twice the cap, up to four times the configured one. `structured` says
    whether the server takes a JSON schema, only the wish for JSON, or neither.

    Servers differ in the fields that they take. `provider` fills in what is known of one of them
    (`eval.chat.providers`); a key that is given wins. `max_tokens_field` and `seed_field` are the
    names of the cap and of the seed. A cap without a name, a temperature, a seed, `strict` or a
    `tool_choice` of null is left out; `max_tokens: null` says the same as `max_tokens_field: null`.
    `extra_body` holds fields of the server's own. `reply_model` is the name under which the server
    answers, if it is not `model`; `*` takes any. `return_fields` says what of an assistant's
    message goes back: all of it, or only what every server knows. `key_header: api-key` sends the
    key in that header too.
    """

    provider: Provider | None = Field(default=None)
    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = Field(default="mosaic", min_length=1)
    api_key_env: str = Field(default="MOSAIC_API_KEY", pattern=VARIABLE)
    max_attempts: int = Field(default=8, ge=1, le=8)
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600)
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    seed: int | None = 1
    max_tokens: int = Field(default=2048, ge=1)
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = "max_tokens"
    seed_field: str = Field(default="seed", pattern=FIELD)
    strict: bool | None = True
    tool_choice: Literal["auto", "required", "any"] | None = "auto"
    extra_body: JsonObject = {}
    reply_model: str | None = Field(default=None, min_length=1)
    return_fields: Literal["all", "standard"] = "all"
    key_header: Literal["api-key"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        cap = data.get("max_tokens", 0)
        if cap is None or cap == "max_completion_tokens":  # the cap's name, or none
            others = {name: value for name, value in data.items() if name != "max_tokens"}
            data = {**others, "max_tokens_field": cap}
        return with_preset(data)

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> JsonObject:
        """Without the later fields that are as ever: digests of earlier configs stay as they are.

        With a provider all are written, so that reading them back does not fill them in again.
        """
        data: JsonObject = write(self)
        if self.provider is None:
            for name in LATER_FIELDS:
                if data.get(name) == type(self).model_fields[name].default:
                    data.pop(name, None)
        return data

    @field_validator("extra_body")
    @classmethod
    def _not_our_own(cls, fields: JsonObject) -> JsonObject:
        taken = [name for name in fields if name in OWN_FIELDS]
        if taken:
            raise ValueError(f"{', '.join(taken)}: MOSAIC says that itself in each request")
        for name in fields:
            if name in KEYS:
                raise ValueError(f"{name}: set chat.{KEYS[name]}; it is not to be said twice")
            if KEYLIKE.fullmatch(name.replace("-", "_")):
                raise ValueError(
                    f"{name}: a config is kept with its run; put the key in the variable that "
                    "api_key_env names"
                )
        return fields

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
