"""Chats put through a tokenizer's chat template, and what a template that refuses one says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict, TypeVar

from mosaic.core.errors import MosaicError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mosaic.core.types import data

LEARN = "learn"


class Message(TypedDict):
    """One message of a chat. `learn` is False for an answer that is context only.

    A Parquet column of messages has the key everywhere, and null where a message has no mark.
    """

    role: str
    content: str
    learn: NotRequired[bool | None]


Chat = list[Message]
T = TypeVar("T")
# Failures that say nothing about the chat that was being rendered.
ELSEWHERE = (MosaicError, MemoryError, OSError)


def plain_chat(messages: Sequence[data.Message]) -> Chat:
    """A chat as templates read it, without marks of what is not to be learnt."""
    return [{"role": message.role, "content": message.content} for message in messages]


class ChatError(UsageError):
    """A chat that the model's chat template or tokenizer refuses, or that cannot be labelled.

    `position` counts from 0 among the chats that were given together.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"chat {position}: the chat template or tokenizer refuses it: {reason}")
        self.position = position
        self.reason = reason


def is_off(message: Message) -> bool:
    """Whether a message is marked as not to be learnt."""
    return message.get("learn") is False


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its class if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def render(work: Callable[[Sequence[Chat]], T], chats: Sequence[Chat]) -> T:
    """`work(chats)`, where `work` puts chats through the template and the tokenizer.

    Raises ChatError for the first chat that fails on its own. A template is a program: it may
    refuse a chat by `raise_exception`, or break in any way a Python expression can.
    """
    try:
        return work(chats)
    except ELSEWHERE:
        raise
    except Exception:
        for position, chat in enumerate(chats):
            try:
                work([chat])
            except ELSEWHERE:
                raise
            except Exception as error:
                raise ChatError(position, first_line(error)) from None
        raise


def texts_of(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat], answer_next: bool = False
) -> list[str]:
    """The text of each chat; with `answer_next` up to where the model's next answer begins.

    The template does not see the marks of messages. Raises ChatError for the first chat that it
    refuses.
    """
    if any(LEARN in message for chat in chats for message in chat):
        chats = [_unmarked(chat) for chat in chats]

    def apply(some: Sequence[Chat]) -> list[str]:
        texts: list[str] = tokenizer.apply_chat_template(
            list(some), tokenize=False, add_generation_prompt=answer_next
        )
        return texts

    return render(apply, chats) if chats else []


def _unmarked(chat: Chat) -> Chat:
    return [{"role": message["role"], "content": message["content"]} for message in chat]
