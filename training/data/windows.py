"""Long chats as windows of whole turns. A turn is a user message and all that follows until the next.

System messages are repeated in every window. Windows start every second turn (MOSAIC's stride), take turns while
they fit, and end with the chat: no window is a part of another, and every turn that fits the limit is in one. Where
two neighbouring turns do not fit together, a window also starts at the turn that would otherwise be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from training.models.chat_template import Chat

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
    being above the limit.

    Turns are counted once each, and what a template puts before every chat (system messages, a date) by how much shorter
    the first two are together. Where a window's joint count is not what follows from these, its end is searched for.
    """
    system, turns = turns_of(messages)
    alone = count([system + turn for turn in turns])
    together = count([system + turns[0] + turns[1]])[0] if len(turns) > 1 else sum(alone)
    # A template that drops the reasoning of all turns but the last makes them much shorter together: no turn is nothing.
    overhead = min(sum(alone[:2]) - together, min(alone) - 1)
    lengths = [n - overhead for n in alone]

    @cache
    def joint(start: int, end: int) -> tuple[Chat, int]:
        chat = system + [m for turn in turns[start:end] for m in turn]
        return chat, count([chat])[0]

    def fitting(start: int, end: int) -> int:
        if end == start:
            return end
        # The greatest end that fits: steps that double, from the prediction or from one turn, which fits; then halves.
        fits, step = end if joint(start, end)[1] <= limit else start + 1, 1
        while fits + step <= len(turns) and joint(start, fits + step)[1] <= limit:
            fits, step = fits + step, 2 * step
        above = min(fits + step, len(turns) + 1)
        while above - fits > 1:
            middle = (fits + above) // 2
            fits, above = (middle, above) if joint(start, middle)[1] <= limit else (fits, middle)
        return fits

    found = spans(lengths, limit - overhead, fitting)
    covered = {turn for start, end in found for turn in range(start, end)}
    kept = [joint(start, end) for start, end in found]
    return [(c, n) for c, n in kept if any(m["role"] == "assistant" for m in c)], len(turns) - len(
        covered
    )
