"""The two failures that a call may end in, and what a person is told to do about each."""

from __future__ import annotations

from eval.chat.config import ChatConfig
from eval.chat.fault import TLS, Fault, quoted
from eval.chat.refusals import mend
from eval.chat.reply import Attempt
from mosaic.core.errors import BoundaryError, PausedError
from mosaic.core.types.base import JsonObject

# Statuses that the same request would get again.
HOPELESS = (400, 401, 403, 404, 405, 413, 422)
# Faults of a server that answers with status 200: a body that is not JSON, one that is not a completion,
# and an error.
STRANGE = ("body", "envelope", "error")
REFUSES = "the endpoint refuses the request"


class ChatUnavailable(PausedError):
    """The endpoint does not answer as a chat server, or may not be asked any more.

    `attempts` records the requests that were made in vain. `told` are messages that were added within
    the call.
    """

    def __init__(self, message: str, attempts: list[Attempt]) -> None:
        super().__init__(message)
        self.attempts = attempts
        self.told: list[JsonObject] = []


class LimitReached(ChatUnavailable):
    """A limit of the run does not allow another attempt."""

    def __init__(self, message: str) -> None:
        super().__init__(message, [])


class BadReply(BoundaryError):
    """The endpoint answers, but gave no usable reply.

    `kind` names the gate that the last reply failed (refused, truncated, unparsable, body,
    envelope, error, http_400), or the limit that ended the call (allowance, deadline). `refusal`
    says how the endpoint refused the request itself, else "". `said` is what the server said of its
    last reply, fit for a message. `told` are messages that were added within the call.
    """

    def __init__(
        self,
        message: str,
        kind: str,
        attempts: list[Attempt],
        refusal: str = "",
        said: str = "",
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = attempts
        self.told: list[JsonObject] = []
        self.refusal = refusal
        self.said = said

    @property
    def strange(self) -> bool:
        """Whether the server answered something else than a completion: not the model's words."""
        return self.kind in STRANGE


def failure_of(
    config: ChatConfig, key: str, fault: Fault, attempts: list[Attempt], body: JsonObject
) -> ChatUnavailable | BadReply:
    """The error that a call ends with after its last fault, saying what to do next.

    `key` is the key, which no message may hold; `body` the last request.
    """
    where = f"{config.model} at {config.base_url}"
    plural = "s" if len(attempts) != 1 else ""
    count = f"{len(attempts)} attempt{plural}, the last: {fault.kind}"
    tried = f"{count} ({fault})"
    said = quoted(fault.said, key)
    reason = f": {said}" if said else ""
    if fault.kind == "other_model":
        need = (
            f"write `model: {said}` in the config if that is the model meant, or "
            f"`chat.reply_model: {said}` if requests must name it otherwise"
        )
        return ChatUnavailable(f"{where}: the server answers as {said}; {need} ({count})", attempts)
    if fault.unpaid:
        text = "the provider wants payment, or the quota of the key is used up"
        need = "mend that with the provider, then resume"
        return ChatUnavailable(f"{where}: {text}: {tried}{reason}; {need}", attempts)
    refusal = f"{REFUSES} ({fault}): {said or 'it does not say why'}"
    if fault.status in (401, 403):
        need = f"put a valid key into the environment variable {config.api_key_env}, then resume"
        return ChatUnavailable(f"{where} refuses the key: {tried}{reason}; {need}", attempts)
    if fault.status in (404, 405):
        need = "check base_url and model against the server's /models, then resume"
        return ChatUnavailable(f"{where}: {refusal}; {count}; {need}", attempts)
    if fault.status in HOPELESS:
        mended = mend(fault.said, fault.param, body)
        if mended:
            refusal += f"; set {mended}"
        return BadReply(f"{where}: {refusal}; {count}", fault.kind, attempts, refusal)
    if not fault.down:
        text = f"no usable reply from {where}: {tried}{reason}"
        if fault.kind == "truncated":
            text += "; raise chat.max_tokens"
        return BadReply(text, fault.kind, attempts, said=said)
    return ChatUnavailable(f"{where} {_outage(config, fault, tried, reason)}", attempts)


def _outage(config: ChatConfig, fault: Fault, tried: str, reason: str) -> str:
    """What is wrong with an endpoint that gave no whole reply, and what to do about it."""
    if str(fault).startswith(TLS):
        need = "check http or https in chat.base_url, and the server's certificate"
        return f"gives no secure connection: {tried}; {need}, then resume"
    if fault.kind == "connect":
        return f"does not answer: {tried}; start the server, then resume"
    if fault.kind == "timeout":
        need = "look at the server's load, or raise chat.timeout_seconds"
        return f"does not answer in time: {tried}; {need}, then resume"
    if fault.kind == "transport":
        return f"breaks off its replies: {tried}; look at the server's log, then resume"
    if fault.status is not None and fault.status < 400:
        return f"sends requests elsewhere: {tried}; check chat.base_url, then resume"
    return f"cannot answer now: {tried}{reason}; resume when it can"
