"""What was sent to language models, filed so that people can read it.

Requests of a planner are chains of messages (`mosaic.core.types.calls`). A judge is asked thousands
of questions, and a flush to disk per question would cost more than some answers: its exchanges are
filed in groups, and only what they all begin with is a chain.
"""

from __future__ import annotations

from collections.abc import Sequence

from mosaic.core.store import Store
from mosaic.core.types.base import JsonObject
from mosaic.core.types.calls import Exchange, FiledExchange, SentMessage


def file_messages(store: Store, messages: Sequence[JsonObject]) -> str:
    """File the messages of a request that are not filed yet; the digest of the request.

    "" for no messages. Raises PausedError if the disk is full.
    """
    before: str | None = None
    for message in messages:
        before = store.put_json(SentMessage(before=before, message=message).json_data())
    return before or ""


def read_messages(store: Store, digest: str) -> list[JsonObject]:
    """The messages of a filed request, in order. Raises DamageError if one is missing."""
    messages: list[JsonObject] = []
    at: str | None = digest or None
    while at:
        sent = SentMessage.model_validate(store.get_json(at))
        messages.append(sent.message)
        at = sent.before
    return messages[::-1]


def file_exchanges(store: Store, exchanges: Sequence[Exchange]) -> str:
    """File what a judge was asked, together; the digest, "" if there is nothing to file."""
    filed = []
    for exchange in exchanges:
        first, rest = exchange.messages[:1], exchange.messages[1:]
        begins = file_messages(store, first)
        entry = FiledExchange(
            question=exchange.question, begins=begins, messages=rest, attempts=exchange.attempts
        )
        filed.append(entry.json_data())
    return store.put_json(filed) if filed else ""


def read_exchanges(store: Store, digest: str) -> list[Exchange]:
    """The exchanges that were filed together. Raises DamageError if something is missing."""
    found = []
    for data in store.get_json(digest):
        filed = FiledExchange.model_validate(data)
        messages = [*read_messages(store, filed.begins), *filed.messages]
        exchange = Exchange(question=filed.question, messages=messages, attempts=filed.attempts)
        found.append(exchange)
    return found
