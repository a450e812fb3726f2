"""What is said to a vLLM server: control requests, settings of a generation, errors in our terms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

from eval.chat.http import Endpoint, Http
from eval.chat.reply import Fault, quoted
from eval.generators.base import VllmGeneratorConfig
from mosaic.core.errors import BoundaryError
from mosaic.core.types.runs import Sampling

# A reply may hold the log-probabilities of a whole text.
MAX_REPLY = 64 * 1024 * 1024
CONTROL_SECONDS = 120.0
QUICK_SECONDS = 10.0


class ServerGone(BoundaryError):
    """The server does not answer any more.

    The generator starts it again and goes on; users see it only in the end.
    """


class Refusal(BoundaryError):
    """The server answers with a status other than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ModelCard(TypedDict):
    """A model that a server has. `parent` is the name of an adapter's base, None for a base model."""

    id: str
    parent: str | None


def refusal(
    status: int, path: str, said: str, key: str, config: VllmGeneratorConfig
) -> BoundaryError:
    """What a status other than 200 means to the operator.

    `said` is the server's text; the key is never quoted.
    """
    text = f"vLLM answered {status} to {path}: {quoted(said, key) or 'it does not say why'}"
    if 300 <= status < 400:
        text += (
            "; a redirect is never followed, since it would take the key elsewhere; "
            "check generator.base_url"
        )
    if status in (401, 403):
        text += f"; put a valid key into the environment variable {config.api_key_env}"
    return Refusal(text, status)


def misfit(url: str, path: str) -> BoundaryError:
    """Something answers, but not as vLLM would."""
    return BoundaryError(f"{url}{path} does not answer as vLLM does; check generator.base_url")


@contextmanager
def shaped(url: str, path: str) -> Iterator[None]:
    """Raise `misfit` if a reply that is read inside does not have the shape of vLLM's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise misfit(url, path) from None


def decoded(body: bytes) -> Any:
    """The JSON value of a reply, or its text if it is not JSON.

    Its shape is checked where it is read (`shaped`).
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def generation_settings(
    max_tokens: int, stops: Sequence[int], sampling: Sampling, seed: int | None
) -> dict[str, object]:
    """Every sampling parameter, so that no default of a server or of a model folder decides one.

    `seed` is the answer's own and fixes what is drawn. A greedy answer needs none.
    """
    return {
        "max_tokens": max_tokens,
        # n answers are n requests, each with a seed of its own.
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": 1.0 if sampling.greedy else sampling.top_p,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": list(stops),
        "ignore_eos": False,
        "skip_special_tokens": True,
        "logit_bias": None,
        "seed": None if sampling.greedy else seed,
    }


class ControlRequests:
    """Requests that look at a server and register adapters.

    Each opens a connection of its own: servers come and go.
    """

    def __init__(self, config: VllmGeneratorConfig, key: str, url: str = "") -> None:
        self.config = config
        self.key = key
        self.move_to(url)

    def move_to(self, url: str) -> None:
        """The server answers at this address (ends in /v1) from now on."""
        self.url = url
        self._http = Http(self.endpoint(url.removesuffix("/v1"), keep_alive=False))

    def endpoint(self, root: str, keep_alive: bool = True) -> Endpoint:
        """Where requests go, with this server's key."""
        return Endpoint(
            root, self.config.api_key_env, self.key, max_body=MAX_REPLY, keep_alive=keep_alive
        )

    def call(
        self,
        path: str,
        body: Mapping[str, object] | None = None,
        seconds: float = CONTROL_SECONDS,
    ) -> Any:
        """The value of the reply to one request, POST if there is a body, else GET.

        `path` is below /v1, except for /health. Raises ServerGone if nothing answers, Refusal for a
        status other than 200, UsageError for a key that cannot be sent.
        """
        method: Literal["GET", "POST"] = "GET" if body is None else "POST"
        full_path = path if path == "/health" else f"/v1{path}"
        try:
            reply = self._http.request(method, full_path, body, seconds)
        except Fault as fault:
            if fault.status is not None:
                raise refusal(fault.status, path, fault.said, self.key, self.config) from None
            if fault.down:
                raise ServerGone(f"vLLM does not answer at {self.url}{path}: {fault}") from None
            raise misfit(self.url, path) from None
        return decoded(reply)

    def healthy(self) -> bool:
        """Whether the server answers and says that its engine lives."""
        try:
            self.call("/health", seconds=QUICK_SECONDS)
        except BoundaryError:
            return False
        return True

    def models(self) -> list[ModelCard]:
        """The base models and adapters that the server has."""
        answer = self.call("/models", seconds=QUICK_SECONDS)
        cards: list[ModelCard] = []
        with shaped(self.url, "/models"):
            for card in answer["data"]:
                if not isinstance(card["id"], str):
                    raise TypeError
                cards.append({"id": card["id"], "parent": card.get("parent")})
        return cards

    def has(self, name: str) -> bool:
        """Whether the server has a model or an adapter of this name."""
        return any(card["id"] == name for card in self.models())

    def load(self, name: str, folder: Path) -> None:
        """Register an adapter.

        A name that is taken is freed first: names are digests, but a path may have gone.
        """
        if self.has(name):
            self.unload(name)
        try:
            self.call("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except ServerGone:
            raise
        except BoundaryError as error:
            hint = ""
            if isinstance(error, Refusal) and error.status == 404:
                hint = (
                    "; start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                )
            raise BoundaryError(
                f"the adapter at {folder} could not be registered: {error}{hint}"
            ) from None

    def unload(self, name: str) -> None:
        self.call("/unload_lora_adapter", {"lora_name": name})
