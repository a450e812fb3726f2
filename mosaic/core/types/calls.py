"""What was sent to a language model and what came back, as it is filed in a run's store.

A conversation is a chain of its messages: each names the one before it, so that what several
requests begin with is stored once, whoever asked and in whichever round.

    {"before": null, "message": {"role": "system", ...}}       <- 9f3c...
    {"before": "9f3c...", "message": {"role": "user", ...}}    <- the digest of the request
"""

from __future__ import annotations

from mosaic.core.types.base import FrozenModel, JsonObject


class SentMessage(FrozenModel):
    """A message of a request. `before` is the digest of the one that came before it."""

    before: str | None
    message: JsonObject


class Exchange(FrozenModel):
    """One question to a judge: all messages with the replies among them, and each attempt.

    `question` is the key of the question. `attempts` are the endpoint's records
    (`eval.chat.reply.Attempt`), handed on unread.
    """

    question: str
    messages: list[JsonObject]
    attempts: list[JsonObject]


class FiledExchange(FrozenModel):
    """An exchange in the store. `begins` is the digest of its first message, stored once for all."""

    question: str
    begins: str
    messages: list[JsonObject]
    attempts: list[JsonObject]
