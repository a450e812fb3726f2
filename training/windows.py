"""Long chats as windows of whole turns. A turn is a user message and all that follows until the next.

System messages are repeated in every window. Windows start every second turn (MOSAIC's stride), take turns while
they fit, and end with the chat: no window is a part of another, and every turn that fits the limit is in one. Where
two neighbouring turns do not fit together, a window also starts at the turn that would otherwise be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Chat = list[dict[str, str]]
Count = Callable[[Sequence[Chat]], list[int]]
STRIDE = 2


def turns_of(messages: Chat) -> tuple[Chat, list[Chat]]:
    """(system messages, turns)."""
    system = [m for m in messages if m["role"] == "system"]
    turns: list[Chat] = []
    for message in messages:
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def spans(
    lengths: Sequence[int], limit: int, fitting: Callable[[int, int], int] = lambda start, end: end
) -> list[tuple[int, int]]:
    """(start, end) of each window over turns of the given lengths; a turn above the limit is in none. `fitting` says
    where a window really ends, where turns together are not as long as one by one."""
    found: list[tuple[int, int]] = []
    start, last = 0, len(lengths)
    while start < last:
        end, used = start, 0
        while end < last and used + lengths[end] <= limit:
            used += lengths[end]
            end += 1
        end = fitting(start, end)
        covered = found[-1][1] if found else 0
        if end > start and end > covered:
            found.append((start, end))
        if end == last:
            break
        start = max(start + 1, min(start + STRIDE, end if end > start else start + 1))
    return found


def windows(messages: Chat, limit: int, count: Count) -> tuple[list[tuple[Chat, int]], int]:
    """(messages, tokens) of each window of a chat that is longer than `limit`, and how many turns are in none of them,
    being above the limit by themselves.

    Turns are counted once each, and what a template puts before every chat (system messages, a date) by how much shorter
    the first two are together. From where that says that a window ends, it grows and shrinks by its joint count.
    """
    system, turns = turns_of(messages)
    alone = count([system + turn for turn in turns])
    overhead = sum(alone[:2]) - count([system + turns[0] + turns[1]])[0] if len(turns) > 1 else 0
    counted: dict[tuple[int, int], tuple[Chat, int]] = {}

    def fits(start: int, end: int) -> bool:
        if (start, end) not in counted:
            chat = system + [m for turn in turns[start:end] for m in turn]
            counted[start, end] = chat, count([chat])[0]
        return counted[start, end][1] <= limit

    def fitting(start: int, end: int) -> int:
        if end == start:
            return end
        while end < len(turns) and fits(start, end + 1):
            end += 1
        while not fits(start, end):  # ends at one turn, which fits by itself
            end -= 1
        return end

    found = [counted[span] for span in spans([n - overhead for n in alone], limit - overhead, fitting)]
    kept = [(chat, tokens) for chat, tokens in found if any(m["role"] == "assistant" for m in chat)]
    return kept, sum(n > limit for n in alone)
