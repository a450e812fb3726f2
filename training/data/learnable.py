"""What of a chat teaches something: everything up to its last answer that is learnt.

Turns behind that answer are charged and teach nothing, so they are cut off and counted.
"""

from __future__ import annotations

from training.models.chat_template import Chat, is_off

CUT = "turns after the last answer that is learnt: cut off"
NOTHING = "messages: no assistant turn, so there is nothing to learn from"
ALL_OFF = "messages: every assistant turn is marked as not to be learnt"
LATE_SYSTEM = "messages: a system message comes after the first message"


def learnable_part(messages: Chat) -> Chat:
    """The messages up to the last answer that is learnt; empty without such an answer.

    >>> learnable_part([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])
    [{'role': 'assistant', 'content': 'a'}]
    """
    for end in range(len(messages), 0, -1):
        last = messages[end - 1]
        if last["role"] == "assistant" and not is_off(last):
            return messages if end == len(messages) else messages[:end]
    return []


def why_nothing(messages: Chat) -> str:
    """Why a chat without a learnable part has none."""
    some = any(message["role"] == "assistant" for message in messages)
    return ALL_OFF if some else NOTHING
