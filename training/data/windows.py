"""Long chats as windows of whole turns.

A turn is a user message and all that follows until the next.

System messages are repeated in every window. Windows start every second turn (MOSAIC's stride),
take turns while they fit, and end with the chat: no window is part of another, and every turn that
fits the limit is in one. If two neighbouring turns do not fit together, a window also starts at
the turn that would otherwise be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from training.data.learnable import learnable_part
from training.models.chat_template import Chat

Count = Callable[[Sequence[Chat]], list[int]]
STRIDE = 2


def turns_of(messages: Chat) -> tuple[Chat, list[Chat]]:
    """(system messages, turns)."""
    system: Chat = []
    turns: list[Chat] = []
    for message in messages:
        if message["role"] == "system":
            system.append(message)
            continue
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def spans(
    lengths: Sequence[int], limit: int, fitting: Callable[[int, int], int] = lambda start, end: end
) -> list[tuple[int, int]]:
    """(start, end) of each window over turns of the given lengths.

    A turn above the limit is in none. `fitting(start, end)` says where a window really ends, for
    turns that are not as long together as one by one.

    >>> spans([4, 4, 4, 4, 4], limit=12)
    [(0, 3), (2, 5)]
    >>> spans([4, 20, 4], limit=12)
    [(0, 1), (2, 3)]
    """
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
        reached = end if end > start else start + 1
        start = max(start + 1, min(start + STRIDE, reached))
    return found


def windows(messages: Chat, limit: int, count: Count) -> tuple[list[tuple[Chat, int]], int]:
    """(messages, tokens) of each window of a chat, and how many turns are in none of them.

    The chat is longer than `limit`. A turn that is left out is longer too, or is context that no
    learnt answer follows in its window.

    Each turn is counted once. What a template puts before every chat (system messages, a date) is
    how much shorter the first two turns are together. If a window's joint count is not what
    follows from these, its end is searched for.
    """
    system, turns = turns_of(messages)
    alone = count([system + turn for turn in turns])
    together = count([system + turns[0] + turns[1]])[0] if len(turns) > 1 else sum(alone)
    # A template that drops the reasoning of all turns but the last makes them much shorter
    # together. Still, every turn is at least one token long.
    overhead = min(sum(alone[:2]) - together, min(alone) - 1)
    lengths = [tokens - overhead for tokens in alone]

    @cache
    def joint(start: int, end: int) -> tuple[Chat, int]:
        """Turns [start, end) as one chat, and its tokens."""
        chat = list(system)
        for turn in turns[start:end]:
            chat += turn
        return chat, count([chat])[0]

    def fits(start: int, end: int) -> bool:
        return joint(start, end)[1] <= limit

    def fitting(start: int, end: int) -> int:
        """The greatest end that fits: first by steps that double, then by halves."""
        if end == start:
            return end
        # The prediction is where the steps begin; one turn alone is known to fit.
        good = end if fits(start, end) else start + 1
        step = 1
        while good + step <= len(turns) and fits(start, good + step):
            good, step = good + step, 2 * step
        bad = min(good + step, len(turns) + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            if fits(start, middle):
                good = middle
            else:
                bad = middle
        return good

    covered: set[int] = set()
    kept: list[tuple[Chat, int]] = []
    for start, end in spans(lengths, limit - overhead, fitting):
        chat, tokens = joint(start, end)
        part = learnable_part(chat)
        if not part:
            continue
        covered.update(range(start, start + len(turns_of(part)[1])))
        if len(part) < len(chat):
            chat, tokens = part, count([part])[0]
        kept.append((chat, tokens))
    return kept, len(turns) - len(covered)
